"""Sums over the pixels of each image, from which every score of a segmentation is computed.

`pixel_sums` runs on the device, inside jit, and returns one row of sums per image. Rows can be added over any group: a
batch, a patient, a whole test set, all hosts. On the host (`add`, `group`) counts are int64 and exact at any size;
float32 would stop counting at 2^24, which is 256 slices of 256x256.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxunet.losses.reduction import prepare

__all__ = ["PixelSums", "above", "add", "group", "pixel_sums"]


class PixelSums(NamedTuple):
    """Sums over the pixels of each image (or of any group of images, once added up).

    Attributes:
      tp: true positives, integer.
      fp: false positives, integer.
      fn: false negatives, integer.
      tn: true negatives, integer.
      overlap: sum of p * g, with p the probability and g the mask.
      predicted: sum of p.
      actual: sum of g.
    """

    tp: Any
    fp: Any
    fn: Any
    tn: Any
    overlap: Any
    predicted: Any
    actual: Any


def above(logits: Array, threshold: float | Array = 0.5) -> Array:
    """Whether the probability of each logit is greater than a threshold: bool, the shape of `logits`.

    A probability of exactly 0.5 is negative at 0.5, and so is NaN. At a threshold of 0 every pixel is positive, at 1
    none.

    Args:
      logits: unnormalised scores of any shape and float dtype; compared in at least float32.
      threshold: a probability.
    """
    logits = jnp.asarray(logits)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    threshold = jnp.asarray(threshold, logits.dtype)
    return logits > jnp.log(threshold / (1 - threshold))  # this form is exactly 0 at 0.5


def pixel_sums(
    logits: Array, masks: Array, *, weight: Array | None = None, threshold: float | Array = 0.5
) -> PixelSums:
    """Counts pixels and sums probabilities of each image.

    Args:
      logits: `[B, H, W, K]` unnormalised scores.
      masks: same shape, values in {0, 1}.
      weight: `[B]` or `[B, H, W, 1]`; zero removes a sample or a pixel, any other value counts it once.
      threshold: a pixel is positive where its probability is above this (see `above`).

    Returns:
      `PixelSums` of `[B]` arrays, int32 counts and float32 sums.

    Raises:
      ValueError: shapes differ.
    """
    x = prepare(logits, masks, weight, "image")
    predicted, actual = above(x.logits, threshold), x.masks > 0.5
    counted = jnp.broadcast_to(x.weight > 0, x.logits.shape)

    def count(pixels: Array) -> Array:
        return jnp.sum(pixels & counted, (1, 2, 3), dtype=jnp.int32)

    def soft(values: Array) -> Array:
        return x.total(jnp.where(counted, values, 0))

    return PixelSums(
        tp=count(predicted & actual),
        fp=count(predicted & ~actual),
        fn=count(~predicted & actual),
        tn=count(~predicted & ~actual),
        overlap=soft(x.probs * x.masks),
        predicted=soft(x.probs),
        actual=soft(x.masks),
    )


def add(sums: PixelSums) -> PixelSums:
    """Adds rows `[N]` into scalars, on the host in int64 and float64."""
    return PixelSums(*(np.sum(np.asarray(s), dtype=np.int64 if i < 4 else np.float64) for i, s in enumerate(sums)))


def group(sums: PixelSums, labels: Sequence[Any] | np.ndarray) -> tuple[np.ndarray, PixelSums]:
    """Adds up the rows that share a label, on the host in int64 and float64.

    Args:
      sums: rows `[N]`.
      labels: `[N]`, the group of each row: names or indices.

    Returns:
      The distinct labels `[G]`, sorted, and their sums `[G]`.

    Raises:
      ValueError: the numbers of labels and rows differ.
    """
    names, index = np.unique(np.asarray(labels), return_inverse=True)

    def total_of(values: Any, dtype: Any) -> np.ndarray:
        values = np.asarray(values)
        if values.shape != index.shape:
            raise ValueError(f"labels {index.shape} for rows of sums {values.shape}: expected one label per row")
        result = np.zeros(len(names), dtype)
        np.add.at(result, index, values)
        return result

    return names, PixelSums(*(total_of(s, np.int64 if i < 4 else np.float64) for i, s in enumerate(sums)))
