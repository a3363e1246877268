"""The Lovász extension of the Jaccard loss: its tightest convex surrogate."""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxunet.losses.entry import register
from jaxunet.losses.reduction import Empty, Inputs, Reduce, prepare, ratio
from jaxunet.losses.region.overlap import difference

__all__ = ["lovasz_hinge_loss", "lovasz_sigmoid_loss"]


@register(
    "region",
    range=(0, math.inf),
    on_empty="max(0, 1 + z) of the highest pixel, which alone is pushed down; no gradient where all z < -1",
    monotone=True,
    piecewise=True,
    learns_from_empty=False,
)
def lovasz_hinge_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
) -> Array:
    """Lovász extension of the Jaccard loss at the hinge errors, at least 0. Defined per image.

    Equal errors are ordered by the position of their pixels, which changes the gradient among them but not the value.

    Formula: `Lovász extension of the Jaccard loss at max(0, 1 - z (2g - 1)), mean over images`

    Source: Berman et al. 2018, arXiv 1705.08790, eq. 8 and algorithm 1.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    return x.mean_of_images(_extension(x, jax.nn.relu(1 - x.logits * (2 * x.masks - 1))))


@register(
    "region",
    range=(0, 1),
    on_empty="p of the highest pixel: 0 for the empty prediction; that pixel alone is pushed down",
    monotone=True,
    piecewise=True,
)
def lovasz_sigmoid_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
) -> Array:
    """Lovász extension of the Jaccard loss at the errors of the probabilities, in [0, 1]. Defined per image.

    It is Lovász-softmax for binary masks. Equal errors are ordered as in `lovasz_hinge_loss`.

    Formula: `Lovász extension of the Jaccard loss at |g - p|, mean over images`

    Source: Berman et al. 2018, arXiv 1705.08790, eq. 11.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    return x.mean_of_images(_extension(x, jnp.abs(difference(x))))


def _extension(x: Inputs, errors: Array) -> Array:
    """Sum over each image, `[B]`, of the errors times what each adds to the Jaccard loss of the larger ones."""
    masks = x.masks.reshape(len(errors), -1)
    weight = jnp.broadcast_to(x.weight, errors.shape).reshape(masks.shape)
    errors = errors.reshape(masks.shape)
    order = _descending(lax.stop_gradient(errors))
    steps = _jaccard_steps(_take(masks, order), _take(weight, order))
    return jnp.sum(errors * _put(steps, order), 1)


def _jaccard_steps(masks: Array, weight: Array) -> Array:
    """What each pixel adds to the Jaccard loss when errors are made in this order; arguments and result `[B, N]`.

    After the first k errors the loss is `W / U`: their weight over that of the union, `U = G + N`, where `G` is the
    weight of all true pixels and `N` that of the false ones among the k. The difference of two such losses loses four
    digits in float32, so it is written as `w (I + g W) / (U U')`, with the intersection `I = U - W`, before and after.
    """
    true, false = weight * masks, weight * (1 - masks)
    remaining = lax.cumsum(true, axis=1, reverse=True)
    size = remaining[:, :1]
    union = size + lax.cumsum(false, axis=1)
    before = union - false
    wrong = before - remaining
    first = ratio(weight, union)  # in an image without tumour; 0 where the pixel has no weight
    return jnp.where(before > 0, ratio(weight * (remaining + masks * wrong), before * union), first)


def _descending(values: Array) -> Array:
    """Indices that sort the rows of non-negative `values` `[B, N]` from large to small; ties keep their order.

    A radix sort: non-negative floats have the order of their bits, and as many bits as fit are sorted at a time in one
    integer, together with the position they come from. XLA sorts plain integers several times faster than pairs.
    """
    width = 8 * values.dtype.itemsize
    unsigned = jnp.dtype(f"uint{width}")
    keys = ~lax.bitcast_convert_type(jnp.abs(values), unsigned)
    place_bits = max((values.shape[1] - 1).bit_length(), 1)
    digit_bits = width - place_bits
    places = jnp.broadcast_to(jnp.arange(values.shape[1], dtype=unsigned), values.shape)
    order = places
    for start in range(0, width - 1, digit_bits):  # the sign bit is the same everywhere
        digit = (_take(keys, order) >> start) << place_bits
        packed = lax.sort(digit | places, dimension=1, is_stable=False)
        order = _take(order, packed & (2**place_bits - 1))
    return order


def _take(values: Array, order: Array) -> Array:
    return jnp.take_along_axis(values, order.astype(jnp.int32), axis=1, mode="promise_in_bounds")


def _put(values: Array, order: Array) -> Array:
    """Inverse of `_take`: puts each value back where it came from."""
    rows = jnp.arange(len(order), dtype=jnp.int32)[:, None]
    places = jnp.zeros_like(values).at[rows, order.astype(jnp.int32)]
    return places.set(values, unique_indices=True, mode="promise_in_bounds")
