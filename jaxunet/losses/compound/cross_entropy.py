"""Cross-entropy, which treats each pixel separately, combined with an overlap loss."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxunet.losses.compound.combine import combine
from jaxunet.losses.distribution.cross_entropy import bce_loss, topk_bce_loss
from jaxunet.losses.entry import register
from jaxunet.losses.logistic import surprisals
from jaxunet.losses.reduction import Empty, Reduce, power, prepare, ratio
from jaxunet.losses.region.dice import dice_loss
from jaxunet.losses.region.jaccard import jaccard_loss
from jaxunet.losses.region.overlap import overlap, true_negative

__all__ = ["bce_dice_loss", "bce_jaccard_loss", "combo_loss", "dice_topk_loss", "exp_log_loss", "jaccard_topk_loss"]


@register("compound", range=(0, math.inf), monotone=True)
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
    """Mean of binary cross-entropy and soft Dice loss, at least 0.

    Formula: `(bce + dice) / 2`

    Options:
      weights: factors of the two terms.

    Source: Taghanaki et al. 2018, arXiv 1805.02798; Isensee et al. 2018, arXiv 1809.10486.
    """
    loss = combine([bce_loss, dice_loss], weights)
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


@register("compound", range=(0, math.inf), monotone=True)
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
    """Mean of binary cross-entropy and soft Jaccard loss, at least 0.

    Formula: `(bce + jaccard) / 2`

    Options:
      weights: factors of the two terms.

    Source: Taghanaki et al. 2018, arXiv 1805.02798, with Jaccard for Dice.
    """
    loss = combine([bce_loss, jaccard_loss], weights)
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


@register("compound", range=(0, math.inf), monotone=True)
def combo_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    alpha: float | Array = 0.5,
    beta: float | Array = 0.5,
) -> Array:
    """Cross-entropy with a weight for each class plus soft Dice loss, at least 0.

    The paper subtracts the Dice coefficient. With the Dice loss instead, the value is `1 - alpha` higher, so a perfect
    prediction costs nothing; the gradient is the same.

    Formula: `alpha mean(-beta g log p - (1 - beta) (1 - g) log(1 - p)) + (1 - alpha) dice`

    Options:
      alpha: in [0, 1], share of the cross-entropy.
      beta: in [0, 1], weight of the true pixels; above 1/2 false negatives count more than false positives.

    Source: Taghanaki et al. 2018, arXiv 1805.02798.
    """
    loss = combine([partial(_weighted_entropy, beta=beta), dice_loss], [alpha, 1 - alpha])
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


@register(
    "compound",
    range=(0, math.inf),
    on_empty="0 for the empty prediction; every pixel is pushed down, most of all the worst tenth",
    monotone=True,
    piecewise=True,
)
def dice_topk_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    k: float = 10.0,
    weights: Sequence[float] = (1.0, 1.0),
) -> Array:
    """Soft Dice loss plus the mean of the largest cross-entropies, at least 0.

    Formula: `dice + topk_bce`

    Options:
      k: percentage in (0, 100], as in `topk_bce_loss`.
      weights: factors of the two terms.

    Source: Wu et al. 2016, arXiv 1605.06885, with Dice as in nnU-Net (Isensee et al. 2018, arXiv 1809.10486).
    """
    loss = combine([dice_loss, partial(topk_bce_loss, k=k)], weights)
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


@register(
    "compound",
    range=(0, math.inf),
    on_empty="0 for the empty prediction; every pixel is pushed down, most of all the worst tenth",
    monotone=True,
    piecewise=True,
)
def jaccard_topk_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    k: float = 10.0,
    weights: Sequence[float] = (1.0, 1.0),
) -> Array:
    """Soft Jaccard loss plus the mean of the largest cross-entropies, at least 0.

    Formula: `jaccard + topk_bce`

    Options:
      k: percentage in (0, 100], as in `topk_bce_loss`.
      weights: factors of the two terms.

    Source: Wu et al. 2016, arXiv 1605.06885, with Jaccard for Dice.
    """
    loss = combine([jaccard_loss, partial(topk_bce_loss, k=k)], weights)
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


@register(
    "compound",
    range=(0, math.inf),
    on_empty="0 for the empty prediction; every pixel is pushed down, steeply where little is predicted",
    monotone=True,
)
def exp_log_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    gamma: float | Array = 0.3,
    frequency: float | Array | None = None,
    weights: Sequence[float] = (0.8, 0.2),
) -> Array:
    """Powers of the logarithms of Dice and of cross-entropy, at least 0; `c` is tumour or background.

    `D_c` is the soft Dice coefficient of a class with smoothing 1, `p_t` and `f_t` the probability and the frequency of
    a pixel's label. An exponent below 1 keeps a gradient where Dice is nearly 1. The logarithms are computed from
    logits and errors, so their powers have the correct slope where a prediction is certain.

    Formula: `0.8 mean_c((-log D_c)^gamma) + 0.2 mean((-log p_t)^gamma / sqrt(f_t))`

    Options:
      gamma: above 0.
      frequency: share of true pixels in the training data, in (0, 1); None uses that of each group.
      weights: factors of the two terms.

    Source: Wong et al. 2018, arXiv 1809.00076, eq. 1 to 3.
    """
    terms = [partial(_exp_log_dice, gamma=gamma), partial(_exp_log_entropy, gamma=gamma, frequency=frequency)]
    loss = combine(terms, weights)
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


def _weighted_entropy(logits: Array, masks: Array, *, beta: float | Array, **contract: Any) -> Array:
    x = prepare(logits, masks, **contract)
    of_true, of_false = surprisals(x.logits)
    return x.mean(beta * x.masks * of_true + (1 - beta) * (1 - x.masks) * of_false)


def _exp_log_dice(logits: Array, masks: Array, *, gamma: float | Array, **contract: Any) -> Array:
    x = prepare(logits, masks, **contract)
    found = overlap(x)
    tumour, background = (
        power(jnp.log1p(found.errors / (2 * correct + 1)), gamma) for correct in (found.true_positive, true_negative(x))
    )
    return (tumour + background) / 2


def _exp_log_entropy(
    logits: Array, masks: Array, *, gamma: float | Array, frequency: float | Array | None, **contract: Any
) -> Array:
    x = prepare(logits, masks, **contract)
    true = x.mean(x.masks) if frequency is None else jnp.asarray(frequency, x.masks.dtype)
    of_true = x.mean(x.masks * jnp.exp(gamma * _log_softplus(-x.logits)))
    of_false = x.mean((1 - x.masks) * jnp.exp(gamma * _log_softplus(x.logits)))
    one = jnp.ones_like(true)
    return jnp.sqrt(ratio(one, true)) * of_true + jnp.sqrt(ratio(one, one - true)) * of_false


def _log_softplus(z: Array) -> Array:
    """`log(log(1 + e^z))`; where the inner logarithm would underflow it is `z`, with a relative error of 1e-7."""
    tiny = z < -15
    return jnp.where(tiny, z, jnp.log(jax.nn.softplus(jnp.where(tiny, 0, z))))
