"""Losses that compare each pixel's probability with its label."""

from jaxunet.losses.distribution import cross_entropy, focal
from jaxunet.losses.distribution.cross_entropy import (
    balanced_bce_loss,
    bce_loss,
    entropy,
    label_smoothing_bce_loss,
    nacl_loss,
    poly_bce_loss,
    topk_bce_loss,
    weighted_bce_loss,
)
from jaxunet.losses.distribution.focal import (
    asymmetric_focal_loss,
    focal_loss,
    normalized_focal_loss,
    reduced_focal_loss,
)

ENTRIES = {**cross_entropy.ENTRIES, **focal.ENTRIES}

__all__ = [
    "ENTRIES",
    "asymmetric_focal_loss",
    "balanced_bce_loss",
    "bce_loss",
    "entropy",
    "focal_loss",
    "label_smoothing_bce_loss",
    "nacl_loss",
    "normalized_focal_loss",
    "poly_bce_loss",
    "reduced_focal_loss",
    "topk_bce_loss",
    "weighted_bce_loss",
]
