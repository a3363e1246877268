"""Tversky indices: overlaps in which false positives and false negatives weigh differently."""

from jax import Array

from jaxunet.losses.entry import Loss
from jaxunet.losses.reduction import Empty, Reduce, power, prepare, ratio
from jaxunet.losses.region.overlap import Overlap, overlap, smooth_where_empty, true_negative


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
    """One minus the Tversky index, `1 - (TP + s) / (TP + a FP + b FN + s)`.

    `a = b = 1/2` is Dice, `a = b = 1` Jaccard. Other arguments and errors: see `jaxunet.losses`.

    Options:
      alpha: `a`, at least 0, weight of the false positives.
      beta: `b`, at least 0, weight of the false negatives.
      smooth: added above and below; at least 1 where the masks of a group are all empty.

    Returns:
      The loss, in [0, 1].

    Source: Salehi et al. 2017, arXiv 1706.05721, eq. 3.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    return _tversky(overlap(x), alpha, beta, smooth)


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
    """Power of the Tversky loss, `(1 - TI)^c`: below 1 it lets what is nearly right keep its gradient.

    Other arguments and errors: see `jaxunet.losses`.

    Options:
      alpha: weight of the false positives.
      beta: weight of the false negatives.
      gamma: `c`, above 0. The paper writes the exponent as 1 / 4 over 3.
      smooth: as in `tversky_loss`.

    Returns:
      The loss, in [0, 1].

    Source: Abraham and Khan 2018, arXiv 1810.07842, eq. 4.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    return power(_tversky(overlap(x), alpha, beta, smooth), gamma)


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
    """One minus the F-beta score, `1 - (TP + s) / (TP + b^2 / (1 + b^2) FN + 1 / (1 + b^2) FP + s)`.

    Other arguments and errors: see `jaxunet.losses`.

    Options:
      beta: `b`, at least 0; above 1 a false negative weighs more than a false positive.
      smooth: as in `tversky_loss`.

    Returns:
      The loss, in [0, 1].

    Source: Hashemi et al. 2018, Asymmetric Loss Functions and Deep Densely Connected Networks (IEEE Access), eq. 4.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    return _tversky(overlap(x), 1 / (1 + beta**2), beta**2 / (1 + beta**2), smooth)


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
    """Mean of the background's Tversky loss and a power of the tumour's, `((1 - TI_b) + (1 - TI_f)^(1 - c)) / 2`.

    `TI = TP / (TP + (1 - d) FP + d FN)` of each class; the exponent is below 1, so that a rare tumour that is nearly
    right keeps its gradient. Other arguments and errors: see `jaxunet.losses`.

    Options:
      delta: `d` in [0, 1], weight of the false negatives.
      gamma: `c` in [0, 1), how much the tumour is favoured.
      smooth: as in `tversky_loss`, for each class.

    Returns:
      The loss, in [0, 1].

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


ENTRIES = {
    "tversky": Loss(
        tversky_loss,
        "region",
        "1 - TP / (TP + 0.3 FP + 0.7 FN)",
        "Salehi et al. 2017, arXiv 1706.05721",
        range=(0, 1),
        on_empty="0.3 FP / (0.3 FP + 1): 0 for the empty prediction; every pixel is pushed down",
        monotone=True,
    ),
    "focal_tversky": Loss(
        focal_tversky_loss,
        "region",
        "(1 - TP / (TP + 0.3 FP + 0.7 FN))^0.75",
        "Abraham and Khan 2018, arXiv 1810.07842",
        range=(0, 1),
        on_empty="(0.3 FP / (0.3 FP + 1))^0.75: 0 for the empty prediction; every pixel is pushed down",
        monotone=True,
    ),
    "asymmetric_similarity": Loss(
        asymmetric_similarity_loss,
        "region",
        "1 - TP / (TP + 0.31 FP + 0.69 FN)",
        "Hashemi et al. 2018 (IEEE Access 8573779)",
        range=(0, 1),
        on_empty="0.31 FP / (0.31 FP + 1): 0 for the empty prediction; every pixel is pushed down",
        monotone=True,
    ),
    "asymmetric_focal_tversky": Loss(
        asymmetric_focal_tversky_loss,
        "region",
        "((1 - TI_b) + (1 - TI_f)^0.25) / 2, TI = TP / (TP + 0.3 FP + 0.7 FN) of each class",
        "Yeung et al. 2021, arXiv 2102.04525",
        range=(0, 1),
        on_empty="0 for the empty prediction; every pixel is pushed down, steeply where little is predicted",
        monotone=True,
    ),
}
