"""Focal losses, which let what is right fade, with a loss of the overlap."""

import math
from collections.abc import Sequence
from functools import partial

from jax import Array

from jaxunet.losses.compound.combine import combine
from jaxunet.losses.distribution import asymmetric_focal_loss, focal_loss
from jaxunet.losses.entry import Loss
from jaxunet.losses.reduction import Empty, Reduce
from jaxunet.losses.region import asymmetric_focal_tversky_loss, dice_loss, generalized_dice_loss, jaccard_loss


def dice_focal_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    alpha: float | Array | None = None,
    gamma: float | Array = 2.0,
    weights: Sequence[float] = (1.0, 1.0),
) -> Array:
    """Soft Dice loss plus focal loss; `weights` are the factors of the two.

    Other arguments and errors: see `jaxunet.losses`.

    Options:
      alpha: weight of the true pixels in the focal loss; None, as in the paper, weighs both classes by 1.
      gamma: exponent of the focal loss.

    Returns:
      The loss, at least 0.

    Source: Zhu et al. 2018, AnatomyNet, arXiv 1808.05238.
    """
    loss = combine([dice_loss, partial(focal_loss, alpha=alpha, gamma=gamma)], weights)
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


def generalized_dice_focal_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    alpha: float | Array | None = None,
    gamma: float | Array = 2.0,
    weights: Sequence[float] = (1.0, 1.0),
) -> Array:
    """Generalized Dice loss plus focal loss; `weights` are the factors of the two.

    Other arguments and errors: see `jaxunet.losses`.

    Options:
      alpha: weight of the true pixels in the focal loss; None weighs both classes by 1.
      gamma: exponent of the focal loss.

    Returns:
      The loss, at least 0.

    Source: as `dice_focal_loss`, with the Dice of Sudre et al. 2017, arXiv 1707.03237; as in MONAI.
    """
    loss = combine([generalized_dice_loss, partial(focal_loss, alpha=alpha, gamma=gamma)], weights)
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


def focal_jaccard_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    alpha: float | Array | None = 0.25,
    gamma: float | Array = 2.0,
    weights: Sequence[float] = (1.0, 1.0),
) -> Array:
    """Focal loss plus soft Jaccard loss; `weights` are the factors of the two.

    Other arguments and errors: see `jaxunet.losses`.

    Options:
      alpha: weight of the true pixels in the focal loss; None weighs both classes by 1.
      gamma: exponent of the focal loss.

    Returns:
      The loss, at least 0.

    Source: Lin et al. 2017, arXiv 1708.02002, beside the loss of Rahman and Wang 2016 (ISVC).
    """
    loss = combine([partial(focal_loss, alpha=alpha, gamma=gamma), jaccard_loss], weights)
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


def unified_focal_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    delta: float | Array = 0.6,
    gamma: float | Array = 0.5,
    weights: Sequence[float] = (0.5, 0.5),
) -> Array:
    """Asymmetric focal loss and asymmetric focal Tversky loss with common parameters; `weights` are their factors.

    Other arguments and errors: see `jaxunet.losses`.

    Options:
      delta: in [0, 1], weight of the true pixels in the one and of the false negatives in the other.
      gamma: in [0, 1), how much background that is right fades in the one and the tumour is favoured in the other.

    Returns:
      The loss, at least 0.

    Source: Yeung et al. 2021, Unified Focal loss, arXiv 2102.04525, its asymmetric form with lambda = 1/2.
    """
    terms = [asymmetric_focal_loss, asymmetric_focal_tversky_loss]
    loss = combine([partial(term, delta=delta, gamma=gamma) for term in terms], weights)
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


ENTRIES = {
    "dice_focal": Loss(
        dice_focal_loss,
        "compound",
        "dice + mean(-(1 - p_t)^2 log p_t)",
        "Zhu et al. 2018, arXiv 1808.05238",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down",
        monotone=True,
    ),
    "generalized_dice_focal": Loss(
        generalized_dice_focal_loss,
        "compound",
        "generalized_dice + mean(-(1 - p_t)^2 log p_t)",
        "Sudre et al. 2017, arXiv 1707.03237; Zhu et al. 2018, arXiv 1808.05238",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down",
        monotone=True,
    ),
    "focal_jaccard": Loss(
        focal_jaccard_loss,
        "compound",
        "focal + jaccard",
        "Lin et al. 2017, arXiv 1708.02002; Rahman and Wang 2016 (ISVC)",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down",
        monotone=True,
    ),
    "unified_focal": Loss(
        unified_focal_loss,
        "compound",
        "(asymmetric_focal + asymmetric_focal_tversky) / 2 with delta = 0.6 and gamma = 0.5",
        "Yeung et al. 2021, arXiv 2102.04525",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down, steeply where little is predicted",
        monotone=True,
    ),
}
