"""The contract that every loss keeps: shapes, dtypes, weights and reductions."""

from typing import Literal

import jax.numpy as jnp
from jax import Array, lax

Reduce = Literal["batch", "image"]

AXES: dict[str, tuple[int, ...]] = {"batch": (0, 1), "image": (1,)}
"""Axes of the row sums `[B, H]` that a reduction adds up: "batch" leaves one scalar, "image" leaves `[B]`."""


def prepare(logits: Array, masks: Array, weight: Array | None) -> tuple[Array, Array, Array]:
    """Checks and casts the arguments of a loss.

    Args:
      logits: `[B, H, W, K]`, any float dtype.
      masks: same shape, values in [0, 1], any dtype.
      weight: None, `[B]` or `[B, H, W, 1]`; zero takes a sample or a pixel out, whatever is there (NaN included).

    Returns:
      Logits and masks in at least float32 (float64 stays float64), zero where they do not count, and a weight that
      broadcasts against them: `[B, 1, 1, 1]` or `[B, H, W, 1]`.

    Raises:
      ValueError: shapes differ (`[B, H, W]` is never broadcast against `[B, H, W, 1]`), or logits are no floats.
    """
    logits, masks = jnp.asarray(logits), jnp.asarray(masks)
    if logits.ndim != 4 or logits.shape != masks.shape:
        raise ValueError(f"logits {logits.shape} and masks {masks.shape} must have the same shape [B, H, W, K]")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits are {logits.dtype}; expected unnormalised scores of a float dtype")
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    logits, masks = logits.astype(dtype), masks.astype(dtype)
    factors = _prepare_weight(weight, logits.shape).astype(dtype)
    if weight is not None:
        # Zero times NaN is NaN: what is left out must not reach the arithmetic.
        logits, masks = jnp.where(factors != 0, logits, 0), jnp.where(factors != 0, masks, 0)
    return logits, masks, factors


def weighted_mean(values: Array, weight: Array, reduce: Reduce) -> Array:
    """Mean of `values` `[B, H, W, K]` under `weight`; 0 where nothing has weight."""
    weight = jnp.broadcast_to(weight, values.shape)
    return ratio(total(weight * values, reduce), total(weight, reduce))


def total(values: Array, reduce: Reduce) -> Array:
    """Sum of `values` `[B, H, W, K]`: a scalar under "batch", `[B]` under "image".

    It is taken in two stages, because XLA's CPU backend adds short arrays one number after the other, which costs two
    digits in float32. Without the barrier the compiler would merge the stages again.
    """
    rows = lax.optimization_barrier(jnp.sum(values, (2, 3)))
    return jnp.sum(rows, AXES[_known(reduce)])


def mean_over_images(values: Array, weight: Array, reduce: Reduce) -> Array:
    """Reduces a loss that is per image by nature, `values` `[B]`, by the weight of each image.

    Under "batch" it is the weighted mean over images, under "image" each image's value, 0 where its weight is zero.
    """
    if _known(reduce) == "image":
        return jnp.where(weight > 0, values, 0)
    return ratio(jnp.sum(weight * values), jnp.sum(weight))


def ratio(numerator: Array, denominator: Array) -> Array:
    """`numerator / denominator`, with value and gradient zero where the denominator is zero."""
    defined = denominator != 0
    return jnp.where(defined, numerator / jnp.where(defined, denominator, 1), 0)


def _known(reduce: Reduce) -> Reduce:
    if reduce not in AXES:
        raise ValueError(f"reduce={reduce!r}; expected one of {', '.join(map(repr, AXES))}")
    return reduce


def _prepare_weight(weight: Array | None, shape: tuple[int, ...]) -> Array:
    if weight is None:
        return jnp.ones((shape[0], 1, 1, 1), jnp.float32)
    weight = jnp.asarray(weight)
    if weight.shape == shape[:1]:
        return weight.reshape(-1, 1, 1, 1)
    if weight.shape == (*shape[:3], 1):
        return weight
    raise ValueError(f"weight {weight.shape} must be [B] = {shape[:1]} or [B, H, W, 1] = {(*shape[:3], 1)}")
