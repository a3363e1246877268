"""Shape losses, which have little gradient far from the mask, combined with pixel and region losses."""

import math
from collections.abc import Sequence
from functools import partial

from jax import Array

from jaxunet.losses.boundary import boundary_loss
from jaxunet.losses.compound.combine import combine
from jaxunet.losses.distribution.cross_entropy import bce_loss
from jaxunet.losses.distribution.focal import focal_loss
from jaxunet.losses.entry import register
from jaxunet.losses.reduction import Empty, Reduce
from jaxunet.losses.region.dice import dice_loss
from jaxunet.losses.region.jaccard import jaccard_loss
from jaxunet.losses.structural import cl_dice_loss, ms_ssim_loss, ssim_loss

__all__ = ["dice_boundary_loss", "dice_cl_dice_loss", "hybrid_loss", "unet3plus_loss"]


@register("compound", range=(0, math.inf), positional=True)
def hybrid_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    weights: Sequence[float] = (1 / 3, 1 / 3, 1 / 3),
) -> Array:
    """The BASNet hybrid of pixels, patches and the whole region, at least 0.

    Formula: `(bce + ssim + jaccard) / 3`

    Options:
      weights: factors of the three terms; the paper's plain sum is `(1, 1, 1)`.

    Source: Qin et al. 2019, BASNet (CVPR); arXiv 2101.04704, eq. 3.
    """
    loss = combine([bce_loss, ssim_loss, jaccard_loss], weights)
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


@register("compound", range=(0, math.inf), positional=True)
def unet3plus_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    weights: Sequence[float] = (1.0, 1.0, 1.0),
) -> Array:
    """The UNet 3+ hybrid of pixels, patches and the whole region, at least 0; image sizes as in `ms_ssim_loss`.

    Formula: `focal + ms_ssim + jaccard`

    Options:
      weights: factors of the three terms.

    Source: Huang et al. 2020, UNet 3+, arXiv 2004.08790, section 2.3.
    """
    loss = combine([focal_loss, ms_ssim_loss, jaccard_loss], weights)
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


@register(
    "compound",
    range=(0, 1),
    on_empty="0 for the empty prediction; Dice pushes every pixel down, cl_dice adds to it where there are ridges",
    symmetric=True,
    positional=True,
    piecewise=True,
)
def dice_cl_dice_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    alpha: float | Array = 0.5,
    iterations: int = 3,
) -> Array:
    """Soft Dice and soft centreline Dice loss, in [0, 1].

    Formula: `(1 - alpha) dice + alpha cl_dice`

    Options:
      alpha: in [0, 1]; the paper goes up to 1/2.
      iterations: erosions of the skeleton, as in `cl_dice_loss`.

    Source: Shit et al. 2021, arXiv 2003.07311, eq. 3.
    """
    loss = combine([dice_loss, partial(cl_dice_loss, iterations=iterations)], [1 - alpha, alpha])
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


@register("compound", range=(-math.inf, math.inf), perfect="lowest", positional=True, monotone=True)
def dice_boundary_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    alpha: float | Array = 0.01,
    distances: Array | None = None,
) -> Array:
    """Soft Dice loss and boundary loss, of either sign.

    In the paper `alpha` grows during training. `alpha` may be a traced value, and `combine` accepts schedules, so
    nothing is compiled again:

      >>> import optax
      >>> from jaxunet.losses import boundary_loss, combine, dice_loss
      >>> alpha = optax.linear_schedule(0.01, 1.0, 10_000)
      >>> loss = combine([dice_loss, boundary_loss], [lambda step: 1 - alpha(step), alpha])

    Formula: `(1 - alpha) dice + alpha boundary`

    Options:
      alpha: in [0, 1]. The boundary loss is in pixels: some hundred times the Dice loss where everything is predicted.
      distances: as in `boundary_loss`.

    Source: Kervadec et al. 2019, arXiv 1812.07032, with Dice for generalized Dice.
    """
    loss = combine([dice_loss, partial(boundary_loss, distances=distances)], [1 - alpha, alpha])
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)
