"""`python -m experiments.bench losses`: every loss with its gradient, on logits that lie on the device."""

import dataclasses
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from experiments.bench.options import Names, at_least, check_names, parse
from experiments.bench.workers import Worker, WorkerError
from experiments.config import LOSS_NAMES, raise_problems

OURS = "jaxunet"
SUITES: dict[str, tuple[str, tuple[str, ...]]] = {
    OURS: ("experiments.bench.losses:jaxunet", ("jax",)),
    "MONAI": ("experiments.bench.torch_losses:monai", ("torch", "monai")),
    "smp": ("experiments.bench.torch_losses:smp", ("torch", "segmentation_models_pytorch")),
}
"""Libraries of losses: `module:function`, which takes `size` and `batch`, and what must be installed.

smp is segmentation_models.pytorch. The function returns `names() -> {name of a loss here: what it is called there}` and
`run(loss, steps)`, which computes value and gradient `steps` times and waits for the last; `value(loss)`,
`temporary_bytes(loss)` (None where nobody counts) and `describe()` are for the report.
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """Every loss with its gradient with respect to the logits, beside MONAI's and segmentation_models.pytorch's."""

    size: int = 256
    """Height and width of the images in pixels."""
    batch: int = 16
    """Images a step."""
    only: Names = ()
    """Losses by name; none: all."""
    rounds: int = 5
    """Turns of each loss."""
    seconds: float = 0.5
    """Least duration of a turn."""
    json: str | None = None
    """A new file for all figures."""


def jaxunet(size: int, batch: int) -> dict[str, Callable[..., Any]]:
    """The losses of the library, each compiled with its gradient."""
    import jax
    import jax.numpy as jnp

    from experiments.allocator import keep_freed_memory
    from experiments.bench.jax_programs import device_names
    from experiments.bench.workload import Workload, images_and_masks
    from jaxunet.losses import LOSSES

    keep_freed_memory()  # as all programs here do
    masks = jnp.asarray(images_and_masks(Workload(size=size, batch=batch))[1])
    logits = jax.random.normal(jax.random.key(0), masks.shape)
    compiled = {name: jax.jit(jax.value_and_grad(loss.fn)) for name, loss in LOSSES.items()}

    def run(loss: str, steps: int) -> None:
        for _ in range(steps):
            result = compiled[loss](logits, masks)
        jax.block_until_ready(result)

    def temporary_bytes(loss: str) -> int:
        plan = compiled[loss].lower(logits, masks).compile().memory_analysis()
        return plan.temp_size_in_bytes if plan else 0

    return {
        "names": lambda: {name: name for name in LOSSES},
        "describe": device_names,
        "value": lambda loss: float(compiled[loss](logits, masks)[0]),
        "run": run,
        "temporary_bytes": temporary_bytes,
    }


def measure(options: Options) -> dict[str, Any]:
    """Measures all losses of all installed libraries, interleaved.

    Returns:
      `{"machine", "results": [{"suite", "loss", "called", "value", "first_seconds", "step_seconds", "ours_to_theirs",
      ...}], "absent", "failed"}`.
    """
    from experiments.bench.machine import processor
    from experiments.bench.results import ratio, summarise

    workers: dict[str, Worker] = {}
    absent: dict[str, str] = {}
    failed: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    machine: dict[str, Any] = {"processor": processor()}
    try:
        for suite, (target, packages) in SUITES.items():
            missing = [package for package in packages if importlib.util.find_spec(package) is None]
            if missing:
                absent[suite] = f"{' and '.join(missing)} not installed"
                continue
            worker = workers[suite] = Worker(suite, target, {"size": options.size, "batch": options.batch})
            machine[suite] = worker.call("describe")
            for loss, called in worker.call("names").items():
                if options.only and loss not in options.only:
                    continue
                try:
                    rows.append(
                        {"suite": suite, "loss": loss, "called": called, **_first(worker, loss, options.seconds)}
                    )
                except WorkerError as error:  # such as a pyramid of scales on images too small for it
                    failed[f"{suite} {loss}"] = str(error)
        for number in range(options.rounds if rows else 0):
            for row in (*rows[number % len(rows) :], *rows[: number % len(rows)]):
                worker = workers[row["suite"]]
                worker.call("run", loss=row["loss"], steps=row["steps"])
                row["seconds"].append(worker.seconds / row["steps"])
    finally:
        for worker in workers.values():
            worker.close()
    ours = {row["loss"]: row["seconds"] for row in rows if row["suite"] == OURS}
    for row in rows:
        compared = row["suite"] != OURS and row["loss"] in ours
        row["ours_to_theirs"] = ratio(ours[row["loss"]], row["seconds"]) if compared else None
    for row in rows:
        row["step_seconds"] = summarise(row.pop("seconds"))
    return {"machine": machine, "results": rows, "absent": absent, "failed": failed}


def _first(worker: Worker, loss: str, least_seconds: float) -> dict[str, Any]:
    """Compiles a loss, takes its value and its memory, and finds how often it fits into a turn."""
    value = worker.call("value", loss=loss)
    first = worker.seconds
    for _ in range(2):
        worker.call("run", loss=loss, steps=1)
    steps = max(1, math.ceil(least_seconds / max(worker.seconds, 1e-6)))
    memory = worker.call("temporary_bytes", loss=loss)
    return {"value": value, "first_seconds": first, "temporary_bytes": memory, "steps": steps, "seconds": []}


def main(argv: Sequence[str]) -> int:
    """Measures, prints a table and writes what was asked for."""
    options = parse(Options, argv, command="losses")
    from experiments.bench import results

    problems = at_least(1, batch=options.batch, rounds=options.rounds, size=options.size)
    raise_problems([*problems, *check_names("only", options.only, LOSS_NAMES)])
    results.check_new(options.json)
    content = measure(options)
    results.write_json(options.json, "losses", dataclasses.asdict(options), content)
    show(content, options)
    return 0


def show(content: dict[str, Any], options: Options) -> None:
    """Prints the times, loss by loss, and in how many of the comparisons ours is at most as slow."""
    from experiments import console as report
    from experiments.bench import results

    title = (
        f"loss and gradient, batch {options.batch} of {options.size}x{options.size}, median of {options.rounds} rounds"
    )
    place = {name: number for number, name in enumerate(LOSS_NAMES)}
    rows = [
        [
            row["loss"],
            row["suite"],
            results.milliseconds(row["step_seconds"]["median"]),
            results.spread(row["step_seconds"]),
            "-" if row["ours_to_theirs"] is None else f"{row['ours_to_theirs']:.2f}",
            "-" if row["temporary_bytes"] is None else f"{row['temporary_bytes'] / 1e6:.1f}",
            f"{row['value']:.4f}",
        ]
        for row in sorted(content["results"], key=lambda row: place[row["loss"]])
    ]
    columns = ("loss", "library", "ms", "least to most", "ours / theirs", "temporary MB", "value")
    report.table(title, columns, rows)
    ratios = [row["ours_to_theirs"] for row in content["results"] if row["ours_to_theirs"] is not None]
    if ratios:
        fast = sum(value <= 1 for value in ratios)
        sys.stdout.write(f"ours takes at most their time in {fast} of {len(ratios)} comparisons\n")
    for suite, reason in content["absent"].items():
        sys.stdout.write(f"absent: {suite} ({reason})\n")
    for reason in content["failed"].values():
        sys.stdout.write(f"failed: {reason}\n")
