"""Tversky indices: overlaps in which false positives and false negatives have different weights."""

from jax import Array

from jaxunet.losses.entry import register
from jaxunet.losses.reduction import Empty, Reduce, power, prepare, ratio
from jaxunet.losses.region.overlap import Overlap, overlap, smooth_where_empty, true_negative

__all__ = ["asymmetric_focal_tversky_loss", "asymmetric_similarity_loss", "focal_tversky_loss", "tversky_loss"]


@register(
    "region",
    range=(0, 1),
    on_empty="0.3 FP / (0.3 FP + 1): 0 for the empty prediction; every pixel is pushed down",
    monotone=True,
)
def tversky_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    alpha: float | Array = 0.3,
    beta: float | Array = 0.7,
    smooth: float | Array = 0.0,
) -> Array:
    """One minus the Tversky index, in [0, 1]. `alpha = beta = 1/2` is Dice, `alpha = beta = 1` Jaccard.

    Formula: `1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth)`

    Options:
      alpha: at least 0, weight of the false positives.
      beta: at least 0, weight of the false negatives.
      smooth: raised to at least 1 where all masks of a group are empty.

    Source: Salehi et al. 2017, arXiv 1706.05721, eq. 3.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    return _tversky(overlap(x), alpha, beta, smooth)


@register(
    "region",
    range=(0, 1),
    on_empty="(0.3 FP / (0.3 FP + 1))^0.75: 0 for the empty prediction; every pixel is pushed down",
    monotone=True,
)
def focal_tversky_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    alpha: float | Array = 0.3,
    beta: float | Array = 0.7,
    gamma: float | Array = 0.75,
    smooth: float | Array = 0.0,
) -> Array:
    """Power of the Tversky loss, in [0, 1]; an exponent below 1 keeps the gradient of a nearly correct prediction.

    Formula: `(1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth))^gamma`

    Options:
      alpha: weight of the false positives.
      beta: weight of the false negatives.
      gamma: above 0. The paper writes 3/4 as the inverse of 4/3.
      smooth: as in `tversky_loss`.

    Source: Abraham and Khan 2018, arXiv 1810.07842, eq. 4.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    return power(_tversky(overlap(x), alpha, beta, smooth), gamma)


@register(
    "region",
    range=(0, 1),
    on_empty="0.31 FP / (0.31 FP + 1): 0 for the empty prediction; every pixel is pushed down",
    monotone=True,
)
def asymmetric_similarity_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    beta: float | Array = 1.5,
    smooth: float | Array = 0.0,
) -> Array:
    """One minus the F-beta score, in [0, 1].

    Formula: `1 - (TP + smooth) / (TP + a FN + (1 - a) FP + smooth), a = beta^2 / (1 + beta^2)`

    Options:
      beta: at least 0; above 1 a false negative weighs more than a false positive.
      smooth: as in `tversky_loss`.

    Source: Hashemi et al. 2018, Asymmetric Loss Functions and Deep Densely Connected Networks (IEEE Access), eq. 4.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    return _tversky(overlap(x), 1 / (1 + beta**2), beta**2 / (1 + beta**2), smooth)


@register(
    "region",
    range=(0, 1),
    on_empty="0 for the empty prediction; every pixel is pushed down, steeply where little is predicted",
    monotone=True,
)
def asymmetric_focal_tversky_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    delta: float | Array = 0.7,
    gamma: float | Array = 0.75,
    smooth: float | Array = 0.0,
) -> Array:
    """Mean of the background's Tversky loss and a power of the tumour's, in [0, 1].

    The exponent is below 1, so a rare tumour that is nearly correct keeps its gradient.

    Formula: `((1 - TI_b) + (1 - TI_f)^(1 - gamma)) / 2, TI = TP / (TP + (1 - delta) FP + delta FN) of each class`

    Options:
      delta: in [0, 1], weight of the false negatives.
      gamma: in [0, 1), how much the tumour is favoured.
      smooth: as in `tversky_loss`, for each class.

    Source: Yeung et al. 2021, Unified Focal loss, arXiv 2102.04525, the modified asymmetric Focal Tversky loss.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    found = overlap(x)
    of_background = Overlap(true_negative(x), found.false_negative, found.false_positive)
    tumour, background = (_tversky(counts, 1 - delta, delta, smooth) for counts in (found, of_background))
    return (background + power(tumour, 1 - gamma)) / 2


def _tversky(found: Overlap, alpha: float | Array, beta: float | Array, smooth: float | Array) -> Array:
    """Tversky loss of soft counts, as a share of the errors."""
    errors = alpha * found.false_positive + beta * found.false_negative
    smoothing = smooth_where_empty(found.true_positive + found.false_negative, smooth)
    return ratio(errors, found.true_positive + errors + smoothing)
