"""The contract of every loss: shapes, dtypes, weights, reductions and empty masks."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

Reduce = Literal["batch", "image", "patient"]
"""What has one loss value: the whole batch, each image, or the images of each patient together."""

Empty = Literal["perfect", "skip"]
"""How a group without a true pixel counts, in losses and metrics alike.

"perfect": an empty prediction of an empty mask is correct (loss 0, score 1), any other wrong. "skip": the group does
not count (loss 0 without gradient; score NaN, left out of every mean).
"""

REDUCTIONS: tuple[str, ...] = ("batch", "image", "patient")


class Inputs(NamedTuple):
    """Checked and cast arguments of a loss, with sums over the groups that have one loss value each.

    Attributes:
      logits: `[B, H, W, K]`, at least float32, zero where the weight is zero.
      masks: likewise.
      weight: `[B, 1, 1, 1]` or `[B, H, W, 1]`.
      reduce: what forms a group.
      group: int32 `[B]`, the row of the first image of each image's group.
    """

    logits: Array
    masks: Array
    weight: Array
    reduce: Reduce
    group: Array

    @property
    def probs(self) -> Array:
        """Sigmoid of the logits."""
        return jax.nn.sigmoid(self.logits)

    @property
    def image_weight(self) -> Array:
        """Mean weight of the pixels of each image, `[B]`."""
        return jnp.mean(self.weight, (1, 2, 3))

    @property
    def total_weight(self) -> Array:
        """Weight of all pixels and channels in each group."""
        return self.total(self.weight) * (self.logits.size // self.weight.size)

    def total(self, values: Array) -> Array:
        """Sum of `values` `[B, H, W, K]` in each group.

        Each image row is summed by a product with ones: XLA's CPU backend computes a plain sum element by element, four
        times slower and with two digits less in float32.
        """
        # Without the barrier XLA fuses the computation of the values into that slow loop.
        rows = lax.optimization_barrier(values.reshape(*values.shape[:2], -1))
        ones = jnp.ones(rows.shape[2], rows.dtype)
        sums = lax.dot_general(rows, ones, (((2,), (0,)), ((), ())), precision=lax.Precision.HIGHEST)
        return self.total_of_images(jnp.sum(sums, 1))

    def mean(self, values: Array) -> Array:
        """Mean of `values` `[B, H, W, K]` under the weight in each group; 0 where nothing has weight."""
        return ratio(self.total(self.weight * values), self.total_weight)

    def total_of_images(self, values: Array) -> Array:
        """Sum of `values` `[B]` in each group: a scalar, or `[B]` with zero in rows that do not start a group."""
        if self.reduce == "batch":
            return jnp.sum(values)
        if self.reduce == "image":
            return values
        return jax.ops.segment_sum(values, self.group, num_segments=len(self.group))

    def mean_of_images(self, values: Array, weight: Array | None = None) -> Array:
        """Weighted mean over each group of `values` `[B]`, of a loss that is defined per image."""
        weight = self.image_weight if weight is None else weight
        return ratio(self.total_of_images(weight * values), self.total_of_images(weight))

    def of_images(self, groups: Array) -> Array:
        """Spreads a result of `total` to the images of each group, `[B]`."""
        return jnp.broadcast_to(groups, self.group.shape) if self.reduce == "batch" else groups[self.group]


def prepare(
    logits: Array,
    masks: Array,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
) -> Inputs:
    """Checks and casts the arguments of a loss.

    Args:
      logits: `[B, H, W, K]`, any float dtype.
      masks: same shape, values in [0, 1], any dtype.
      weight: None, `[B]` or `[B, H, W, 1]`; zero removes a sample or a pixel, even if it is NaN.
      reduce: "batch", "image" or "patient".
      patient: int `[B]`, equal for the images of one patient; any values. Only "patient" needs it.
      empty: "skip" removes groups without a true pixel.

    Returns:
      The inputs in at least float32 (float64 stays float64), zero where the weight is zero.

    Raises:
      ValueError: shapes differ (`[B, H, W]` is never broadcast against `[B, H, W, 1]`), logits are not floats, `reduce`
        or `empty` is unknown, or `reduce="patient"` without `patient`.
    """
    logits, masks = jnp.asarray(logits), jnp.asarray(masks)
    if logits.ndim != 4 or logits.shape != masks.shape:
        raise ValueError(f"logits {logits.shape} and masks {masks.shape} must have the same shape [B, H, W, K]")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits are {logits.dtype}; expected unnormalised scores of a float dtype")
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce={reduce!r}; expected one of {', '.join(map(repr, REDUCTIONS))}")
    if empty not in ("perfect", "skip"):
        raise ValueError(f"empty={empty!r}; expected one of 'perfect', 'skip'")
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    logits, masks = logits.astype(dtype), masks.astype(dtype)
    factors = _prepare_weight(weight, logits.shape).astype(dtype)
    if weight is not None:
        # Zero times NaN is NaN, so excluded values must not reach the arithmetic.
        logits, masks = jnp.where(factors != 0, logits, 0), jnp.where(factors != 0, masks, 0)
    inputs = Inputs(logits, masks, factors, reduce, _groups(len(logits), reduce, patient))
    if empty == "perfect":
        return inputs
    counts = inputs.of_images(inputs.total(factors * masks)) > 0
    return inputs._replace(weight=jnp.where(counts[:, None, None, None], factors, 0))


def averaged(loss: Callable[..., Array], over: Reduce) -> Callable[..., Array]:
    """Turns a loss into its mean over the images, or the patients, that have weight.

    `averaged(dice_loss, "patient")` is one minus the mean soft Dice of the patients in a batch; the plain `dice_loss`
    treats the batch as one image.

    Args:
      loss: a loss of this package's signature.
      over: "image" or "patient"; "batch" returns the loss unchanged.

    Returns:
      `(logits, masks, *, weight=None, patient=None, **options)` to a scalar; 0 where nothing has weight.
    """
    if over == "batch":
        return loss

    def mean(
        logits: Array, masks: Array, *, weight: Array | None = None, patient: Array | None = None, **options: Any
    ) -> Array:
        values = loss(logits, masks, weight=weight, reduce=over, patient=patient, **options)
        inputs = prepare(logits, masks, weight, over, patient, options.get("empty", "perfect"))
        counts = inputs.total_of_images(inputs.image_weight) > 0
        return ratio(jnp.sum(jnp.where(counts, values, 0)), jnp.sum(counts, dtype=values.dtype))

    return mean


def ratio(numerator: Array, denominator: Array) -> Array:
    """`numerator / denominator`, with value and gradient zero where the denominator is zero."""
    defined = denominator != 0
    return jnp.where(defined, numerator / jnp.where(defined, denominator, 1), 0)


def power(share: Array, exponent: float | Array) -> Array:
    """`share ** exponent` of shares in [0, 1]; a root has gradient zero at zero, where it is infinite."""
    if isinstance(exponent, int | float) and exponent >= 1 and exponent == int(exponent):
        return share ** int(exponent)  # products; a power of floats needs a logarithm and an exponential
    positive = share > 0
    return jnp.where(positive, jnp.where(positive, share, 1) ** exponent, 0)


def _groups(images: int, reduce: Reduce, patient: Array | None) -> Array:
    if reduce == "batch":
        return jnp.zeros(images, jnp.int32)
    if reduce == "image":
        return jnp.arange(images, dtype=jnp.int32)
    if patient is None:
        raise ValueError('reduce="patient" needs patient, an index [B] that is equal for the images of one patient')
    patient = jnp.asarray(patient)
    if patient.shape != (images,):
        raise ValueError(f"patient {patient.shape} must be [B] = {(images,)}")
    return jnp.argmax(patient[:, None] == patient, axis=1).astype(jnp.int32)


def _prepare_weight(weight: Array | None, shape: tuple[int, ...]) -> Array:
    if weight is None:
        return jnp.ones((shape[0], 1, 1, 1), jnp.float32)
    weight = jnp.asarray(weight)
    if weight.shape == shape[:1]:
        return weight.reshape(-1, 1, 1, 1)
    if weight.shape == (*shape[:3], 1):
        return weight
    raise ValueError(f"weight {weight.shape} must be [B] = {shape[:1]} or [B, H, W, 1] = {(*shape[:3], 1)}")
