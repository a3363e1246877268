"""The sums that overlaps are made of."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxunet.losses.reduction import Inputs


class Overlap(NamedTuple):
    """Soft counts of pixels in each group, under the weight.

    Attributes:
      true_positive: sum of `pg`.
      false_positive: sum of `p (1 - g)`.
      false_negative: sum of `(1 - p) g`.
    """

    true_positive: Array
    false_positive: Array
    false_negative: Array

    @property
    def errors(self) -> Array:
        """False positives and false negatives."""
        return self.false_positive + self.false_negative


def overlap(x: Inputs) -> Overlap:
    """Counts what prediction and mask have in common and what not.

    Losses are written as a share of the errors, `errors / (2 tp + errors)` rather than `1 - 2 tp / (...)`: what is
    nearly right keeps its digits.
    """
    probs, opposite = probabilities(x.logits)
    return Overlap(
        x.total(x.weight * probs * x.masks),
        x.total(x.weight * probs * (1 - x.masks)),
        x.total(x.weight * opposite * x.masks),
    )


def true_negative(x: Inputs) -> Array:
    """Sum of `(1 - p) (1 - g)` in each group, under the weight."""
    return x.total(x.weight * probabilities(x.logits)[1] * (1 - x.masks))


def difference(x: Inputs) -> Array:
    """`p - g` of each pixel, `[B, H, W, K]`."""
    probs, opposite = probabilities(x.logits)
    return probs * (1 - x.masks) - opposite * x.masks


@jax.custom_jvp
def probabilities(logits: Array) -> tuple[Array, Array]:
    """`p` and `1 - p`, each with all its digits: in float32 one minus the sigmoid is 0 from a logit of 17."""
    small = jnp.exp(-jnp.abs(logits))
    greater, smaller = 1 / (1 + small), small / (1 + small)
    positive = logits > 0
    return jnp.where(positive, greater, smaller), jnp.where(positive, smaller, greater)


@probabilities.defjvp
def _probabilities_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    probs, opposite = probabilities(*primals)
    slope = probs * opposite * tangents[0]
    return (probs, opposite), (slope, -slope)


def smooth_where_empty(true_pixels: Array, smooth: float | Array) -> Array:
    """`smooth`, at least 1 in groups whose masks are empty."""
    return jnp.where(true_pixels == 0, jnp.maximum(smooth, 1.0), smooth).astype(true_pixels.dtype)


def power(share: Array, exponent: float | Array) -> Array:
    """`share ** exponent`, with gradient zero at zero, where that of a root is infinite."""
    positive = share > 0
    return jnp.where(positive, jnp.where(positive, share, 1) ** exponent, 0)
