"""Losses made of several terms."""

import functools
import operator
from collections.abc import Callable, Sequence

from jax import Array

from jaxunet.losses.distribution import bce_loss
from jaxunet.losses.reduction import Reduce
from jaxunet.losses.region import dice_loss, jaccard_loss
from jaxunet.losses.structural import ssim_loss


def combine(terms: Sequence[Callable[..., Array]], weights: Sequence[float]) -> Callable[..., Array]:
    """Builds the weighted sum of several losses, itself a loss.

    Args:
      terms: losses of the signature `(logits, masks, *, weight, reduce)`.
      weights: one factor a term.

    Returns:
      `loss(logits, masks, *, weight=None, reduce="batch")`.

    Raises:
      ValueError: not as many weights as terms.

    Example:
      >>> from jaxunet.losses import bce_loss, combine, dice_loss
      >>> loss = combine([bce_loss, dice_loss], [0.3, 0.7])
    """
    if len(terms) != len(weights):
        raise ValueError(f"{len(terms)} terms but {len(weights)} weights")

    def combined(logits: Array, masks: Array, *, weight: Array | None = None, reduce: Reduce = "batch") -> Array:
        values = (term(logits, masks, weight=weight, reduce=reduce) for term in terms)
        return functools.reduce(operator.add, (factor * value for factor, value in zip(weights, values, strict=True)))

    return combined


def bce_dice_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    weights: Sequence[float] = (1 / 2, 1 / 2),
) -> Array:
    """Mean of binary cross-entropy and soft Dice loss; `weights` are the factors of the two.

    Arguments, result and errors are those of `bce_loss` and `dice_loss`.

    Source: Taghanaki et al. 2018, arXiv 1805.02798; Isensee et al. 2018, arXiv 1809.10486.
    """
    return combine([bce_loss, dice_loss], weights)(logits, masks, weight=weight, reduce=reduce)


def bce_jaccard_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    weights: Sequence[float] = (1 / 2, 1 / 2),
) -> Array:
    """Mean of binary cross-entropy and soft Jaccard loss; `weights` are the factors of the two.

    Arguments, result and errors are those of `bce_loss` and `jaccard_loss`.
    """
    return combine([bce_loss, jaccard_loss], weights)(logits, masks, weight=weight, reduce=reduce)


def hybrid_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    weights: Sequence[float] = (1 / 3, 1 / 3, 1 / 3),
) -> Array:
    """The BASNet hybrid: mean of binary cross-entropy, SSIM loss and soft Jaccard loss.

    It looks at pixels, patches and the whole region at once. `weights` are the factors of the three; the paper's plain
    sum is `(1, 1, 1)`. Arguments, result and errors are those of the three losses.

    Source: Qin et al. 2019, BASNet (CVPR); arXiv 2101.04704, eq. 3.
    """
    return combine([bce_loss, ssim_loss, jaccard_loss], weights)(logits, masks, weight=weight, reduce=reduce)
