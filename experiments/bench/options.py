"""What the benchmarks can be told, and how a command line becomes it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from tyro.constructors import PrimitiveConstructorSpec

from experiments.config import raise_problems

T = TypeVar("T")

LOSSES = ("bce", "hybrid")
"""Those that every contender has."""


def _listed(kind: Callable[[str], Any]) -> PrimitiveConstructorSpec[Any]:
    """Values separated by commas, as in all programs here; one that is given twice counts once."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="A,B",
        instance_from_str=lambda words: tuple(
            dict.fromkeys(kind(word) for word in words[0].replace(" ", "").split(",") if word)
        ),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )


Numbers = Annotated[tuple[int, ...], _listed(int)]
Names = Annotated[tuple[str, ...], _listed(str)]


@dataclasses.dataclass(frozen=True)
class Network:
    """The network and its images, common to the benchmarks of a step."""

    size: int = 256
    """Height and width of the images in pixels; a multiple of 2^num_layers."""
    base_filters: int = 16
    """Filters of the first level."""
    num_layers: int = 6
    """Number of 2x2 poolings; 6 with 16 filters is the documented network of 31 110 001 parameters."""
    dropout_rate: float = 0.08
    """Dropout of level i is i times this rate. At 0 all contenders must find the same losses step after step."""
    json: str | None = None
    """A new file for all figures."""

    def problems(self) -> list[str]:
        """What is wrong with the values."""
        found = []
        if not 1 <= self.num_layers <= 16:
            found.append(f"num_layers={self.num_layers}: must be from 1 to 16")
        elif self.size < 1 or self.size % 2**self.num_layers:
            found.append(f"size={self.size}: must be a positive multiple of {2**self.num_layers} (2^num_layers)")
        if self.base_filters < 1:
            found.append(f"base_filters={self.base_filters}: must be at least 1")
        if not 0 <= self.dropout_rate * max(self.num_layers, 1) < 1:
            found.append(f"dropout_rate={self.dropout_rate}: times num_layers it must be from 0 to below 1")
        return found


def parse(kind: type[T], argv: Sequence[str], *, command: str) -> T:
    """Returns the options that a command line asks for; `--help` prints them and exits.

    Raises:
      ConfigError: values that cannot be, all in one message. What is no option at all ends the program with 2.
    """
    import tyro

    options = tyro.cli(kind, args=argv, prog=f"python -m experiments.bench {command}", use_underscores=True)
    problems = options.problems() if isinstance(options, Network) else []
    raise_problems(problems)
    return options


def check_names(option: str, names: Sequence[str], known: Sequence[str]) -> list[str]:
    """What is wrong with a list of names."""
    return [f"{option}: unknown {name!r}; known are {', '.join(known)}" for name in names if name not in known]


def at_least(least: int, **values: int | Sequence[int]) -> list[str]:
    """What is wrong with numbers, by option."""
    found = []
    for option, value in values.items():
        numbers = (value,) if isinstance(value, int) else value
        if not numbers or min(numbers) < least:
            given = ",".join(map(str, numbers))
            found.append(f"{option}={given}: must be at least {least}")
    return found


def known_loss(loss: str) -> list[str]:
    """What is wrong with the name of the loss."""
    return [] if loss in LOSSES else [f"loss={loss}: must be {' or '.join(LOSSES)}"]
