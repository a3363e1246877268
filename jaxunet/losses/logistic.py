"""Probabilities and their logarithms from logits, with all the digits of float32.

One minus a sigmoid is 0 from a logit of 17 on, and `softplus(z) - z` is 0 too: what is right and certain would have
neither value nor gradient. The derivatives are written in the same terms.
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
    tail = jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return jnp.maximum(-logits, 0) + tail, jnp.maximum(logits, 0) + tail


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
