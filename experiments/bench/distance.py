"""The distance transform beside SciPy's, turn by turn on the same masks, after showing that both are equal."""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np


@dataclasses.dataclass(frozen=True)
class Options:
    """The distance transform beside SciPy's, which computes one image at a time on one core."""

    size: int = 256
    """Height and width of the masks in pixels."""
    batch: int = 16
    """Masks a turn."""
    rounds: int = 20
    """Turns of each."""


class InexactError(RuntimeError):
    """A squared distance is not SciPy's."""

    exit_code = 3


def discs(batch: int, size: int) -> np.ndarray:
    """Masks of three discs each, up to a quarter of the image wide: bool `[batch, size, size, 1]`."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    masks = np.zeros((batch, size, size, 1), bool)
    for mask in masks:
        for _ in range(3):
            row, column, radius = rng.integers(size), rng.integers(size), rng.integers(1, max(2, size // 8))
            mask[..., 0] |= (y - row) ** 2 + (x - column) ** 2 < radius**2
    return masks


def scipy_squared(masks: np.ndarray) -> np.ndarray:
    """Squared distances by SciPy, which returns their square roots."""
    from scipy import ndimage

    return np.round(np.stack([ndimage.distance_transform_edt(mask[..., 0]) for mask in masks]) ** 2)[..., None]


def take_turns(first: Callable[[], object], second: Callable[[], object], rounds: int) -> list[tuple[float, float]]:
    """Seconds of both in every round; they take turns in beginning, and what slows a round slows both."""
    times = []
    for number in range(rounds):
        spent = {}
        for run in (first, second) if number % 2 else (second, first):
            start = time.perf_counter()
            run()
            spent[run] = time.perf_counter() - start
        times.append((spent[first], spent[second]))
    return times


def measure(options: Options) -> list[list[str]]:
    """Compares on discs, whose distances are short, and around them, where they are long.

    Returns:
      A row each: masks, our milliseconds, SciPy's, and the median over the rounds of one over the other.

    Raises:
      InexactError: the squared distances differ.
    """
    import jax

    from jaxunet.distance import squared_distance_transform

    transform = jax.jit(squared_distance_transform)

    def ours_squared(masks: jax.Array) -> jax.Array:
        return jax.block_until_ready(transform(masks))

    rows = []
    short = discs(options.batch, options.size)
    for name, masks in {"discs": short, "around them": ~short}.items():
        on_device = jax.device_put(masks)
        if not np.array_equal(ours_squared(on_device), scipy_squared(masks)):
            raise InexactError(f"squared distances of {name} differ from SciPy's")
        times = take_turns(partial(ours_squared, on_device), partial(scipy_squared, masks), options.rounds)
        ours, theirs = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
        ratio = statistics.median(a / b for a, b in times)
        rows.append([name, f"{ours:.1f}", f"{theirs:.1f}", f"{ratio:.2f}"])
    return rows


def main(argv: Sequence[str]) -> int:
    """Measures and prints a table."""
    import tyro

    from experiments import console as report
    from experiments.config import raise_problems

    options = tyro.cli(Options, args=list(argv), prog="python -m experiments.bench distance", use_underscores=True)
    values = dataclasses.asdict(options)
    raise_problems([f"{name}={value}: must be at least 1" for name, value in values.items() if value < 1])
    title = f"distance transform of {options.batch} masks of {options.size}x{options.size}, {options.rounds} rounds"
    report.table(title, ("masks", "jaxunet ms", "SciPy ms", "jaxunet / SciPy"), measure(options))
    return 0


if __name__ == "__main__":
    from experiments.cli import run_program

    sys.exit(run_program(main))
