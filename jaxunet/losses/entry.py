"""The table of losses: `register` adds a function to `LOSSES`, with the properties that the tests check."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from jax import Array

Family = Literal["distribution", "region", "structural", "boundary", "compound"]
Optimum = Literal["zero", "lowest", "elsewhere"]
Function = TypeVar("Function", bound=Callable[..., Array])

CONTRACT = ("weight", "reduce", "patient", "empty")
"""Keyword arguments that every loss takes; the others are its options."""


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss and its declared properties; called, it is the function.

    Attributes:
      fn: the function, `(logits, masks, *, weight, reduce, patient, empty, **options)`.
      family: the module or package it is in.
      range: lowest and highest value at the default options, for masks in [0, 1].
      on_empty: in words, the value for an empty mask and where its gradient points.
      perfect: value of a certain, correct prediction: "zero"; "lowest", a value that no other prediction beats; or
        "elsewhere", where another prediction is the optimum.
      symmetric: prediction and mask may be exchanged.
      positional: it depends on where pixels are; otherwise permuting the pixels does not change it.
      monotone: it never rises when the probability of a true pixel does.
      piecewise: it sorts, selects or thresholds, so its gradient has jumps.
      learns_from_empty: on an empty mask its gradient lowers the prediction; otherwise `on_empty` explains why not.
    """

    fn: Callable[..., Array]
    family: Family
    range: tuple[float, float]
    on_empty: str = "0 for the empty prediction; every pixel is pushed down"
    perfect: Optimum = "zero"
    symmetric: bool = False
    positional: bool = False
    monotone: bool = False
    piecewise: bool = False
    learns_from_empty: bool = True

    def __post_init__(self) -> None:
        # A training step inspects which arguments its loss takes: the entry must show those of the function.
        object.__setattr__(self, "__signature__", inspect.signature(self.fn))

    def __call__(self, logits: Array, masks: Array, **options: Any) -> Array:
        """Calls `fn`."""
        return self.fn(logits, masks, **options)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword options and their defaults, without those of the contract."""
        parameters = inspect.signature(self.fn).parameters.values()
        keyword = (p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in CONTRACT)
        return {p.name: p.default for p in keyword}

    @property
    def formula(self) -> str:
        """The docstring's formula, in p = sigmoid(logits), z = logits, g = masks and the options, sums over a group."""
        return _paragraph(self.fn, "Formula").strip("`")

    @property
    def source(self) -> str:
        """The docstring's paper."""
        return _paragraph(self.fn, "Source").removesuffix(".")


LOSSES: dict[str, Loss] = {}
"""Every loss by the name that `--train.loss` takes: the function's, without `_loss`."""


def register(family: Family, **properties: Any) -> Callable[[Function], Function]:
    """Enters a function into `LOSSES` and returns it unchanged; `properties` are further attributes of `Loss`.

    Raises:
      ValueError: there is another loss of this name.
    """

    def enter(fn: Function) -> Function:
        name = fn.__name__.removesuffix("_loss")
        if name in LOSSES:
            raise ValueError(f"there is a loss {name!r} already, in {LOSSES[name].fn.__module__}")
        LOSSES[name] = Loss(fn, family, **properties)
        return fn

    return enter


def _paragraph(fn: Callable[..., Any], heading: str) -> str:
    """The paragraph of a docstring that starts with `heading:`; empty without one, as under `python -OO`."""
    for paragraph in (inspect.getdoc(fn) or "").split("\n\n"):
        if paragraph.startswith(f"{heading}: "):
            return " ".join(paragraph.split()).removeprefix(f"{heading}: ")
    return ""
