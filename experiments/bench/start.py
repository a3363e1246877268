"""`python -m experiments.bench start`: how long a person waits for the first step, with a cold and a warm cache.

Every round starts two processes: one with an empty compilation cache, and one that finds there what the first compiled.
"""

import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from experiments.bench.options import Network, at_least, known_loss, parse
from experiments.bench.workers import Worker
from experiments.bench.workload import Workload

PHASES = ("process", "import", "initialise", "compile", "first step")


@dataclasses.dataclass(frozen=True)
class Options(Network):
    """From the command to the first finished training step, with a cold and a warm compilation cache."""

    batch: int = 4
    """Images a step."""
    loss: str = "hybrid"
    """bce or hybrid."""
    rounds: int = 3
    """Pairs of processes."""

    def problems(self) -> list[str]:
        """What is wrong with the values."""
        found = [*super().problems(), *at_least(1, batch=self.batch, rounds=self.rounds)]
        found += known_loss(self.loss)
        return found


def program(**arguments: Any) -> dict[str, Callable[..., Any]]:
    """What the worker serves: the phases one after the other, each with its seconds."""
    work = Workload(**arguments)
    clock = time.perf_counter

    def phases() -> dict[str, float]:
        marks = [clock()]
        import jax
        import numpy as np
        import optax

        from experiments.bench.workload import ADAM, LEARNING_RATE, images_and_masks
        from jaxunet import UNet, init_state
        from jaxunet.losses import LOSSES
        from jaxunet.sharding import global_batch, make_mesh, replicate
        from jaxunet.step import compile_train_step

        marks.append(clock())
        model = UNet(base_filters=work.base_filters, num_layers=work.num_layers, dropout_rate=work.dropout_rate)
        images, masks = images_and_masks(work)
        mesh = make_mesh(jax.devices()[:1])
        state = init_state(model, optax.adam(LEARNING_RATE, **ADAM), seed=0, image_shape=images.shape[1:])
        state = jax.block_until_ready(replicate(state, mesh))
        batch = global_batch({"image": images, "mask": masks, "weight": np.ones(work.batch, np.float32)}, mesh)
        marks.append(clock())
        step = compile_train_step(mesh, loss=LOSSES[work.loss].fn, seed=0)
        step.lower(state, batch).compile()
        marks.append(clock())
        jax.block_until_ready(step(state, batch))
        marks.append(clock())
        return dict(zip(PHASES[1:], (after - before for before, after in pairwise(marks)), strict=True))

    return {"phases": phases}


def measure(options: Options) -> dict[str, Any]:
    """Starts the processes.

    Returns:
      `{"help_seconds", "results": [{"cache": "cold" or "warm", "phases": {name: summary}, "total": summary}]}`.
    """
    from experiments.bench.results import summarise

    network = {name: getattr(options, name) for name in ("size", "base_filters", "num_layers", "dropout_rate")}
    work = dataclasses.asdict(Workload(batch=options.batch, loss=options.loss, **network))
    rounds: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for state in rounds:
                rounds[state].append(_start(work, cache))
    command = [sys.executable, "-m", "experiments.train", "--help"]
    help_seconds = []
    for _ in range(options.rounds):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        help_seconds.append(time.perf_counter() - start)
    results = [
        {
            "cache": state,
            "phases": {phase: summarise([found[phase] for found in measured]) for phase in PHASES},
            "total": summarise([sum(found.values()) for found in measured]),
        }
        for state, measured in rounds.items()
    ]
    return {"help_seconds": summarise(help_seconds), "results": results}


def _start(work: dict[str, Any], cache: str) -> dict[str, float]:
    start = time.perf_counter()
    environment = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    with Worker("the first step", "experiments.bench.start:program", work, environment=environment) as worker:
        begun = time.perf_counter() - start
        return {PHASES[0]: begun, **worker.call("phases")}


def main(argv: Sequence[str]) -> int:
    """Measures, prints a table and writes what was asked for."""
    options = parse(Options, argv, command="start")
    from experiments import console as report
    from experiments.bench import results

    results.check_new(options.json)
    content = measure(options)
    results.write_json(options.json, "start", dataclasses.asdict(options), content)
    rows = [
        [
            result["cache"],
            *(f"{result['phases'][phase]['median']:.2f}" for phase in PHASES),
            f"{result['total']['median']:.2f}",
        ]
        for result in content["results"]
    ]
    title = f"seconds to the first step, {options.loss}, batch {options.batch} of {options.size}x{options.size}x3"
    report.table(f"{title}, median of {options.rounds} rounds", ("cache", *PHASES, "total"), rows)
    sys.stdout.write(f"python -m experiments.train --help: {content['help_seconds']['median']:.2f} s\n")
    return 0
