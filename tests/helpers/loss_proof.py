"""`python -m tests.helpers.loss_proof`: the proof of every loss, in one table; run it at the root of the repository.

Value and gradient compared with float64 (NumPy and SciPy) and with stored numbers of other libraries, the direction of
the gradient on an empty mask, and the time of a value with its gradient.
"""

import dataclasses
import functools
import json
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from data_pipeline.console import run_program
from experiments import console
from experiments.config import raise_problems
from experiments.run_directory import write_atomically
from jaxunet.losses import LOSSES
from tests.helpers import loss_peers as peers
from tests.oracles import losses as oracle

TIED = ("blob", "inverse", "one_image")
"""Cases with equal logits, at which the gradient of a loss that sorts or takes a minimum jumps."""

_LEAST = {"size": 11, "batch": 1, "rounds": 1}  # SSIM compares windows of 11 pixels

STEP = 1e-5
"""Step of finite differences, in logits and in float64."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Compares every loss with float64 and other libraries, and measures its time."""

    only: tuple[str, ...] = ()
    """Names of losses; none: all."""
    size: int = 256
    """Height and width of the timed images, in pixels."""
    batch: int = 16
    """Number of timed images."""
    rounds: int = 9
    """Rounds in which each loss is timed once; the median is printed."""
    json: str | None = None
    """A new file for the table."""


class DisagreementError(RuntimeError):
    """A loss differs from float64 or from another library."""

    exit_code = 3


@dataclasses.dataclass(frozen=True)
class Proof:
    """Results for a loss.

    Attributes:
      value_error: largest error over the cases, relative to the float64 value where that is above 1.
      gradient_error: largest error of a slope along a random direction, relative to the norm of the gradient.
      peers: largest error of the value relative to each other library, by its name.
      empty: direction of the gradient at a uniform prediction of an empty mask.
      milliseconds: of value and gradient.
      problems: each result outside its tolerance.
    """

    value_error: float
    gradient_error: float
    peers: dict[str, float]
    empty: str
    milliseconds: float
    problems: tuple[str, ...]


def prove(names: Sequence[str], *, size: int, batch: int, rounds: int) -> dict[str, Proof]:
    """Compares and times losses.

    Args:
      names: keys of `LOSSES`.
      size: height and width of the timed images.
      batch: their number.
      rounds: rounds of timing.
    """
    cost = milliseconds(names, size=size, batch=batch, rounds=rounds)
    proofs = {}
    for name in names:
        value_error, gradient_error, problems = _against_float64(name)
        agreement = _against_peers(name)
        problems += [f"{peer}: {error:.1e}" for peer, error in agreement.items() if error > 3e-5]
        proofs[name] = Proof(value_error, gradient_error, agreement, on_empty(name), cost[name], tuple(problems))
    return proofs


def _against_float64(name: str) -> tuple[float, float, list[str]]:
    rtol, atol = oracle.VALUE_TOLERANCE.get(name, oracle.OTHER_VALUE_TOLERANCE)
    slope_tolerance = oracle.GRADIENT_TOLERANCE.get(name, oracle.OTHER_GRADIENT_TOLERANCE)[0]
    program = jax.jit(jax.value_and_grad(LOSSES[name].fn))
    values, slopes, problems = [0.0], [0.0], []
    for case in peers.CASES:
        z, g = peers.rules.loss_case(case)
        of = functools.partial(oracle.ORACLES[name], g=g, weight=None, reduce="batch")
        value, gradient = jax.device_get(program(z, g))
        expected = float(of(z))
        values.append(abs(float(value) - expected) / max(1, abs(expected)))
        if abs(float(value) - expected) > rtol * abs(expected) + atol:
            problems.append(f"value in {case}: {float(value):.8g}, float64 {expected:.8g}")
        if LOSSES[name].piecewise and case in TIED:
            continue
        direction = np.random.default_rng(0).normal(size=z.shape)
        ahead, behind = (of(z + sign * STEP * direction) for sign in (1.0, -1.0))
        slope = float((ahead - behind) / (2 * STEP))
        slopes.append(abs(float(np.vdot(gradient, direction)) - slope) / max(float(np.linalg.norm(gradient)), 1e-12))
        if slopes[-1] > slope_tolerance:
            problems.append(f"gradient in {case}: off by {slopes[-1]:.1e} of its length")
    return max(values), max(slopes), problems


def _against_peers(name: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for called, peer in peers.AGREE.items():
        if peer.loss != name:
            continue
        library, program = peers.LIBRARIES[called.split(".")[0]], jax.jit(peer.fn)
        for case in peer.cases:
            expected = float(peers.stored(called, case)[0])
            error = abs(float(program(*peers.rules.loss_case(case))) - expected) / max(1, abs(expected))
            found[library] = max(found.get(library, 0.0), error)
    return found


def on_empty(name: str) -> str:
    """Direction of the gradient at a uniform prediction of an empty mask, in words."""
    zeros = np.zeros((1, 24, 24, 1), np.float32)
    gradient = np.asarray(jax.jit(jax.grad(LOSSES[name].fn))(zeros, zeros))
    if not gradient.any():
        return "no gradient"
    if (gradient < 0).any():
        return "down and up"
    return "down" if gradient.all() else "down in part"


def milliseconds(names: Iterable[str], *, size: int, batch: int, rounds: int) -> dict[str, float]:
    """Median time of value and gradient on the default device, one loss after the other in each round."""
    z, g = jax.device_put(discs(size, batch))
    programs = {name: jax.jit(jax.value_and_grad(LOSSES[name].fn)).lower(z, g).compile() for name in names}
    for program in programs.values():
        jax.block_until_ready(program(z, g))
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(z, g))
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(times) for name, times in seconds.items()}


def discs(size: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy logits and masks `[batch, size, size, 1]`: a disc in every third mask, the others are empty."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size]
    masks = np.zeros((batch, size, size, 1), np.float32)
    for mask in masks[::3]:
        row, column, radius = rng.uniform(0.25, 0.75) * size, rng.uniform(0.25, 0.75) * size, size * rng.uniform(0, 0.2)
        mask[..., 0] = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
    return (rng.normal(size=masks.shape) + 3 * masks - 2).astype(np.float32), masks


def main(argv: Sequence[str]) -> int:
    """Prints the table; exit code 3 and the list of disagreements if there are any."""
    options = tyro.cli(Options, args=list(argv), prog="python -m tests.helpers.loss_proof", use_underscores=True)
    sizes = {name: getattr(options, name) for name in _LEAST}
    problems = [
        f"{name}={value}: must be at least {_LEAST[name]}" for name, value in sizes.items() if value < _LEAST[name]
    ]
    problems += [f"only: unknown loss {name!r}" for name in options.only if name not in LOSSES]
    if options.json and Path(options.json).exists():
        problems.append(f"json={options.json} exists already: name another file")
    raise_problems(problems)
    proofs = prove(options.only or tuple(LOSSES), **sizes)
    if options.json:
        rows = {name: dataclasses.asdict(proof) for name, proof in proofs.items()}
        write_atomically(Path(options.json), json.dumps(rows, indent=1) + "\n")
    columns = ("loss", "family", "value error", "gradient error", "other libraries", "empty mask", "ms")
    console.table(
        f"{len(proofs)} losses; ms: value and gradient of {options.batch} images of {options.size}x{options.size}",
        columns,
        [_row(name, proof) for name, proof in proofs.items()],
    )
    wrong = [f"{name}: {problem}" for name, proof in proofs.items() for problem in proof.problems]
    if wrong:
        raise DisagreementError("\n".join(["outside the tolerances:", *wrong]))
    sys.stdout.write("all within the tolerances of tests/oracles/losses.py\n")
    return 0


def _row(name: str, proof: Proof) -> list[Any]:
    peers = ", ".join(f"{library} {error:.0e}" for library, error in proof.peers.items())
    errors = (f"{proof.value_error:.1e}", f"{proof.gradient_error:.1e}")
    return [name, LOSSES[name].family, *errors, peers or None, proof.empty, f"{proof.milliseconds:.1f}"]


if __name__ == "__main__":
    sys.exit(run_program(main))
