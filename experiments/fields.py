"""What the annotation of an option contains: its type, its range and its role. Nothing here imports jax."""

import ast
import dataclasses
import difflib
import enum
import math
import types
import typing
import warnings
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from tyro.constructors import PrimitiveConstructorSpec

LARGEST = 2**31 - 1
"""Largest int32, the type that arrays and seeds are counted in."""


class Role(enum.Enum):
    """What a value means for a run, beyond its type."""

    FREE = "does not decide the weights: a run may be resumed with another value"
    INPUT = "path of a data set: nothing is written there"
    OUTPUT = "path where files are written"
    PATH = "any other path"


PATH_ROLES = (Role.INPUT, Role.OUTPUT, Role.PATH)


@dataclasses.dataclass(frozen=True)
class Range:
    """Allowed values of a number, or of each number in a tuple. NaN and infinity are never allowed.

    Attributes:
      low: lowest value.
      high: highest value.
      above: exclude the lowest value.
      below: exclude the highest value.
    """

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def problem(self, value: float) -> str | None:
        """Returns what is wrong with a number, None if nothing is."""
        low = value > self.low if self.above else value >= self.low
        high = value < self.high if self.below else value <= self.high
        if low and high and math.isfinite(value):  # a comparison with NaN is False
            return None
        ends = f"{'above' if self.above else 'at least'} {self.low:g}"
        if math.isfinite(self.high):
            ends += f" and {'below' if self.below else 'at most'} {self.high:.10g}"
        return f"must be {ends}" if math.isfinite(self.high) else f"must be finite and {ends}"


Count = Annotated[int, Range(1, LARGEST)]
Seed = Annotated[int, Range(0, LARGEST)]
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Probability = Annotated[float, Range(0, 1, above=True, below=True)]
Input = Annotated[str | None, Role.INPUT, Role.FREE]
Output = Annotated[str | None, Role.OUTPUT, Role.FREE]


def _words(args: list[str]) -> list[str]:
    """Splits `a,b`, `a b` and `('a', 'b')` into words."""
    text = " ".join(args).translate(str.maketrans("()[]'\",", "       "))
    return text.split()


def _tuple_of(item: type, count: int | None, metavar: str) -> PrimitiveConstructorSpec:
    def parse(args: list[str]) -> Any:
        words = _words(args)
        if not args:
            raise ValueError(f"expected {metavar}")
        if words == ["None"] and count == 3:
            return None
        if count is not None and len(words) != count:
            raise ValueError(f"expected {metavar}")
        return tuple(item(word) for word in words)

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=metavar,
        instance_from_str=parse,
        is_instance=lambda value: value is None or isinstance(value, tuple),
        str_from_instance=lambda value: ["None"] if value is None else [",".join(f"{one}" for one in value)],
    )


def _switch(args: list[str]) -> bool | None:
    values = {"true": True, "false": False, "none": None}
    if not args:  # --data.resize alone
        return True
    if len(args) > 1 or args[0].lower() not in values:
        raise ValueError("expected True, False or None")
    return values[args[0].lower()]


# tyro takes `a b` only; these also take `a,b`, which shells and scripts pass around more easily.
Names = Annotated[tuple[str, ...], _tuple_of(str, None, "NAME,NAME,...")]
TwoNames = Annotated[tuple[str, str], _tuple_of(str, 2, "NAME,NAME")]
ThreeNumbers = Annotated[tuple[float, float, float] | None, _tuple_of(float, 3, "NUMBER,NUMBER,NUMBER")]
Switch = Annotated[
    bool | None,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="{True,False,None}",
        instance_from_str=_switch,
        is_instance=lambda value: value is None or isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    ),
]


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of `Config`, read from the annotation of its field.

    Attributes:
      kind: the plain type.
      range: allowed numbers, None for other types.
      roles: see `Role`.
    """

    kind: Any
    range: Range | None
    roles: frozenset[Role]

    @property
    def is_path(self) -> bool:
        """Whether the value is a path."""
        return bool(self.roles & {*PATH_ROLES})


def read_option(annotation: Any, section_roles: Iterable[Role] = ()) -> Option:
    """Reads the annotation of a field, with the roles that all fields of its section have."""
    kind: Any = annotation
    metadata: list[Any] = []
    if typing.get_origin(annotation) is Annotated:  # nested ones are flattened by typing
        kind, *metadata = typing.get_args(annotation)
    ranges = [one for one in metadata if isinstance(one, Range)]
    roles = [one for one in metadata if isinstance(one, Role)]
    return Option(kind, ranges[0] if ranges else None, frozenset({*roles, *section_roles}))


_DESCRIPTIONS: dict[Any, str] = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


def describe(kind: Any) -> str:
    """Describes the values of a type, for a message."""
    if kind in _DESCRIPTIONS:
        return _DESCRIPTIONS[kind]
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(inner)
    if origin is types.UnionType:
        return f"{describe(inner[0])}, or None"
    if origin is tuple:
        if inner[-1] is ...:
            return "names separated by commas"
        return "two names separated by a comma" if len(inner) == 2 else "three numbers, for example 5,1,1"
    return "options by name"


def convert(value: Any, kind: Any) -> Any:
    """Returns a Python value as the given type: whole numbers become floats and lists tuples, nothing else changes.

    Raises:
      ValueError: the value has another type; the message is `describe(kind)`.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else convert(value, inner[0])
    if origin is Literal and isinstance(value, str) and value in inner:
        return value
    if origin is tuple and isinstance(value, list | tuple) and (inner[-1] is ... or len(value) == len(inner)):
        return tuple(convert(item, inner[0]) for item in value)
    if origin is dict and isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {name: plain(item) for name, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 1e300 else math.inf
    if kind is str and isinstance(value, str) and "\0" in value:
        raise ValueError("text without a zero byte")
    if kind is int and isinstance(value, int) and value.bit_length() > 64:
        raise ValueError("a whole number of fewer than 20 digits")  # Python refuses to print very long ones
    if kind in _DESCRIPTIONS and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise ValueError(describe(kind))


def plain(value: Any) -> Any:
    """Returns a value that `config.json` can hold: None, True, False, a number, text, or a tuple of these.

    Raises:
      ValueError: any other value.
    """
    items = value if isinstance(value, tuple | list) else [value]
    if not all(item is None or isinstance(item, bool | int | float | str) for item in items):
        raise ValueError("a number, True, False, text, or a tuple of these")
    for item in items:
        if isinstance(item, int):
            convert(int(item), int)  # refuses numbers that are too long
    return tuple(value) if isinstance(value, list) else value


def literal(text: str) -> Any:
    """Returns the value of a Python literal; nothing is executed.

    Raises:
      ValueError: the text is not a literal.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as an unknown escape in a Windows path
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError("a Python literal such as 4, 0.5, True, 'text' or ('a', 'b')") from error


def suggest(key: str, known: Iterable[str], mark: str = "") -> str:
    """Returns `; did you mean ...?` for the nearest known names, or nothing."""
    leaves: dict[str, list[str]] = {}
    for name in known:
        leaves.setdefault(name.rpartition(".")[2], []).append(name)
    leaf = key.rpartition(".")[2]
    near = leaves.get(leaf, [])  # the right name with a wrong or missing section
    near = near or difflib.get_close_matches(key, [name for names in leaves.values() for name in names], n=1)
    if not near:
        near = [name for one in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.75) for name in leaves[one]]
    return f"; did you mean {' or '.join(mark + name for name in near)}?" if near else ""
