"""Binary cross-entropy and its weighted, smoothed, selected and penalised forms."""

import math

import jax.numpy as jnp
from jax import Array, lax

from jaxunet.losses.entry import Loss
from jaxunet.losses.logistic import surprisals
from jaxunet.losses.reduction import Empty, Inputs, Reduce, prepare, ratio


def bce_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
) -> Array:
    """Binary cross-entropy, the mean of `-g log p - (1 - g) log(1 - p)` over pixels.

    Computed from logits, so it is exact where the documented system clips probabilities at 1e-7 (a logit beyond 16.1).
    Arguments and errors: see `jaxunet.losses`.

    Returns:
      The loss, at least 0.

    Source: Ronneberger et al. 2015, arXiv 1505.04597.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    return x.mean(entropy(x))


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
    """Cross-entropy with true pixels counted `w` times, the mean of `-w g log p - (1 - g) log(1 - p)`.

    The mean is over pixels, not over their weights, so that `w` sets the scale of the loss as well. Other arguments
    and errors: see `jaxunet.losses`.

    Options:
      pos_weight: `w`, above 0. Above 1 favours sensitivity, below 1 precision; 1 is plain cross-entropy.

    Returns:
      The loss, at least 0.

    Source: Ronneberger et al. 2015, arXiv 1505.04597, eq. 1, with one weight a class.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    of_true, of_false = surprisals(x.logits)
    return x.mean(pos_weight * x.masks * of_true + (1 - x.masks) * of_false)


def balanced_bce_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
) -> Array:
    """Cross-entropy in which both classes weigh the same, the mean of `-b g log p - (1 - b) (1 - g) log(1 - p)`.

    `b` is the share of false pixels in the group's own masks. Where a group has one class only there is nothing to
    balance: `b` is then 1/2, for with the formula's 1 an empty mask would teach nothing. Arguments and errors: see
    `jaxunet.losses`.

    Returns:
      The loss, at least 0.

    Source: Xie and Tu 2015, Holistically-Nested Edge Detection, arXiv 1504.06375, eq. 2.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    of_true, of_false = surprisals(x.logits)
    true_pixels, false_pixels = x.total(x.weight * x.masks), x.total(x.weight * (1 - x.masks))
    both = (true_pixels > 0) & (false_pixels > 0)
    balance = jnp.where(both, ratio(false_pixels, true_pixels + false_pixels), 0.5)
    return balance * x.mean(x.masks * of_true) + (1 - balance) * x.mean((1 - x.masks) * of_false)


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
    """Cross-entropy against labels drawn towards one half, `g' = g (1 - e) + e / 2`.

    Lowest at the probabilities `e / 2` and `1 - e / 2`, so that certainty beyond them is punished. Other arguments and
    errors: see `jaxunet.losses`.

    Options:
      epsilon: `e` in [0, 1), the share of the label that is spread evenly over the two classes.

    Returns:
      The loss, at least the entropy of `e / 2`.

    Source: Szegedy et al. 2015, arXiv 1512.00567, section 7, with two classes.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    return x.mean(entropy(x._replace(masks=x.masks * (1 - epsilon) + epsilon / 2)))


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
    """Cross-entropy with another first coefficient of its series in `1 - p_t`: the mean of `CE + e (1 - p_t)`.

    `p_t` is the probability of the label, `1 - p_t = p (1 - g) + (1 - p) g`. Other arguments and errors: see
    `jaxunet.losses`.

    Options:
      epsilon: `e`, at least -1; 0 is plain cross-entropy.

    Returns:
      The loss, at least 0.

    Source: Leng et al. 2022, PolyLoss, arXiv 2204.12511, eq. 5 (Poly-1).
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    probs = x.probs
    return x.mean(entropy(x) + epsilon * (probs * (1 - x.masks) + (1 - probs) * x.masks))


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
    """Mean of the `k` percent largest cross-entropies of a group (online hard example mining).

    The share is one of the weight, so pixels of weight zero are not counted. Where it ends between two pixels, or among
    equal ones, those on the border count in part and alike: the value and the gradient do not depend on any order, and
    even one pixel of `k` = 10 has a loss. Other arguments and errors: see `jaxunet.losses`.

    Options:
      k: percentage in (0, 100]; 100 is plain cross-entropy.

    Returns:
      The loss, at least 0.

    Raises:
      ValueError: `k` is outside (0, 100].

    Source: Wu et al. 2016, arXiv 1605.06885, section 3.1.
    """
    if not 0 < k <= 100:
        raise ValueError(f"k={k}; expected a percentage, 0 < k <= 100")
    x = prepare(logits, masks, weight, reduce, patient, empty)
    values = entropy(x)
    share = _weight_of_largest(x, lax.stop_gradient(values), k / 100)
    return ratio(x.total(share * values), x.total(share))


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
    """Cross-entropy with logits held near the labels of the neighbourhood: the mean of `CE + l |2t - 1 - z| / 2`.

    `t` is the mean mask of the 3x3 pixels around, of those that lie inside the image and count. The paper penalises
    `|t_c - z_c|`, the mean over the channels, for one logit a class; this is the least of it among all pairs of logits
    that have the difference `z`. It calibrates: the logits stay within a few units of zero. Other arguments and errors:
    see `jaxunet.losses`.

    Options:
      penalty: `l`, factor of the second term (the paper's lambda).

    Returns:
      The loss, above 0.

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
    """Weight with which each pixel enters the mean of the largest `values`, which make up `share` of the group.

    The smallest value that still counts is found bit by bit: numbers that are not negative have the order of their
    bits. Each bit costs a sum over the image, and all together a fraction of a sort.
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
    """Sum of each pixel of `[B, H, W, K]` and the eight around it, zero outside the image."""
    for axis in (1, 2):
        padding = [(int(i == axis), int(i == axis)) for i in range(4)]
        padded = jnp.pad(values, padding)
        size = values.shape[axis]
        first, second, third = (lax.slice_in_dim(padded, start, start + size, axis=axis) for start in range(3))
        values = first + second + third
    return values


ENTRIES = {
    "bce": Loss(
        bce_loss,
        "distribution",
        "mean(-g log p - (1 - g) log(1 - p))",
        "Ronneberger et al. 2015, arXiv 1505.04597",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down",
        monotone=True,
    ),
    "weighted_bce": Loss(
        weighted_bce_loss,
        "distribution",
        "mean(-2 g log p - (1 - g) log(1 - p))",
        "Ronneberger et al. 2015, arXiv 1505.04597",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down",
        monotone=True,
    ),
    "balanced_bce": Loss(
        balanced_bce_loss,
        "distribution",
        "mean(-b g log p - (1 - b) (1 - g) log(1 - p)), b = mean(1 - g)",
        "Xie and Tu 2015, arXiv 1504.06375",
        range=(0, math.inf),
        on_empty="half of bce, where the paper's formula is 0 whatever is predicted; every pixel is pushed down",
        monotone=True,
    ),
    "label_smoothing_bce": Loss(
        label_smoothing_bce_loss,
        "distribution",
        "mean(-g' log p - (1 - g') log(1 - p)), g' = 0.9 g + 0.05",
        "Szegedy et al. 2015, arXiv 1512.00567",
        range=(-0.05 * math.log(0.05) - 0.95 * math.log(0.95), math.inf),
        on_empty="pixels above p = 0.05 are pushed down, no gradient there and back up below",
        perfect="elsewhere",
        learns_from_empty=False,
    ),
    "poly_bce": Loss(
        poly_bce_loss,
        "distribution",
        "mean(-g log p - (1 - g) log(1 - p) + p (1 - g) + (1 - p) g)",
        "Leng et al. 2022, arXiv 2204.12511",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; every pixel is pushed down",
        monotone=True,
    ),
    "topk_bce": Loss(
        topk_bce_loss,
        "distribution",
        "mean of the 10 % largest -g log p - (1 - g) log(1 - p)",
        "Wu et al. 2016, arXiv 1605.06885",
        range=(0, math.inf),
        on_empty="0 for the empty prediction; the 10 % highest pixels are pushed down",
        monotone=True,
        piecewise=True,
    ),
    "nacl": Loss(
        nacl_loss,
        "distribution",
        "mean(-g log p - (1 - g) log(1 - p) + 0.05 |2 t - 1 - z|), t = mean of g over 3x3",
        "Murugesan et al. 2023, arXiv 2303.06268",
        # Of a label like its neighbours: at the logit whose probability is 1 - 0.05.
        range=(-math.log(0.95) + 0.05 * (math.log(0.95 / 0.05) - 1), math.inf),
        on_empty="lowest at z = -2.9; pixels above are pushed down, no gradient there and back up below",
        perfect="elsewhere",
        positional=True,
        piecewise=True,
        learns_from_empty=False,
    ),
}
