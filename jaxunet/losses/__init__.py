"""Segmentation losses: pure functions of `(logits, masks)` with one signature.

`loss(logits, masks, *, weight=None, reduce="batch", patient=None, empty="perfect", **options)`

- `logits`: `[B, H, W, K]` unnormalised scores of any float dtype; computed in float32.
- `masks`: the same shape, values in [0, 1], any dtype.
- `weight`: `[B]` or `[B, H, W, 1]`; zero takes a sample or a pixel out of value and gradient.
- `reduce`: "batch" gives one scalar, with sums over the whole global batch; "image" gives `[B]`, a loss an image;
  "patient" gives `[B]`, a loss a patient in the row of its first image, zero in the others. What is per image by nature
  (SSIM, Lovász, distances) is averaged over the images of a group. `averaged` makes a scalar of the last two.
- `patient`: int `[B]`, equal for the images of one patient; only `reduce="patient"` needs it.
- `empty`: "perfect" or "skip", what a group without a true pixel is worth; metrics have the same rule.
- ValueError: shapes differ, logits are no floats, or an argument has no such value.

`LOSSES` describes each by name.
"""

from jaxunet.losses import boundary, compound, distribution, region, structural
from jaxunet.losses.boundary import (
    boundary_dou_loss,
    boundary_loss,
    distance_bce_loss,
    distance_dice_loss,
    hausdorff_dt_loss,
    hausdorff_er_loss,
    log_hausdorff_dt_loss,
)
from jaxunet.losses.compound import (
    bce_dice_loss,
    bce_jaccard_loss,
    combine,
    combo_loss,
    dice_boundary_loss,
    dice_cl_dice_loss,
    dice_focal_loss,
    dice_topk_loss,
    exp_log_loss,
    focal_jaccard_loss,
    generalized_dice_focal_loss,
    hybrid_loss,
    jaccard_topk_loss,
    unet3plus_loss,
    unified_focal_loss,
)
from jaxunet.losses.distribution import (
    asymmetric_focal_loss,
    balanced_bce_loss,
    bce_loss,
    focal_loss,
    label_smoothing_bce_loss,
    nacl_loss,
    normalized_focal_loss,
    poly_bce_loss,
    reduced_focal_loss,
    topk_bce_loss,
    weighted_bce_loss,
)
from jaxunet.losses.entry import CONTRACT, Loss
from jaxunet.losses.reduction import Empty, Reduce, averaged
from jaxunet.losses.region import (
    asymmetric_focal_tversky_loss,
    asymmetric_similarity_loss,
    dice_loss,
    dice_metric_loss,
    focal_tversky_loss,
    generalized_dice_loss,
    jaccard_loss,
    jaccard_metric_loss,
    log_cosh_dice_loss,
    log_dice_loss,
    log_jaccard_loss,
    lovasz_hinge_loss,
    lovasz_sigmoid_loss,
    mcc_loss,
    penalty_generalized_dice_loss,
    sensitivity_specificity_loss,
    squared_dice_loss,
    tversky_loss,
    wasserstein_dice_loss,
)
from jaxunet.losses.structural import cl_dice_loss, ms_ssim_loss, ssim_loss

LOSSES: dict[str, Loss] = {
    **distribution.ENTRIES,
    **region.ENTRIES,
    **structural.ENTRIES,
    **boundary.ENTRIES,
    **compound.ENTRIES,
}
"""Every loss by the name that `--train.loss` takes."""

__all__ = [
    "CONTRACT",
    "LOSSES",
    "Empty",
    "Loss",
    "Reduce",
    "asymmetric_focal_loss",
    "asymmetric_focal_tversky_loss",
    "asymmetric_similarity_loss",
    "averaged",
    "balanced_bce_loss",
    "bce_dice_loss",
    "bce_jaccard_loss",
    "bce_loss",
    "boundary_dou_loss",
    "boundary_loss",
    "cl_dice_loss",
    "combine",
    "combo_loss",
    "dice_boundary_loss",
    "dice_cl_dice_loss",
    "dice_focal_loss",
    "dice_loss",
    "dice_metric_loss",
    "dice_topk_loss",
    "distance_bce_loss",
    "distance_dice_loss",
    "exp_log_loss",
    "focal_jaccard_loss",
    "focal_loss",
    "focal_tversky_loss",
    "generalized_dice_focal_loss",
    "generalized_dice_loss",
    "hausdorff_dt_loss",
    "hausdorff_er_loss",
    "hybrid_loss",
    "jaccard_loss",
    "jaccard_metric_loss",
    "jaccard_topk_loss",
    "label_smoothing_bce_loss",
    "log_cosh_dice_loss",
    "log_dice_loss",
    "log_hausdorff_dt_loss",
    "log_jaccard_loss",
    "lovasz_hinge_loss",
    "lovasz_sigmoid_loss",
    "mcc_loss",
    "ms_ssim_loss",
    "nacl_loss",
    "normalized_focal_loss",
    "penalty_generalized_dice_loss",
    "poly_bce_loss",
    "reduced_focal_loss",
    "sensitivity_specificity_loss",
    "squared_dice_loss",
    "ssim_loss",
    "topk_bce_loss",
    "tversky_loss",
    "unet3plus_loss",
    "unified_focal_loss",
    "wasserstein_dice_loss",
    "weighted_bce_loss",
]
