"""`python -m experiments.bench trace`: where the time of a step goes, operation by operation, beside a floor.

The floor of an operation is the longer of two times: its multiplications at the machine's measured matrix peak, and its
operands and result, once each, at the measured copy bandwidth.
"""

import collections
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from experiments.bench.options import Network, at_least, known_loss, parse
from experiments.bench.workers import Worker
from experiments.bench.workload import Workload


@dataclasses.dataclass(frozen=True)
class Options(Network):
    """The operations of a step that take the most time, and how far each is from the machine's peak."""

    batch: int = 4
    """Images a step."""
    task: Literal["train", "predict"] = "train"
    """A training step or inference."""
    loss: str = "hybrid"
    """bce or hybrid."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the computation."""
    steps: int = 5
    """Steps in the profile."""
    least: float = 5.0
    """Percent of the step from which an operation is listed."""

    def problems(self) -> list[str]:
        """What is wrong with the values."""
        found = [*super().problems(), *at_least(1, batch=self.batch, steps=self.steps)]
        found += known_loss(self.loss)
        if not 0 <= self.least <= 100:
            found.append(f"least={self.least}: must be from 0 to 100 percent")
        return found


def program(**arguments: Any) -> dict[str, Callable[..., Any]]:
    """What the worker serves: the library's step, and a profile of it."""
    from experiments.allocator import keep_freed_memory
    from experiments.bench.jax_programs import device_names, jaxunet_step
    from experiments.bench.profiles import profile

    work = Workload(**arguments)
    keep_freed_memory()  # as all programs here do
    _, compiled = jaxunet_step(work)
    run = compiled.train if work.task == "train" else compiled.predict
    return {"describe": device_names, "run": run, "profile": lambda steps: profile(run, compiled.hlo(), steps)}


def measure(options: Options) -> dict[str, Any]:
    """Profiles the step and compares each operation with its floor.

    Returns:
      `{"machine", "peaks", "undisturbed_step_seconds", "step_seconds", "operations": [{..., "share", "floor_seconds"}],
      "idle_seconds"}`.
    """
    from experiments.bench.machine import inspect

    network = {name: getattr(options, name) for name in ("size", "base_filters", "num_layers", "dropout_rate")}
    work = Workload(task=options.task, loss=options.loss, batch=options.batch, dtype=options.dtype, **network)
    machine = inspect(("float32", options.dtype))
    # Kernels that a GPU is given in one graph have no names in a profile: here each is launched on its own.
    flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_command_buffer="}
    program = ("jaxunet", "experiments.bench.trace:program", dataclasses.asdict(work))
    with Worker(*program, environment=flags) as worker:
        for _ in range(3):
            worker.call("run", steps=1)
        worker.call("run", steps=options.steps)
        undisturbed = worker.seconds / options.steps
        found = worker.call("profile", steps=options.steps)
    peaks = machine.pop("peaks")
    matmul = max(peaks["matmul_float32"], peaks[f"matmul_{options.dtype}"])
    for operation in found["operations"]:
        operation["share"] = operation["seconds"] / found["step_seconds"]
        operation["floor_seconds"] = max(operation["flops"] / matmul, operation["bytes"] / peaks["copy"])
    return {"machine": machine, "peaks": peaks, "undisturbed_step_seconds": undisturbed, **found}


Part = Mapping[str, Any]


def rows(content: Mapping[str, Any], parts: Sequence[Part], least: float) -> list[list[str]]:
    """A table: operations or kinds of at least `least` percent, all others, and the time in which none ran."""
    from experiments.bench.results import milliseconds

    def line(name: str, seconds: float, floor: float | None, label: str) -> list[str]:
        share = f"{100 * seconds / content['step_seconds']:.1f}"
        known = ["-", "-"] if not floor else [milliseconds(floor), f"{seconds / floor:.1f}"]
        return [name, milliseconds(seconds), share, *known, label]

    large = [part for part in parts if 100 * part["seconds"] / content["step_seconds"] >= least]
    others = parts[len(large) :]
    listed = [line(part["name"], part["seconds"], part["floor_seconds"], part["label"]) for part in large]
    seconds, floor = (sum(part[key] for part in others) for key in ("seconds", "floor_seconds"))
    listed.append(line(f"{len(others)} others", seconds, floor, ""))
    listed.append(line("nothing ran", content["idle_seconds"], None, "host, dispatch and waiting"))
    return listed


def kinds(operations: Sequence[Part]) -> list[Part]:
    """Adds up the operations that do the same in different layers, the longest kind first."""
    found: dict[str, dict[str, Any]] = {}
    layers: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for operation in operations:
        label = re.sub(r"\b(?:encoder|decoder)\d+_(conv|up|dropout)\d?", r"\1", operation["label"])
        kind = found.setdefault(label, {"name": label, "seconds": 0.0, "floor_seconds": 0.0})
        for key in ("seconds", "floor_seconds"):
            kind[key] += operation[key]
        if label != operation["label"]:
            layers[label][operation["label"].partition(":")[0]] += operation["seconds"]
    for label, kind in found.items():
        most = ", ".join(layer for layer, _ in layers[label].most_common(3))
        kind["label"] = f"most in {most}" if most else ""
    return sorted(found.values(), key=lambda kind: -kind["seconds"])


def main(argv: Sequence[str]) -> int:
    """Measures, prints a table and writes what was asked for."""
    options = parse(Options, argv, command="trace")
    from experiments import console as report
    from experiments.bench import results

    results.check_new(options.json)
    content = measure(options)
    results.write_json(options.json, "trace", dataclasses.asdict(options), content)
    what = f"{options.task}, {options.loss}, batch {options.batch} of {options.size}x{options.size}x3"
    title = f"{what}: {results.milliseconds(content['step_seconds'])} ms a step under the profiler"
    columns = ("ms", "% of step", "floor ms", "times floor")
    report.table(
        f"{title}, {results.milliseconds(content['undisturbed_step_seconds'])} without",
        ("operation", *columns, "what it is"),
        rows(content, content["operations"], options.least),
    )
    report.table(
        "the same by what is done in any layer",
        ("kind", *columns, "where"),
        rows(content, kinds(content["operations"]), options.least),
    )
    peaks = content["peaks"]
    sys.stdout.write(
        f"floors: {peaks['matmul_' + options.dtype] / 1e9:.0f} GFLOP/s matmul in {options.dtype}, "
        f"{peaks['copy'] / 1e9:.1f} GB/s read and write, both measured in this run\n"
    )
    return 0
