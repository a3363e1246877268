"""`python -m experiments.bench losses`: every loss with its gradient, on logits that are on the device."""

import dataclasses
import sys
from functools import partial
from typing import Any

from experiments import console
from experiments.bench import results
from experiments.bench.machine import processor
from experiments.bench.options import LossesOptions
from experiments.bench.peers import PEER_MODULES, missing
from experiments.bench.rounds import take_turns, timed
from experiments.bench.worker import Worker, WorkerError
from experiments.config import raise_problems
from jaxunet.losses import LOSSES

OURS = "jaxunet"
SUITES: dict[str, tuple[str, tuple[str, ...]]] = {
    OURS: (f"{PEER_MODULES}.jaxunet:serve_losses", ("jax",)),
    "MONAI": (f"{PEER_MODULES}.monai:serve_losses", ("torch", "monai")),
    "smp": (f"{PEER_MODULES}.smp:serve_losses", ("torch", "segmentation_models_pytorch")),
}
"""Libraries of losses: `module:function`, which takes `size` and `batch`, and what must be installed.

smp is segmentation_models.pytorch. The function returns `names() -> {jaxunet's name of a loss: the library's name}` and
`run(loss, steps)`, which computes value and gradient `steps` times and waits for the last; `value(loss)`,
`temporary_bytes(loss)` (None where they are not counted) and `describe()` are for the report.
"""


def main(options: LossesOptions) -> int:
    """Measures, prints a table and writes the files that were asked for."""
    unknown = [name for name in options.only if name not in LOSSES]
    raise_problems([f"only: unknown {name!r}; known are {', '.join(LOSSES)}" for name in unknown])
    results.check_new(options.json)
    content = measure(options)
    results.write_json(options.json, "losses", dataclasses.asdict(options), content)
    show(content, options)
    return 0


def measure(options: LossesOptions) -> dict[str, Any]:
    """Measures all losses of all installed libraries, in turns.

    Returns:
      `{"machine", "results": [{"suite", "loss", "called", "value", "first_seconds", "step_seconds", "ours_to_theirs",
      ...}], "absent", "failed"}`.
    """
    workers: dict[str, Worker] = {}
    absent: dict[str, str] = {}
    failed: dict[str, str] = {}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    machine: dict[str, Any] = {"processor": processor()}
    try:
        for suite, (target, packages) in SUITES.items():
            if reason := missing(packages):
                absent[suite] = reason
                continue
            worker = workers[suite] = Worker(suite, target, {"size": options.size, "batch": options.batch})
            machine[suite] = worker.call("describe")
            for loss, called in worker.call("names").items():
                if options.only and loss not in options.only:
                    continue
                try:
                    rows[suite, loss] = {"suite": suite, "loss": loss, "called": called, **first_call(worker, loss)}
                except WorkerError as error:  # such as a pyramid of scales on images too small for it
                    failed[f"{suite} {loss}"] = str(error)
        runs = {(suite, loss): partial(timed, workers[suite], loss=loss) for suite, loss in rows}
        seconds = take_turns(runs, options.rounds, options.seconds)
    finally:
        for worker in workers.values():
            worker.close()
    for (suite, loss), row in rows.items():
        own = seconds.get((OURS, loss)) if suite != OURS else None
        row["ours_to_theirs"] = results.ratio(own, seconds[suite, loss]) if own else None
        row["step_seconds"] = results.summarise(seconds[suite, loss])
    return {"machine": machine, "results": list(rows.values()), "absent": absent, "failed": failed}


def first_call(worker: Worker, loss: str) -> dict[str, Any]:
    """Compiles a loss, takes its value and its memory, and runs it once."""
    value = worker.call("value", loss=loss)
    first = worker.seconds
    worker.call("run", loss=loss, steps=1)
    return {"value": value, "first_seconds": first, "temporary_bytes": worker.call("temporary_bytes", loss=loss)}


def show(content: dict[str, Any], options: LossesOptions) -> None:
    """Prints the times, loss by loss, and the number of comparisons in which jaxunet is at least as fast."""
    title = (
        f"loss and gradient, batch {options.batch} of {options.size}x{options.size}, median of {options.rounds} rounds"
    )
    place = {name: number for number, name in enumerate(LOSSES)}
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
    columns = ("loss", "library", "ms", "range of rounds", "jaxunet / library", "temporary MB", "value")
    console.table(title, columns, rows)
    ratios = [row["ours_to_theirs"] for row in content["results"] if row["ours_to_theirs"] is not None]
    if ratios:
        fast = sum(value <= 1 for value in ratios)
        sys.stdout.write(f"jaxunet is at least as fast in {fast} of {len(ratios)} comparisons\n")
    for suite, reason in content["absent"].items():
        sys.stdout.write(f"absent: {suite} ({reason})\n")
    for reason in content["failed"].values():
        sys.stdout.write(f"failed: {reason}\n")
