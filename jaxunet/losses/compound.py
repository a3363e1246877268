"""Losses made of several terms."""

import functools
import inspect
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from jax import Array

from jaxunet.losses.distribution import bce_loss
from jaxunet.losses.entry import Loss
from jaxunet.losses.reduction import Empty, Reduce
from jaxunet.losses.region import dice_loss, jaccard_loss
from jaxunet.losses.structural import ssim_loss

Weight = float | Array | Callable[[Array], Any]
"""A factor: a number, a traced value, or a schedule from the training step to a number."""


def combine(terms: Sequence[Callable[..., Array]], weights: Sequence[Weight]) -> Callable[..., Array]:
    """Builds the weighted sum of several losses, itself a loss.

    Args:
      terms: losses of this package's signature.
      weights: one factor a term: a number, a traced array, or a schedule `step -> number` such as optax has them. A
        schedule is part of the compiled step, so that a factor changes without another compilation.

    Returns:
      `loss(logits, masks, *, weight=None, reduce="batch", patient=None, empty="perfect", step=None)`. The train step
      passes `step`; a loss with a schedule needs it.

    Raises:
      ValueError: not as many weights as terms; called without `step` although there is a schedule.

    Example:
      >>> import optax
      >>> from jaxunet.losses import bce_loss, combine, dice_loss
      >>> loss = combine([bce_loss, dice_loss], [0.3, optax.linear_schedule(0.0, 0.7, 1000)])
    """
    if len(terms) != len(weights):
        raise ValueError(f"{len(terms)} terms but {len(weights)} weights")

    def combined(
        logits: Array,
        masks: Array,
        *,
        weight: Array | None = None,
        reduce: Reduce = "batch",
        patient: Array | None = None,
        empty: Empty = "perfect",
        step: Array | None = None,
    ) -> Array:
        factors = (_at(factor, step) for factor in weights)
        contract = {"weight": weight, "reduce": reduce, "patient": patient, "empty": empty}
        values = (term(logits, masks, **contract, **({"step": step} if takes(term, "step") else {})) for term in terms)
        return functools.reduce(operator.add, (f * value for f, value in zip(factors, values, strict=True)))

    return combined


def takes(loss: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of this name."""
    return name in inspect.signature(loss).parameters


def _at(factor: Weight, step: Array | None) -> Any:
    if not callable(factor):
        return factor
    if step is None:
        raise ValueError("a loss with a scheduled weight needs the training step: pass step=")
    return factor(step)


def bce_dice_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    weights: Sequence[float] = (1 / 2, 1 / 2),
) -> Array:
    """Mean of binary cross-entropy and soft Dice loss; `weights` are the factors of the two.

    Other arguments and errors: see `jaxunet.losses`.

    Source: Taghanaki et al. 2018, arXiv 1805.02798; Isensee et al. 2018, arXiv 1809.10486.
    """
    loss = combine([bce_loss, dice_loss], weights)
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


def bce_jaccard_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    weights: Sequence[float] = (1 / 2, 1 / 2),
) -> Array:
    """Mean of binary cross-entropy and soft Jaccard loss; `weights` are the factors of the two.

    Other arguments and errors: see `jaxunet.losses`.

    Source: as `bce_dice_loss`, with the Jaccard index in place of Dice.
    """
    loss = combine([bce_loss, jaccard_loss], weights)
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


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


ENTRIES = {
    "bce_dice": Loss(
        bce_dice_loss,
        "compound",
        "(bce + dice) / 2",
        "Taghanaki et al. 2018, arXiv 1805.02798",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down",
        monotone=True,
    ),
    "bce_jaccard": Loss(
        bce_jaccard_loss,
        "compound",
        "(bce + jaccard) / 2",
        "Taghanaki et al. 2018, arXiv 1805.02798, with Jaccard for Dice",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down",
        monotone=True,
    ),
    "hybrid": Loss(
        hybrid_loss,
        "compound",
        "(bce + ssim + jaccard) / 3",
        "Qin et al. 2019 (CVPR); arXiv 2101.04704",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down",
        positional=True,
    ),
}
