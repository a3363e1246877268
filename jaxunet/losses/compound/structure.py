"""Losses of shape, which see little of a prediction that is far off, with losses of pixels and regions, which do."""

import math
from collections.abc import Sequence
from functools import partial

from jax import Array

from jaxunet.losses.boundary import boundary_loss
from jaxunet.losses.compound.combine import combine
from jaxunet.losses.distribution import bce_loss, focal_loss
from jaxunet.losses.entry import Loss
from jaxunet.losses.reduction import Empty, Reduce
from jaxunet.losses.region import dice_loss, jaccard_loss
from jaxunet.losses.structural import cl_dice_loss, ms_ssim_loss, ssim_loss


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
    """The BASNet hybrid: mean of binary cross-entropy, SSIM loss and soft Jaccard loss.

    It looks at pixels, patches and the whole region at once. `weights` are the factors of the three; the paper's plain
    sum is `(1, 1, 1)`. Other arguments and errors: see
    `jaxunet.losses`.

    Source: Qin et al. 2019, BASNet (CVPR); arXiv 2101.04704, eq. 3.
    """
    loss = combine([bce_loss, ssim_loss, jaccard_loss], weights)
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


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
    """The UNet 3+ hybrid: sum of focal loss, MS-SSIM loss and soft Jaccard loss.

    It looks at pixels, patches and the whole region at once. `weights` are the factors of the three. Other arguments
    and errors: see `jaxunet.losses` and `ms_ssim_loss`.

    Returns:
      The loss, at least 0.

    Source: Huang et al. 2020, UNet 3+, arXiv 2004.08790, section 2.3.
    """
    loss = combine([focal_loss, ms_ssim_loss, jaccard_loss], weights)
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


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
    """Soft Dice and soft centreline Dice loss, `(1 - a) dice + a cl_dice`.

    Other arguments and errors: see `jaxunet.losses`.

    Options:
      alpha: `a` in [0, 1]; the paper goes up to 1/2.
      iterations: erosions of the skeleton, as in `cl_dice_loss`.

    Returns:
      The loss, in [0, 1].

    Source: Shit et al. 2021, arXiv 2003.07311, eq. 3.
    """
    loss = combine([dice_loss, partial(cl_dice_loss, iterations=iterations)], [1 - alpha, alpha])
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


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
    """Soft Dice loss and boundary loss, `(1 - a) dice + a boundary`.

    The paper lets `a` grow during training. `alpha` may be a traced value, and `combine` takes schedules, so that it
    does so without another compilation:

      >>> import optax
      >>> from jaxunet.losses import boundary_loss, combine, dice_loss
      >>> alpha = optax.linear_schedule(0.01, 1.0, 10_000)
      >>> loss = combine([dice_loss, boundary_loss], [lambda step: 1 - alpha(step), alpha])

    Other arguments and errors: see `jaxunet.losses`.

    Options:
      alpha: `a` in [0, 1]. The boundary loss is in pixels: some hundred times the Dice loss where all is predicted.
      distances: as in `boundary_loss`.

    Returns:
      The loss, of either sign.

    Source: Kervadec et al. 2019, arXiv 1812.07032, with Dice for generalized Dice.
    """
    loss = combine([dice_loss, partial(boundary_loss, distances=distances)], [1 - alpha, alpha])
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


ENTRIES = {
    "hybrid": Loss(
        hybrid_loss,
        "compound",
        "(bce + ssim + jaccard) / 3",
        "Qin et al. 2019 (CVPR); arXiv 2101.04704",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down",
        positional=True,
    ),
    "unet3plus": Loss(
        unet3plus_loss,
        "compound",
        "focal + ms_ssim + jaccard",
        "Huang et al. 2020, arXiv 2004.08790",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down",
        positional=True,
    ),
    "dice_cl_dice": Loss(
        dice_cl_dice_loss,
        "compound",
        "(dice + cl_dice) / 2",
        "Shit et al. 2021, arXiv 2003.07311",
        range=(0, 1),
        on_empty="0 for the empty prediction; Dice pushes every pixel down, cl_dice adds to it where there are ridges",
        symmetric=True,
        positional=True,
        piecewise=True,
    ),
    "dice_boundary": Loss(
        dice_boundary_loss,
        "compound",
        "0.99 dice + 0.01 boundary",
        "Kervadec et al. 2019, arXiv 1812.07032",
        range=(-math.inf, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down",
        perfect="lowest",
        positional=True,
        monotone=True,
    ),
}
