"""Cross-entropy, which judges every pixel by itself, with a loss of the overlap."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxunet.losses.compound.combine import combine
from jaxunet.losses.distribution import bce_loss, topk_bce_loss
from jaxunet.losses.entry import Loss
from jaxunet.losses.logistic import surprisals
from jaxunet.losses.reduction import Empty, Reduce, power, prepare, ratio
from jaxunet.losses.region import dice_loss, jaccard_loss
from jaxunet.losses.region.overlap import overlap, true_negative


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
    """Cross-entropy with one weight a class and soft Dice loss, `a CE + (1 - a) dice`.

    `CE = mean(-b g log p - (1 - b) (1 - g) log(1 - p))`.
    The paper subtracts the Dice coefficient; with the Dice loss in its place the value is `1 - a` higher, so that a
    perfect prediction costs nothing, and the gradient the same. Other arguments and errors: see `jaxunet.losses`.

    Options:
      alpha: `a` in [0, 1], share of the cross-entropy.
      beta: `b` in [0, 1], weight of the true pixels; above 1/2 a missed pixel weighs more than an invented one.

    Returns:
      The loss, at least 0.

    Source: Taghanaki et al. 2018, arXiv 1805.02798.
    """
    loss = combine([partial(_weighted_entropy, beta=beta), dice_loss], [alpha, 1 - alpha])
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


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
    """Soft Dice loss plus the mean of the `k` percent largest cross-entropies; `weights` are the factors of the two.

    Other arguments and errors: see `jaxunet.losses`.

    Options:
      k: percentage in (0, 100], as in `topk_bce_loss`.

    Returns:
      The loss, at least 0.

    Source: Wu et al. 2016, arXiv 1605.06885, beside Dice as in nnU-Net (Isensee et al. 2018, arXiv 1809.10486).
    """
    loss = combine([dice_loss, partial(topk_bce_loss, k=k)], weights)
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


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
    """Soft Jaccard loss plus the mean of the `k` percent largest cross-entropies; `weights` are the factors of the two.

    Other arguments and errors: see `jaxunet.losses`.

    Options:
      k: percentage in (0, 100], as in `topk_bce_loss`.

    Returns:
      The loss, at least 0.

    Source: as `dice_topk_loss`, with the Jaccard index in place of Dice.
    """
    loss = combine([jaccard_loss, partial(topk_bce_loss, k=k)], weights)
    return loss(logits, masks, weight=weight, reduce=reduce, patient=patient, empty=empty)


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
    """Powers of logarithms, `0.8 mean_c((-log D_c)^y) + 0.2 mean(v_c (-log p_c)^y)`, `c` being tumour and background.

    `D_c = (2 TP_c + 1) / (2 TP_c + FP_c + FN_c + 1)` is the soft Dice coefficient of a class; in the second term each
    pixel has the probability and the weight of its label, `v_c = f_c^(-1/2)` for a share `f_c` of all pixels. An
    exponent below 1 keeps a gradient where Dice is nearly 1. The two logarithms are computed from logits and errors, so
    they and their powers have the right slope where a prediction is certain. Other arguments and errors: see
    `jaxunet.losses`.

    Options:
      gamma: `y`, above 0.
      frequency: share of true pixels in the training data, in (0, 1); None takes that of each group.
      weights: factors of the two terms.

    Returns:
      The loss, at least 0.

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
    """`log(log(1 + e^z))`: `z` itself, to a part in 10^7, where the inner logarithm would underflow."""
    tiny = z < -15
    return jnp.where(tiny, z, jnp.log(jax.nn.softplus(jnp.where(tiny, 0, z))))


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
    "combo": Loss(
        combo_loss,
        "compound",
        "mean(-g log p - (1 - g) log(1 - p)) / 4 + dice / 2",
        "Taghanaki et al. 2018, arXiv 1805.02798",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down",
        monotone=True,
    ),
    "dice_topk": Loss(
        dice_topk_loss,
        "compound",
        "dice + topk_bce",
        "Wu et al. 2016, arXiv 1605.06885; Isensee et al. 2018, arXiv 1809.10486",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down, the least right tenth the most",
        monotone=True,
        piecewise=True,
    ),
    "jaccard_topk": Loss(
        jaccard_topk_loss,
        "compound",
        "jaccard + topk_bce",
        "Wu et al. 2016, arXiv 1605.06885, with Jaccard for Dice",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down, the least right tenth the most",
        monotone=True,
        piecewise=True,
    ),
    "exp_log": Loss(
        exp_log_loss,
        "compound",
        "0.8 mean_c((-log D_c)^0.3) + 0.2 mean((-log p_t)^0.3 / sqrt(f_t)), D: Dice, f: frequency, of each class",
        "Wong et al. 2018, arXiv 1809.00076",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down, steeply where little is predicted",
        monotone=True,
    ),
}
