"""Maps of the distance to a mask's boundary, and what stands for them where an image has no boundary."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from jaxunet.distance import boundary_distance, signed_distance
from jaxunet.losses.reduction import Inputs, ratio


def level_set(masks: Array) -> Array:
    """Signed distance to the rim of the mask in pixels: positive outside, zero on the rim, negative inside.

    An empty mask has no rim: each of its pixels counts as one pixel outside.
    """
    empty = ~jnp.any(masks > 0.5, axis=(1, 2), keepdims=True)
    return jnp.where(empty, 1, signed_distance(masks))


def distance_field(masks: Array) -> Array:
    """Distance to the nearest pixel of the other kind in pixels, at least 1: so much where there is no other kind."""
    return jnp.maximum(boundary_distance(masks), 1)


def proximity(masks: Array) -> Array:
    """One beside the boundary, 0 at the pixel farthest from it, on each side; 0 where there is no boundary at all."""
    distance = boundary_distance(masks)
    true = masks > 0.5
    farthest = jnp.where(true, _largest(distance * true), _largest(distance * ~true))
    return jnp.where(distance > 0, 1 - ratio(distance - 1, farthest - 1), 0)


def map_of(x: Inputs, compute: Callable[[Array], Array], distances: Array | None) -> Array:
    """The map that the caller gives, else the one computed of the masks, in the dtype of the masks.

    Raises:
      ValueError: the shape is not that of the masks.
    """
    if distances is None:
        return compute(x.masks).astype(x.masks.dtype)
    distances = jnp.asarray(distances, x.masks.dtype)
    if distances.shape != x.masks.shape:
        raise ValueError(f"distances {distances.shape} must be [B, H, W, K] = {x.masks.shape}")
    return jnp.where(x.weight != 0, distances, 0)  # zero times NaN is NaN


def _largest(values: Array) -> Array:
    return jnp.max(values, axis=(1, 2), keepdims=True)
