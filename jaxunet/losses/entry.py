"""What `LOSSES` says of a loss: read by the tests, which hold it to it, and by the generated page."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Literal

from jax import Array

Family = Literal["distribution", "region", "structural", "boundary", "compound"]

CONTRACT = ("weight", "reduce", "patient", "empty")
"""Keyword arguments that every loss takes; the others are its options."""


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss and its declared properties.

    Attributes:
      fn: the function, `(logits, masks, *, weight, reduce, patient, empty, **options)`.
      family: which module it lies in.
      formula: in p = sigmoid(logits), z = logits and g = masks, sums over a group.
      source: the paper.
      range: lowest and highest value at the default options, for masks in [0, 1].
      on_empty: in words, what an empty mask gives: the value of the empty prediction, and where the gradient points.
      perfect: what a certain and right prediction gives: "zero"; "lowest", a value that no other prediction beats; or
        "elsewhere", where the optimum is another prediction.
      symmetric: prediction and mask may change places.
      positional: it depends on where pixels are; else any permutation of the pixels leaves it alone.
      monotone: it never rises where the probability of a true pixel does.
      piecewise: it sorts, selects or thresholds, so that its gradient has jumps.
      learns_from_empty: on an empty mask its gradient lowers the prediction; else `on_empty` says why not.
    """

    fn: Callable[..., Array]
    family: Family
    formula: str
    source: str
    range: tuple[float, float]
    on_empty: str
    perfect: Literal["zero", "lowest", "elsewhere"] = "zero"
    symmetric: bool = False
    positional: bool = False
    monotone: bool = False
    piecewise: bool = False
    learns_from_empty: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """Keyword options and their defaults, without those of the contract."""
        parameters = inspect.signature(self.fn).parameters.values()
        keyword = (p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in CONTRACT)
        return {p.name: p.default for p in keyword}
