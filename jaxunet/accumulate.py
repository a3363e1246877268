"""Gradients of a large batch in the memory of a small one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

Gradient = Callable[[Any, Array], tuple[tuple[Array, Any], Any]]


def accumulated(gradient: Gradient, parts: int) -> Gradient:
    """Computes a gradient part by part, one after the other, and takes the mean.

    The value becomes the mean of the parts' losses. For a mean over pixels, such as binary cross-entropy, that is the
    loss of the whole batch. For a ratio of sums over the batch, such as Dice or Jaccard, it is another loss: the mean
    over `parts` batches of `B / parts` images each.

    Part i holds the rows `i, i + parts, i + 2 parts, ...`, so a batch that is split over devices stays where it is, and
    the parts do not depend on the number of devices.

    Args:
      gradient: `(batch, key) -> ((loss, rows), grads)`: `batch` a pytree of arrays `[B, ...]`, `rows` one of the same
        leading axis, what is random drawn from `key`.
      parts: divides B; with 1 the gradient is returned as it is, key and all.

    Returns:
      A function of the same kind; each part draws from a key of its own.

    Raises:
      ValueError: on calling it, a batch that does not divide.
    """
    if parts == 1:
        return gradient

    def split(array: Array) -> Array:
        if array.shape[0] % parts:
            raise ValueError(f"a batch of {array.shape[0]} does not divide into {parts} parts")
        return array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1)

    def join(array: Array) -> Array:
        return array.swapaxes(0, 1).reshape(-1, *array.shape[2:])

    def mean(batch: Any, key: Array) -> tuple[tuple[Array, Any], Any]:
        batches, keys = jax.tree.map(split, batch), jax.random.split(key, parts)

        def add(total: Any, part: tuple[Any, Array]) -> tuple[Any, Any]:
            (value, rows), grads = gradient(*part)
            return jax.tree.map(jnp.add, total, (value, grads)), rows

        (value, _), grads = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], batches), keys[0])
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (value, grads))
        total, rows = lax.scan(add, zero, (batches, keys))
        value, grads = jax.tree.map(lambda x: x / parts, total)
        return (value, jax.tree.map(join, rows)), grads

    return mean
