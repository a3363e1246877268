"""Gradient accumulation: a large batch in the memory of a small one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

Gradient = Callable[[Any, Array], tuple[tuple[Array, Any], Any]]


def accumulated(gradient: Gradient, microbatches: int) -> Gradient:
    """Computes a gradient in microbatches, one after the other, and takes the mean.

    The loss becomes the mean of the microbatches' losses. For a mean over pixels, such as binary cross-entropy, that is
    the loss of the whole batch. For a ratio of sums over the batch, such as Dice or Jaccard, it is another loss.

    Args:
      gradient: `(batch, key) -> ((loss, rows), grads)`: `batch` is a pytree of arrays `[B, ...]`, `rows` one with the
        same leading axis; all randomness comes from `key`.
      microbatches: their number, which divides B; with 1 the gradient is returned unchanged.

    Returns:
      A function of the same type; each microbatch has its own key.

    Raises:
      ValueError: the batch of a call does not divide.
    """
    if microbatches == 1:
        return gradient

    def split(array: Array) -> Array:
        if array.shape[0] % microbatches:
            raise ValueError(f"a batch of {array.shape[0]} does not divide into {microbatches} microbatches")
        # Microbatch i has the rows i, i + n, i + 2n, ...: rows of a sharded batch stay on their device, and the
        # microbatches do not depend on the number of devices.
        return array.reshape(-1, microbatches, *array.shape[1:]).swapaxes(0, 1)

    def join(array: Array) -> Array:
        return array.swapaxes(0, 1).reshape(-1, *array.shape[2:])

    def mean(batch: Any, key: Array) -> tuple[tuple[Array, Any], Any]:
        batches, keys = jax.tree.map(split, batch), jax.random.split(key, microbatches)

        def add(total: Any, microbatch: tuple[Any, Array]) -> tuple[Any, Any]:
            (value, rows), grads = gradient(*microbatch)
            return jax.tree.map(jnp.add, total, (value, grads)), rows

        (value, _), grads = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], batches), keys[0])
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (value, grads))
        total, rows = lax.scan(add, zero, (batches, keys))
        value, grads = jax.tree.map(lambda x: x / microbatches, total)
        return (value, jax.tree.map(join, rows)), grads

    return mean
