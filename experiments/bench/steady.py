"""`python -m experiments.bench steady`: whether time and memory stay level over thousands of steps.

A machine that others use too is slower at one moment than at another. A second process, the witness, takes one step for
every ten of the first. What slows both down is the machine; what slows down the first alone comes with its many steps.

A process that keeps freed memory first grows by a few steps' temporaries, each time by just their size. What it grew by
in the first quarter therefore stands apart.
"""

import dataclasses
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from experiments.bench.options import Network, at_least, known_loss, parse
from experiments.bench.results import ratio
from experiments.bench.workers import Worker
from experiments.bench.workload import Workload


@dataclasses.dataclass(frozen=True)
class Options(Network):
    """Many training steps in one process: time and memory of the first quarter beside those of the last."""

    size: int = 64
    """Height and width of the images in pixels; a multiple of 2^num_layers."""
    batch: int = 4
    """Images a step."""
    loss: str = "hybrid"
    """bce or hybrid."""
    steps: int = 2000
    """Training steps."""
    block: int = 20
    """Steps between two looks at clock and memory; a quarter of all at most."""

    def problems(self) -> list[str]:
        """What is wrong with the values."""
        found = [*super().problems(), *at_least(1, batch=self.batch, block=self.block)]
        if self.block >= 1 and self.steps < 4 * self.block:
            found.append(f"steps={self.steps}: must be at least four blocks of {self.block}")
        found += known_loss(self.loss)
        return found


def measure(options: Options) -> dict[str, Any]:
    """Trains and looks at the clock and the memory after every block.

    Returns:
      `{"machine", "step_seconds": a block, "witness_seconds": of the steps that follow it, "resident_bytes": a block,
      "quarters": [{"step_seconds", "over_witness", "resident_bytes"}], "time_ratio": `over_witness` of the last quarter
      over that of the first, "bytes_at_first": what the process grew by in the first quarter, "bytes_a_step": slope of
      the last three quarters}`.
    """
    network = {name: getattr(options, name) for name in ("size", "base_filters", "num_layers", "dropout_rate")}
    work = dataclasses.asdict(Workload(batch=options.batch, loss=options.loss, **network))
    program, few = "experiments.bench.jax_programs:jaxunet", max(1, options.block // 10)
    seconds, witnessed, resident = [], [], []
    with Worker("jaxunet", program, work) as worker, Worker("the witness", program, work) as witness:
        machine = worker.call("describe")
        for one in (worker, witness):
            for _ in range(3):
                one.call("run", steps=1)
        before = worker.call("resident_bytes")
        for _ in range(options.steps // options.block):
            worker.call("run", steps=options.block)
            seconds.append(worker.seconds / options.block)
            resident.append(worker.call("resident_bytes"))
            witness.call("run", steps=few)
            witnessed.append(witness.seconds / few)
    quarter = len(seconds) // 4
    parts = [slice(0, quarter), slice(quarter, 2 * quarter), slice(2 * quarter, 3 * quarter), slice(3 * quarter, None)]
    quarters = [
        {
            "step_seconds": statistics.median(seconds[part]),
            "over_witness": ratio(seconds[part], witnessed[part]),
            "resident_bytes": statistics.median(resident[part]),
        }
        for part in parts
    ]
    late = resident[quarter:]
    slope = statistics.linear_regression(range(len(late)), late).slope / options.block
    return {
        "machine": machine,
        "step_seconds": seconds,
        "witness_seconds": witnessed,
        "resident_bytes": resident,
        "quarters": quarters,
        "time_ratio": quarters[-1]["over_witness"] / quarters[0]["over_witness"],
        "bytes_at_first": max(resident[:quarter]) - before,
        "bytes_a_step": slope,
    }


def main(argv: Sequence[str]) -> int:
    """Measures, prints a table and writes what was asked for."""
    options = parse(Options, argv, command="steady")
    from experiments import console as report
    from experiments.bench import results

    results.check_new(options.json)
    content = measure(options)
    results.write_json(options.json, "steady", dataclasses.asdict(options), content)
    rows = [
        [
            name,
            results.milliseconds(quarter["step_seconds"]),
            f"{quarter['over_witness']:.3f}",
            f"{quarter['resident_bytes'] / 1e6:.1f}",
        ]
        for name, quarter in zip(("first", "second", "third", "last"), content["quarters"], strict=True)
    ]
    title = f"{options.steps} training steps, {options.loss}, batch {options.batch} of {options.size}x{options.size}x3"
    report.table(title, ("quarter", "ms a step, median", "over the witness", "process MB, median"), rows)
    sys.stdout.write(
        f"last quarter over first, beside the witness: {content['time_ratio']:.3f}; "
        f"memory: {content['bytes_at_first'] / 1e6:+.1f} MB in the first quarter, "
        f"then {content['bytes_a_step'] / 1e3:+.3f} kB a step\n"
    )
    return 0
