"""Binary cross-entropy and its weighted, smoothed, selected and penalised forms."""

import math

import jax.numpy as jnp
from jax import Array, lax

from jaxunet.losses.entry import register
from jaxunet.losses.logistic import surprisals
from jaxunet.losses.reduction import Empty, Inputs, Reduce, prepare, ratio

__all__ = [
    "balanced_bce_loss",
    "bce_loss",
    "label_smoothing_bce_loss",
    "nacl_loss",
    "poly_bce_loss",
    "topk_bce_loss",
    "weighted_bce_loss",
]


@register("distribution", range=(0, math.inf), monotone=True)
def bce_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
) -> Array:
    """Binary cross-entropy, at least 0.

    Exact where the reference clips probabilities at 1e-7 (a logit beyond 16.1), because it is computed from logits.

    Formula: `mean(-g log p - (1 - g) log(1 - p))`

    Source: Ronneberger et al. 2015, arXiv 1505.04597.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    return x.mean(entropy(x))


@register("distribution", range=(0, math.inf), monotone=True)
def weighted_bce_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    pos_weight: float | Array = 2.0,
) -> Array:
    """Cross-entropy with a different weight for true pixels, at least 0.

    The mean is over pixels, not over their weights, so `pos_weight` also changes the scale of the loss.

    Formula: `mean(-pos_weight g log p - (1 - g) log(1 - p))`

    Options:
      pos_weight: above 0. Above 1 favours sensitivity, below 1 precision; 1 is plain cross-entropy.

    Source: Ronneberger et al. 2015, arXiv 1505.04597, eq. 1, with one weight per class.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    of_true, of_false = surprisals(x.logits)
    return x.mean(pos_weight * x.masks * of_true + (1 - x.masks) * of_false)


@register(
    "distribution",
    range=(0, math.inf),
    on_empty="half of bce, where the paper's formula is 0 whatever is predicted; every pixel is pushed down",
    monotone=True,
)
def balanced_bce_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
) -> Array:
    """Cross-entropy in which both classes have the same total weight, at least 0.

    Where a group has only one class, `b` is 1/2: with the formula's `b = 1` an empty mask would have no gradient.

    Formula: `mean(-b g log p - (1 - b) (1 - g) log(1 - p)), b = mean(1 - g)`

    Source: Xie and Tu 2015, Holistically-Nested Edge Detection, arXiv 1504.06375, eq. 2.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    of_true, of_false = surprisals(x.logits)
    true_pixels, false_pixels = x.total(x.weight * x.masks), x.total(x.weight * (1 - x.masks))
    both = (true_pixels > 0) & (false_pixels > 0)
    balance = jnp.where(both, ratio(false_pixels, true_pixels + false_pixels), 0.5)
    return balance * x.mean(x.masks * of_true) + (1 - balance) * x.mean((1 - x.masks) * of_false)


@register(
    "distribution",
    range=(-0.05 * math.log(0.05) - 0.95 * math.log(0.95), math.inf),
    on_empty="pixels above p = 0.05 are pushed down, those below it up; no gradient at 0.05",
    perfect="elsewhere",
    learns_from_empty=False,
)
def label_smoothing_bce_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    epsilon: float | Array = 0.1,
) -> Array:
    """Cross-entropy against labels moved towards one half, at least the entropy of `epsilon / 2`.

    Lowest at the probabilities `epsilon / 2` and `1 - epsilon / 2`: certainty beyond them is penalised.

    Formula: `mean(-g' log p - (1 - g') log(1 - p)), g' = (1 - epsilon) g + epsilon / 2`

    Options:
      epsilon: in [0, 1), the share of the label that is spread evenly over the two classes.

    Source: Szegedy et al. 2015, arXiv 1512.00567, section 7, with two classes.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    return x.mean(entropy(x._replace(masks=x.masks * (1 - epsilon) + epsilon / 2)))


@register("distribution", range=(0, math.inf), monotone=True)
def poly_bce_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    epsilon: float | Array = 1.0,
) -> Array:
    """Cross-entropy with a different first coefficient in its power series of the error, at least 0.

    Formula: `mean(-g log p - (1 - g) log(1 - p) + epsilon (p (1 - g) + (1 - p) g))`

    Options:
      epsilon: at least -1; 0 is plain cross-entropy.

    Source: Leng et al. 2022, PolyLoss, arXiv 2204.12511, eq. 5 (Poly-1).
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    probs = x.probs
    return x.mean(entropy(x) + epsilon * (probs * (1 - x.masks) + (1 - probs) * x.masks))


@register(
    "distribution",
    range=(0, math.inf),
    on_empty="0 for the empty prediction; the 10 % highest pixels are pushed down",
    monotone=True,
    piecewise=True,
)
def topk_bce_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    k: float = 10.0,
) -> Array:
    """Mean of the largest cross-entropies of a group (online hard example mining), at least 0.

    `k` is a percentage of the weight, so pixels of weight zero are not counted. Pixels at the border between selected
    and not, equal ones included, count in part and alike: value and gradient do not depend on the order of pixels.

    Formula: `mean of the k % largest -g log p - (1 - g) log(1 - p)`

    Options:
      k: percentage in (0, 100], otherwise ValueError; 100 is plain cross-entropy.

    Source: Wu et al. 2016, arXiv 1605.06885, section 3.1.
    """
    if not 0 < k <= 100:
        raise ValueError(f"k={k}; expected a percentage, 0 < k <= 100")
    x = prepare(logits, masks, weight, reduce, patient, empty)
    values = entropy(x)
    share = _weight_of_largest(x, lax.stop_gradient(values), k / 100)
    return ratio(x.total(share * values), x.total(share))


@register(
    "distribution",
    # The least is that of a label equal to its neighbours, at the logit whose probability is 1 - 0.05.
    range=(-math.log(0.95) + 0.05 * (math.log(0.95 / 0.05) - 1), math.inf),
    on_empty="lowest at z = -2.9; pixels above it are pushed down, those below it up; no gradient at -2.9",
    perfect="elsewhere",
    positional=True,
    piecewise=True,
    learns_from_empty=False,
)
def nacl_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    penalty: float | Array = 0.1,
) -> Array:
    """Cross-entropy that keeps logits near the labels of the neighbourhood, for better calibration; above 0.

    `t` is the mean mask of the 3x3 pixels around a pixel, of those that are inside the image and have weight. The paper
    penalises the mean of `|t_c - z_c|` over two logits per pixel; this is its smallest value over all pairs of logits
    with the difference `z`.

    Formula: `mean(-g log p - (1 - g) log(1 - p) + penalty |2 t - 1 - z| / 2), t = mean of g over 3x3`

    Options:
      penalty: factor of the second term, the paper's lambda.

    Source: Murugesan et al. 2023, Trust Your Neighbours, arXiv 2303.06268, eq. 5 and 6.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    counts = jnp.broadcast_to(x.weight != 0, x.masks.shape).astype(x.masks.dtype)
    prior = ratio(_sum_of_neighbours(counts * x.masks), _sum_of_neighbours(counts))
    return x.mean(entropy(x) + penalty * jnp.abs(2 * prior - 1 - x.logits) / 2)


def entropy(x: Inputs) -> Array:
    """Cross-entropy of each pixel, `[B, H, W, K]`."""
    of_true, of_false = surprisals(x.logits)
    return x.masks * of_true + (1 - x.masks) * of_false


def _weight_of_largest(x: Inputs, values: Array, share: float) -> Array:
    """Weight of each pixel in the mean of the largest `values`, which make up `share` of the group.

    The smallest selected value is found bit by bit, because non-negative floats have the order of their bits. Each bit
    costs a sum over the image, and all together a fraction of a sort.
    """
    size = values.dtype.itemsize * 8
    bits = lax.bitcast_convert_type(jnp.abs(values), jnp.dtype(f"int{size}"))
    wanted = share * x.total_weight

    def spread(groups: Array) -> Array:
        return x.of_images(groups)[:, None, None, None]

    def add_bit(place: Array, border: Array) -> Array:
        higher = border | jnp.left_shift(jnp.ones((), bits.dtype), size - 2 - place)
        return jnp.where(x.total(x.weight * (bits >= spread(higher))) >= wanted, higher, border)

    border = lax.fori_loop(0, size - 1, add_bit, jnp.zeros(wanted.shape, bits.dtype))
    above, equal = bits > spread(border), bits == spread(border)
    part = ratio(wanted - x.total(x.weight * above), x.total(x.weight * equal))
    return x.weight * (above + spread(part) * equal)


def _sum_of_neighbours(values: Array) -> Array:
    """Sum over the 3x3 window around each pixel of `[B, H, W, K]`, zero outside the image."""
    for axis in (1, 2):
        padding = [(int(i == axis), int(i == axis)) for i in range(4)]
        padded = jnp.pad(values, padding)
        size = values.shape[axis]
        first, second, third = (lax.slice_in_dim(padded, start, start + size, axis=axis) for start in range(3))
        values = first + second + third
    return values
