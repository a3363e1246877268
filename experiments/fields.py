"""The types an option can have: how a value is checked, and how a word on a command line becomes one."""

import ast
import contextlib
import difflib
import math
import types
import typing
import warnings
from collections.abc import Iterable
from typing import Any, Literal


def describe(kind: Any) -> str:
    """Returns what a value of this annotation looks like, for a message."""
    if kind in _NAMES:
        return _NAMES[kind]
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    if typing.get_origin(kind) is types.UnionType:
        return f"{describe(typing.get_args(kind)[0])}, or None"
    if typing.get_origin(kind) is tuple:
        if typing.get_args(kind)[-1] is ...:
            return "names separated by commas"
        return "two names separated by a comma" if len(typing.get_args(kind)) == 2 else "three numbers, as in 5,1,1"
    return "options by name"


_NAMES: dict[Any, str] = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


def convert(value: Any, kind: Any) -> Any:
    """Returns a Python value as the annotated type: whole numbers become floats and lists tuples, nothing else changes.

    Raises:
      ValueError: the value is of another type; the message is `describe(kind)`.
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
        raise ValueError("a whole number of less than 20 digits")  # Python itself refuses to print the longest
    if kind in _NAMES and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise ValueError(describe(kind))


def plain(value: Any) -> Any:
    """Returns what a configuration file can hold: None, True, False, a number, text, or a tuple of these.

    Raises:
      ValueError: the value is something else; the message says what was expected.
    """
    items = value if isinstance(value, tuple | list) else [value]
    if not all(item is None or isinstance(item, bool | int | float | str) for item in items):
        raise ValueError("a number, True, False, text, or a tuple of these")
    for item in items:
        if isinstance(item, int):
            convert(int(item), int)  # not too long
    return tuple(value) if isinstance(value, list) else value


def from_text(text: str, kind: Any) -> Any:
    """Returns the value a word on the command line stands for; raises `ValueError` with what was expected."""
    inner = typing.get_args(kind)
    if type(None) in inner:
        try:
            return None if text == "None" else from_text(text, inner[0])
        except ValueError as error:
            raise ValueError(describe(kind)) from error
    value: Any = text
    with contextlib.suppress(ValueError, OverflowError):
        if kind is bool:
            value = {"true": True, "false": False}.get(text.lower(), text)
        elif kind in (int, float):
            value = kind(text)
        elif typing.get_origin(kind) is dict:
            value = literal(text)
        elif typing.get_origin(kind) is tuple:
            listed = text[:1] in ("(", "[", "'", '"')
            words = text.replace(" ", "").split(",")
            value = literal(text) if listed else [from_text(word, inner[0]) for word in words if word]
            value = (value,) if isinstance(value, str) else value
    return convert(value, kind)


def literal(text: str) -> Any:
    """Returns the value of a Python literal; nothing is executed.

    Raises:
      ValueError: the text is no literal.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # '\d' in a path is no matter
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError("a Python literal such as 4, 0.5, True, 'text' or ('a', 'b')") from error


def suggest(key: str, known: Iterable[str], mark: str = "") -> str:
    """Returns `; did you mean ...?` for the nearest known names, or nothing."""
    leaf = key.rpartition(".")[2]
    near = [name for name in known if name.rpartition(".")[2] == leaf]  # the right name in a wrong or missing section
    near = near or difflib.get_close_matches(key, known, n=1)
    if not near:
        leaves = {name.rpartition(".")[2]: name for name in known}
        near = [leaves[name] for name in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.75)]
    return f"; did you mean {' or '.join(mark + name for name in near)}?" if near else ""
