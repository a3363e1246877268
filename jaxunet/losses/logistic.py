"""Probabilities and their logarithms from logits, to the full precision of float32.

In float32 one minus a sigmoid is 0 for logits above 17, and so is `softplus(z) - z`: certain, correct pixels would
have neither value nor gradient. The derivatives are custom, because automatic ones would lose the same precision.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


@jax.custom_jvp
def probabilities(logits: Array) -> tuple[Array, Array]:
    """`p` and `1 - p`."""
    return jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)


@jax.custom_jvp
def surprisals(logits: Array) -> tuple[Array, Array]:
    """`-log p` and `-log(1 - p)`."""
    tail = _log_of_one_plus(jnp.exp(-jnp.abs(logits)))
    return jnp.maximum(-logits, 0) + tail, jnp.maximum(logits, 0) + tail


def _log_of_one_plus(share: Array) -> Array:
    """`log(1 + share)` for shares in [0, 1], ten times faster on a CPU than XLA's `log1p`.

    Computed as `2 artanh(s)` with `s = share / (2 + share)` up to 1/3, summing odd powers up to float64 precision.
    """
    s = share / (2 + share)
    square = s * s
    series = jnp.zeros_like(s)
    for power in range(29, 0, -2):
        series = series * square + 1 / power
    return 2 * s * series


Pair = tuple[Array, Array]


@probabilities.defjvp
def _slope_of_probabilities(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Pair, Pair]:
    probs, opposite = probabilities(*primals)
    slope = probs * opposite * tangents[0]
    return (probs, opposite), (slope, -slope)


@surprisals.defjvp
def _slope_of_surprisals(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Pair, Pair]:
    probs, opposite = probabilities(*primals)
    return surprisals(*primals), (-opposite * tangents[0], probs * tangents[0])
