"""Losses of the whole confusion matrix, which count the background as well."""

import jax.numpy as jnp
from jax import Array

from jaxunet.losses.entry import register
from jaxunet.losses.reduction import Empty, Inputs, Reduce, prepare, ratio
from jaxunet.losses.region.overlap import difference, overlap, true_negative

__all__ = ["generalized_dice_loss", "mcc_loss", "penalty_generalized_dice_loss", "sensitivity_specificity_loss"]


@register(
    "region", range=(0, 1), on_empty="mean(p): 0 for the empty prediction; every pixel is pushed down", monotone=True
)
def generalized_dice_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
) -> Array:
    """Generalized Dice loss of tumour and background, each weighted by the inverse square of its size, in [0, 1].

    Only the ratio of the weights matters, so no constant is needed to keep them finite. Where one class has no pixel in
    a group, both have the same weight.

    Formula: `1 - 2 sum_c w_c sum(p_c g_c) / sum_c w_c sum(p_c + g_c), w_c = 1 / sum(g_c)^2, c = tumour, background`

    Source: Sudre et al. 2017, arXiv 1707.03237, section 2.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    return _generalized_dice(x)


@register(
    "region",
    range=(0, 1),
    on_empty="3.5 m / (1 + 2.5 m), m = mean(p): 0 for the empty prediction; every pixel is pushed down",
    monotone=True,
)
def penalty_generalized_dice_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    k: float | Array = 2.5,
) -> Array:
    """Generalized Dice loss with a penalty on errors, in [0, 1].

    Formula: `1 - GD / (1 + k (1 - GD)), GD = 1 - generalized_dice`

    Options:
      k: at least 0, strength of the penalty; 0 is the generalized Dice loss.

    Source: Yang et al. 2019, Major Vessel Segmentation on X-ray Coronary Angiography using Deep Networks with a Novel
    Penalty Loss Function (MIDL), eq. 2.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    loss = _generalized_dice(x)
    return (1 + k) * loss / (1 + k * loss)


@register(
    "region",
    range=(0, 1),
    on_empty="0.9 mean(p^2): 0 for the empty prediction; every pixel is pushed down",
    monotone=True,
)
def sensitivity_specificity_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    r: float | Array = 0.1,
) -> Array:
    """Squared errors in sensitivity and in specificity, in [0, 1]; a class without pixels has no term.

    Formula: `r sum((g - p)^2 g) / sum(g) + (1 - r) sum((g - p)^2 (1 - g)) / sum(1 - g)`

    Options:
      r: in [0, 1], weight of the sensitivity; small, because the rarer class has the larger error.

    Source: Brosch et al. 2015, Deep Convolutional Encoder Networks for Multiple Sclerosis Lesion Segmentation (MICCAI),
    eq. 7.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    squares = x.weight * difference(x) ** 2
    missed = ratio(x.total(squares * x.masks), x.total(x.weight * x.masks))
    invented = ratio(x.total(squares * (1 - x.masks)), x.total(x.weight * (1 - x.masks)))
    return r * missed + (1 - r) * invented


@register("region", range=(0, 2), symmetric=True, monotone=True)
def mcc_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    smooth: float | Array = 1.0,
) -> Array:
    """One minus Matthews' correlation coefficient, in [0, 2]; 1 where prediction and mask are not correlated.

    Formula: `1 - (TP TN - FP FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN)), smooth added to TP and TN`

    Options:
      smooth: correct pixels added to each class; the coefficient of an empty or a full mask is undefined without them.

    Source: Abhishek and Hamarneh 2021, Matthews Correlation Coefficient Loss for Deep Convolutional Networks (ISBI),
    arXiv 2010.13454, eq. 4.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    found = overlap(x)
    tp, tn, fp, fn = found.true_positive + smooth, true_negative(x) + smooth, found.false_positive, found.false_negative
    # The root of each half: the product of all four overflows float32 in a large batch.
    margins = _root((tp + fp) * (tp + fn)) * _root((tn + fp) * (tn + fn))
    return 1 - ratio(tp * tn - fp * fn, margins)


def _generalized_dice(x: Inputs) -> Array:
    """The errors are the same for both classes, so the weights apply to the correct pixels only."""
    found, tn = overlap(x), true_negative(x)
    tp, errors = found.true_positive, found.errors
    true, false = tp + found.false_negative, tn + found.false_positive
    both = (true > 0) & (false > 0)
    share = jnp.where(both, ratio(false**2, true**2 + false**2), 0.5)  # the tumour's share of the weights
    return ratio(errors, 2 * (share * tp + (1 - share) * tn) + errors)


def _root(square: Array) -> Array:
    """Square root with gradient zero at zero, where it is infinite."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
