"""Losses that weigh pixels by their distance to the boundary of the masks, computed inside the loss or given."""

from jaxunet.losses.boundary import hausdorff, penalty, surface
from jaxunet.losses.boundary.hausdorff import hausdorff_dt_loss, hausdorff_er_loss, log_hausdorff_dt_loss
from jaxunet.losses.boundary.penalty import distance_bce_loss, distance_dice_loss
from jaxunet.losses.boundary.surface import boundary_dou_loss, boundary_loss

ENTRIES = {**surface.ENTRIES, **penalty.ENTRIES, **hausdorff.ENTRIES}

__all__ = [
    "ENTRIES",
    "boundary_dou_loss",
    "boundary_loss",
    "distance_bce_loss",
    "distance_dice_loss",
    "hausdorff_dt_loss",
    "hausdorff_er_loss",
    "log_hausdorff_dt_loss",
]
