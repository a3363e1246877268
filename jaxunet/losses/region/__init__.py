"""Losses that compare the overlap of two regions."""

from jaxunet.losses.region import confusion, dice, jaccard, lovasz, tversky
from jaxunet.losses.region.confusion import (
    generalized_dice_loss,
    mcc_loss,
    penalty_generalized_dice_loss,
    sensitivity_specificity_loss,
)
from jaxunet.losses.region.dice import (
    dice_loss,
    dice_metric_loss,
    log_cosh_dice_loss,
    log_dice_loss,
    squared_dice_loss,
    wasserstein_dice_loss,
)
from jaxunet.losses.region.jaccard import jaccard_loss, jaccard_metric_loss, log_jaccard_loss
from jaxunet.losses.region.lovasz import lovasz_hinge_loss, lovasz_sigmoid_loss
from jaxunet.losses.region.overlap import overlap, smooth_where_empty
from jaxunet.losses.region.tversky import (
    asymmetric_focal_tversky_loss,
    asymmetric_similarity_loss,
    focal_tversky_loss,
    tversky_loss,
)

ENTRIES = {**dice.ENTRIES, **jaccard.ENTRIES, **tversky.ENTRIES, **confusion.ENTRIES, **lovasz.ENTRIES}

__all__ = [
    "ENTRIES",
    "asymmetric_focal_tversky_loss",
    "asymmetric_similarity_loss",
    "dice_loss",
    "dice_metric_loss",
    "focal_tversky_loss",
    "generalized_dice_loss",
    "jaccard_loss",
    "jaccard_metric_loss",
    "log_cosh_dice_loss",
    "log_dice_loss",
    "log_jaccard_loss",
    "lovasz_hinge_loss",
    "lovasz_sigmoid_loss",
    "mcc_loss",
    "overlap",
    "penalty_generalized_dice_loss",
    "sensitivity_specificity_loss",
    "smooth_where_empty",
    "squared_dice_loss",
    "tversky_loss",
    "wasserstein_dice_loss",
]
