"""Focal losses, which reduce the weight of correct pixels, combined with an overlap loss."""

import math
from collections.abc import Sequence
from functools import partial

from jax import Array

from jaxunet.losses.compound.combine import combine
from jaxunet.losses.distribution.focal import asymmetric_focal_loss, focal_loss
from jaxunet.losses.entry import register
from jaxunet.losses.reduction import Empty, Reduce
from jaxunet.losses.region.confusion import generalized_dice_loss
from jaxunet.losses.region.dice import dice_loss
from jaxunet.losses.region.jaccard import jaccard_loss
from jaxunet.losses.region.tversky import asymmetric_focal_tversky_loss

__all__ = ["dice_focal_loss", "focal_jaccard_loss", "generalized_dice_focal_loss", "unified_focal_loss"]


@register("compound", range=(0, math.inf), monotone=True)
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
    """Soft Dice loss plus focal loss, at least 0.

    Formula: `dice + focal`

    Options:
      alpha: weight of the true pixels in the focal loss; None, as in the paper, gives both classes the weight 1.
      gamma: exponent of the focal loss.
      weights: factors of the two terms.

    Source: Zhu et al. 2018, AnatomyNet, arXiv 1808.05238.
    """
    loss = combine([dice_loss, partial(focal_loss, alpha=alpha, gamma=gamma)], weights)
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


@register("compound", range=(0, math.inf), monotone=True)
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
    """Generalized Dice loss plus focal loss, at least 0, as in MONAI.

    Formula: `generalized_dice + focal`

    Options:
      alpha: weight of the true pixels in the focal loss; None gives both classes the weight 1.
      gamma: exponent of the focal loss.
      weights: factors of the two terms.

    Source: Zhu et al. 2018, arXiv 1808.05238, with the Dice of Sudre et al. 2017, arXiv 1707.03237.
    """
    loss = combine([generalized_dice_loss, partial(focal_loss, alpha=alpha, gamma=gamma)], weights)
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


@register("compound", range=(0, math.inf), monotone=True)
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
    """Focal loss plus soft Jaccard loss, at least 0.

    Formula: `focal + jaccard`

    Options:
      alpha: weight of the true pixels in the focal loss; None gives both classes the weight 1.
      gamma: exponent of the focal loss.
      weights: factors of the two terms.

    Source: Lin et al. 2017, arXiv 1708.02002; Rahman and Wang 2016 (ISVC).
    """
    loss = combine([partial(focal_loss, alpha=alpha, gamma=gamma), jaccard_loss], weights)
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


@register(
    "compound",
    range=(0, math.inf),
    on_empty="0 for the empty prediction; every pixel is pushed down, steeply where little is predicted",
    monotone=True,
)
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
    """Asymmetric focal loss and asymmetric focal Tversky loss with common parameters, at least 0.

    Formula: `(asymmetric_focal + asymmetric_focal_tversky) / 2`

    Options:
      delta: in [0, 1], weight of the true pixels in the first term and of the false negatives in the second.
      gamma: in [0, 1), how much correct background fades in the first and the tumour is favoured in the second.
      weights: factors of the two terms.

    Source: Yeung et al. 2021, Unified Focal loss, arXiv 2102.04525, its asymmetric form with lambda = 1/2.
    """
    terms = [asymmetric_focal_loss, asymmetric_focal_tversky_loss]
    loss = combine([partial(term, delta=delta, gamma=gamma) for term in terms], weights)
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)
