"""Cross-entropy in which pixels count less the better they are."""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxunet.losses.entry import Loss
from jaxunet.losses.logistic import probabilities, surprisals
from jaxunet.losses.reduction import Empty, Inputs, Reduce, power, prepare, ratio


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
    """Focal loss, the mean of `-a g (1 - p)^c log p - (1 - a) (1 - g) p^c log(1 - p)`.

    Other arguments and errors: see `jaxunet.losses`.

    Options:
      alpha: `a` in [0, 1], weight of the true pixels; None weighs both classes by 1.
      gamma: `c`, at least 0: how fast what is right loses its weight; 0 is cross-entropy.

    Returns:
      The loss, at least 0.

    Source: Lin et al. 2017, arXiv 1708.02002, eq. 5.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    (of_true, of_false), (probs, opposite) = surprisals(x.logits), probabilities(x.logits)
    return x.mean(_by_label(x.masks, power(opposite, gamma) * of_true, power(probs, gamma) * of_false, alpha))


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
    """Focal loss over the sum of its factors, `sum(-(1 - p_t)^c log p_t) / sum((1 - p_t)^c)`.

    `p_t` is the probability of the label. The gradient does not fade as pixels become right. The denominator is part of
    the function and of its derivative, so a pixel that is better than most may be pushed back. Other arguments and
    errors: see `jaxunet.losses`.

    Options:
      alpha: in [0, 1], weight of the true pixels in the numerator; None weighs both classes by 1.
      gamma: `c`, at least 0; 0 is cross-entropy.

    Returns:
      The loss, at least 0.

    Source: Sofiiuk et al. 2019, AdaptIS, arXiv 1909.07829, section 3.4.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    (of_true, of_false), (probs, opposite) = surprisals(x.logits), probabilities(x.logits)
    # Errors as shares of the largest in the group: the sum of their powers would underflow where all are right.
    counts = x.weight > 0
    relevant = jnp.maximum(jnp.where(counts & (x.masks > 0), opposite, 0), jnp.where(counts & (x.masks < 1), probs, 0))
    peak = lax.stop_gradient(_largest(x, relevant))[:, None, None, None]
    peak = jnp.where(peak > jnp.finfo(peak.dtype).tiny, peak, 1)
    true, false = (power(jnp.where(error <= peak, error / peak, 0), gamma) for error in (opposite, probs))
    numerator = x.total(x.weight * _by_label(x.masks, true * of_true, false * of_false, alpha))
    return ratio(numerator, x.total(x.weight * _by_label(x.masks, true, false)))


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
    """Focal loss that leaves hard pixels their weight: factor 1 where `p_t < h`, else `((1 - p_t) / h)^c`.

    `p_t` is the probability of the label. Other arguments and errors: see `jaxunet.losses`.

    Options:
      alpha: in [0, 1], weight of the true pixels; None weighs both classes by 1.
      gamma: `c`, at least 0; 0 is cross-entropy.
      threshold: `h` in (0, 1]; at 1/2 the factor has no jump.

    Returns:
      The loss, at least 0.

    Source: Sergievskiy and Ponamarev 2019, arXiv 1903.01347, eq. 3.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    (of_true, of_false), (probs, opposite) = surprisals(x.logits), probabilities(x.logits)
    true = jnp.where(probs < threshold, 1, power(opposite / threshold, gamma)) * of_true
    false = jnp.where(opposite < threshold, 1, power(probs / threshold, gamma)) * of_false
    return x.mean(_by_label(x.masks, true, false, alpha))


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
    """Focal loss that eases the background alone: the mean of `-d g log p - (1 - d) (1 - g) p^c log(1 - p)`.

    Other arguments and errors: see `jaxunet.losses`.

    Options:
      delta: `d` in [0, 1], weight of the true pixels.
      gamma: `c`, at least 0: how fast background that is right loses its weight.

    Returns:
      The loss, at least 0.

    Source: Yeung et al. 2021, Unified Focal loss, arXiv 2102.04525, the modified asymmetric Focal loss.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    of_true, of_false = surprisals(x.logits)
    return x.mean(_by_label(x.masks, of_true, power(probabilities(x.logits)[0], gamma) * of_false, delta))


def _by_label(masks: Array, of_true: Array, of_false: Array, alpha: float | Array | None = None) -> Array:
    """Value of each pixel from those of the two labels, weighed by `alpha` and `1 - alpha`."""
    if alpha is None:
        return masks * of_true + (1 - masks) * of_false
    return alpha * masks * of_true + (1 - alpha) * (1 - masks) * of_false


def _largest(x: Inputs, values: Array) -> Array:
    """Largest of `values` `[B, H, W, K]` in the group of each image, `[B]`."""
    return jax.ops.segment_max(jnp.max(values, (1, 2, 3)), x.group, num_segments=len(x.group))[x.group]


ENTRIES = {
    "focal": Loss(
        focal_loss,
        "distribution",
        "mean(-0.25 g (1 - p)^2 log p - 0.75 (1 - g) p^2 log(1 - p))",
        "Lin et al. 2017, arXiv 1708.02002",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down, the surer it is the less",
        monotone=True,
    ),
    "normalized_focal": Loss(
        normalized_focal_loss,
        "distribution",
        "sum(-(1 - p_t)^2 log p_t) / sum((1 - p_t)^2)",
        "Sofiiuk et al. 2019, arXiv 1909.07829",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; the image is pushed down, though not every pixel",
    ),
    "reduced_focal": Loss(
        reduced_focal_loss,
        "distribution",
        "mean(-log p_t) with factor 1 where p_t < 0.5, ((1 - p_t) / 0.5)^2 elsewhere",
        "Sergievskiy and Ponamarev 2019, arXiv 1903.01347",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down, the surer it is the less",
        monotone=True,
        piecewise=True,
    ),
    "asymmetric_focal": Loss(
        asymmetric_focal_loss,
        "distribution",
        "mean(-0.7 g log p - 0.3 (1 - g) p^2 log(1 - p))",
        "Yeung et al. 2021, arXiv 2102.04525",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down, the surer it is the less",
        monotone=True,
    ),
}
