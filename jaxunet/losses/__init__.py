"""Segmentation losses: pure functions of `(logits, masks)` with one signature.

`loss(logits, masks, *, weight=None, reduce="batch", **options)`, logits and masks `[B, H, W, K]`. `LOSSES` names them.
"""

import dataclasses
from collections.abc import Callable

from jax import Array

from jaxunet.losses.compound import bce_dice_loss, bce_jaccard_loss, combine, hybrid_loss
from jaxunet.losses.distribution import bce_loss
from jaxunet.losses.reduction import Reduce
from jaxunet.losses.region import dice_loss, jaccard_loss
from jaxunet.losses.structural import ssim_loss


@dataclasses.dataclass(frozen=True)
class Loss:
    """What `LOSSES` says of a loss.

    Attributes:
      fn: the function, `(logits, masks, *, weight, reduce, **options)`.
      family: "distribution", "region", "structural" or "compound".
      formula: in p = sigmoid(logits) and g = masks.
      source: the paper.
    """

    fn: Callable[..., Array]
    family: str
    formula: str
    source: str


LOSSES: dict[str, Loss] = {
    "bce": Loss(bce_loss, "distribution", "mean(-g log p - (1-g) log(1-p))", "arXiv 1505.04597"),
    "dice": Loss(dice_loss, "region", "1 - (2 sum(pg) + 1) / (sum(p) + sum(g) + 1)", "arXiv 1608.04117"),
    "jaccard": Loss(jaccard_loss, "region", "1 - sum(pg) / sum(p + g - pg)", "Rahman and Wang 2016"),
    "ssim": Loss(ssim_loss, "structural", "1 - SSIM(p, g)", "Wang et al. 2004"),
    "bce_dice": Loss(bce_dice_loss, "compound", "(bce + dice) / 2", "arXiv 1805.02798"),
    "bce_jaccard": Loss(bce_jaccard_loss, "compound", "(bce + jaccard) / 2", "arXiv 1805.02798"),
    "hybrid": Loss(hybrid_loss, "compound", "(bce + ssim + jaccard) / 3", "arXiv 2101.04704"),
}

__all__ = [
    "LOSSES",
    "Loss",
    "Reduce",
    "bce_dice_loss",
    "bce_jaccard_loss",
    "bce_loss",
    "combine",
    "dice_loss",
    "hybrid_loss",
    "jaccard_loss",
    "ssim_loss",
]
