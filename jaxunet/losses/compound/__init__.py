"""Losses made of several terms."""

from jaxunet.losses.compound import cross_entropy, focal, structure
from jaxunet.losses.compound.combine import Weight, combine
from jaxunet.losses.compound.cross_entropy import (
    bce_dice_loss,
    bce_jaccard_loss,
    combo_loss,
    dice_topk_loss,
    exp_log_loss,
    jaccard_topk_loss,
)
from jaxunet.losses.compound.focal import (
    dice_focal_loss,
    focal_jaccard_loss,
    generalized_dice_focal_loss,
    unified_focal_loss,
)
from jaxunet.losses.compound.structure import dice_boundary_loss, dice_cl_dice_loss, hybrid_loss, unet3plus_loss

ENTRIES = {**cross_entropy.ENTRIES, **focal.ENTRIES, **structure.ENTRIES}

__all__ = [
    "ENTRIES",
    "Weight",
    "bce_dice_loss",
    "bce_jaccard_loss",
    "combine",
    "combo_loss",
    "dice_boundary_loss",
    "dice_cl_dice_loss",
    "dice_focal_loss",
    "dice_topk_loss",
    "exp_log_loss",
    "focal_jaccard_loss",
    "generalized_dice_focal_loss",
    "hybrid_loss",
    "jaccard_topk_loss",
    "unet3plus_loss",
    "unified_focal_loss",
]
