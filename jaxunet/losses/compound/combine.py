"""The weighted sum of several losses."""

import functools
import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

from jax import Array

from jaxunet.losses.reduction import Empty, Reduce

Weight = float | Array | Callable[[Array], Any]
"""A factor: a number, a traced value, or a schedule from the training step to a number."""


def combine(terms: Sequence[Callable[..., Array]], weights: Sequence[Weight]) -> Callable[..., Array]:
    """Builds the weighted sum of several losses, itself a loss.

    Args:
      terms: losses of this package's signature.
      weights: one factor per term: a number, a traced array, or a schedule `step -> number` such as those of optax. A
        schedule is part of the compiled step, so changing factors compile only once.

    Returns:
      `loss(logits, masks, *, weight=None, reduce="batch", patient=None, empty="perfect", step=None)`. The train step
      passes `step`; a loss with a schedule needs it.

    Raises:
      ValueError: the numbers of weights and terms differ; a schedule without `step`.

    Example:
      >>> import optax
      >>> from jaxunet.losses import bce_loss, combine, dice_loss
      >>> loss = combine([bce_loss, dice_loss], [0.3, optax.linear_schedule(0.0, 0.7, 1000)])
    """
    if len(terms) != len(weights):
        raise ValueError(f"{len(terms)} terms but {len(weights)} weights")

    def combined(
        logits: Array,
        masks: Array,
        *,
        weight: Array | None = None,
        reduce: Reduce = "batch",
        patient: Array | None = None,
        empty: Empty = "perfect",
        step: Array | None = None,
    ) -> Array:
        factors = (_at(factor, step) for factor in weights)
        contract = {"weight": weight, "reduce": reduce, "patient": patient, "empty": empty}
        values = (term(logits, masks, **contract, **({"step": step} if takes(term, "step") else {})) for term in terms)
        return functools.reduce(operator.add, (f * value for f, value in zip(factors, values, strict=True)))

    return combined


def takes(loss: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of this name."""
    return name in inspect.signature(loss).parameters


def _at(factor: Weight, step: Array | None) -> Any:
    if not callable(factor):
        return factor
    if step is None:
        raise ValueError("a loss with a scheduled weight needs the training step: pass step=")
    return factor(step)
