"""Cross-entropy in which pixels count less the better they are predicted."""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxunet.losses.entry import register
from jaxunet.losses.logistic import probabilities, surprisals
from jaxunet.losses.reduction import Empty, Inputs, Reduce, power, prepare, ratio

__all__ = ["asymmetric_focal_loss", "focal_loss", "normalized_focal_loss", "reduced_focal_loss"]


@register(
    "distribution",
    range=(0, math.inf),
    on_empty="0 for the empty prediction; every pixel is pushed down, less so the smaller its p",
    monotone=True,
)
def focal_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    alpha: float | Array | None = 0.25,
    gamma: float | Array = 2.0,
) -> Array:
    """Focal loss, at least 0.

    Formula: `mean(-alpha g (1 - p)^gamma log p - (1 - alpha) (1 - g) p^gamma log(1 - p))`

    Options:
      alpha: in [0, 1], weight of the true pixels; None gives both classes the weight 1.
      gamma: at least 0, how fast correct pixels lose their weight; 0 is cross-entropy.

    Source: Lin et al. 2017, arXiv 1708.02002, eq. 5.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    (of_true, of_false), (probs, opposite) = surprisals(x.logits), probabilities(x.logits)
    return x.mean(_by_label(x.masks, power(opposite, gamma) * of_true, power(probs, gamma) * of_false, alpha))


@register(
    "distribution",
    range=(0, math.inf),
    on_empty="0 for the empty prediction; the image is pushed down, though not every pixel",
)
def normalized_focal_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    alpha: float | Array | None = None,
    gamma: float | Array = 2.0,
) -> Array:
    """Focal loss divided by the sum of its factors, at least 0; `p_t` is the probability of the label.

    The gradient does not fade as pixels become correct. The denominator is differentiated too, so a pixel that is
    better than most may be pushed back.

    Formula: `sum(-(1 - p_t)^gamma log p_t) / sum((1 - p_t)^gamma)`

    Options:
      alpha: in [0, 1], weight of the true pixels in the numerator; None gives both classes the weight 1.
      gamma: at least 0; 0 is cross-entropy.

    Source: Sofiiuk et al. 2019, AdaptIS, arXiv 1909.07829, section 3.4.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    (of_true, of_false), (probs, opposite) = surprisals(x.logits), probabilities(x.logits)
    # Errors are divided by the largest of the group: otherwise the sum of their powers underflows near the optimum.
    counts = x.weight > 0
    relevant = jnp.maximum(jnp.where(counts & (x.masks > 0), opposite, 0), jnp.where(counts & (x.masks < 1), probs, 0))
    peak = lax.stop_gradient(_largest(x, relevant))[:, None, None, None]
    peak = jnp.where(peak > jnp.finfo(peak.dtype).tiny, peak, 1)
    true, false = (power(jnp.where(error <= peak, error / peak, 0), gamma) for error in (opposite, probs))
    numerator = x.total(x.weight * _by_label(x.masks, true * of_true, false * of_false, alpha))
    return ratio(numerator, x.total(x.weight * _by_label(x.masks, true, false)))


@register(
    "distribution",
    range=(0, math.inf),
    on_empty="0 for the empty prediction; every pixel is pushed down, less so the smaller its p",
    monotone=True,
    piecewise=True,
)
def reduced_focal_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    alpha: float | Array | None = None,
    gamma: float | Array = 2.0,
    threshold: float | Array = 0.5,
) -> Array:
    """Focal loss in which hard pixels keep their full weight, at least 0; `p_t` is the probability of the label.

    Formula: `mean(-f log p_t), f = 1 where p_t < threshold, ((1 - p_t) / threshold)^gamma elsewhere`

    Options:
      alpha: in [0, 1], weight of the true pixels; None gives both classes the weight 1.
      gamma: at least 0; 0 is cross-entropy.
      threshold: in (0, 1]; at 1/2 the factor has no jump.

    Source: Sergievskiy and Ponamarev 2019, arXiv 1903.01347, eq. 3.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    (of_true, of_false), (probs, opposite) = surprisals(x.logits), probabilities(x.logits)
    true = jnp.where(probs < threshold, 1, power(opposite / threshold, gamma)) * of_true
    false = jnp.where(opposite < threshold, 1, power(probs / threshold, gamma)) * of_false
    return x.mean(_by_label(x.masks, true, false, alpha))


@register(
    "distribution",
    range=(0, math.inf),
    on_empty="0 for the empty prediction; every pixel is pushed down, less so the smaller its p",
    monotone=True,
)
def asymmetric_focal_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    delta: float | Array = 0.7,
    gamma: float | Array = 2.0,
) -> Array:
    """Focal loss that reduces the weight of correct background only, at least 0.

    Formula: `mean(-delta g log p - (1 - delta) (1 - g) p^gamma log(1 - p))`

    Options:
      delta: in [0, 1], weight of the true pixels.
      gamma: at least 0, how fast correct background loses its weight.

    Source: Yeung et al. 2021, Unified Focal loss, arXiv 2102.04525, the modified asymmetric Focal loss.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    of_true, of_false = surprisals(x.logits)
    return x.mean(_by_label(x.masks, of_true, power(probabilities(x.logits)[0], gamma) * of_false, delta))


def _by_label(masks: Array, of_true: Array, of_false: Array, alpha: float | Array | None = None) -> Array:
    """Value of each pixel from those of the two labels, weighted by `alpha` and `1 - alpha`."""
    if alpha is None:
        return masks * of_true + (1 - masks) * of_false
    return alpha * masks * of_true + (1 - alpha) * (1 - masks) * of_false


def _largest(x: Inputs, values: Array) -> Array:
    """Largest of `values` `[B, H, W, K]` in the group of each image, `[B]`."""
    return jax.ops.segment_max(jnp.max(values, (1, 2, 3)), x.group, num_segments=len(x.group))[x.group]
