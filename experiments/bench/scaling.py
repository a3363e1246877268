"""`python -m experiments.bench scaling`: a training step on one to N devices: time, bytes exchanged, what overlaps.

The batch is that of a device, so that the work of a device stays the same. On a CPU the devices are simulated and share
its cores: there the bytes and the program are what can be learned, not the time.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

from experiments.bench.options import Network, Numbers, at_least, known_loss, parse
from experiments.bench.workers import Worker, with_simulated_devices
from experiments.bench.workload import Workload

SIMULATED = (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Options(Network):
    """The training step on one to N devices."""

    batch: int = 4
    """Images a step and device."""
    loss: str = "hybrid"
    """bce or hybrid."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the computation."""
    devices: Numbers = ()
    """Numbers of devices; none: 1, 2, 4 and so on to all there are, on a CPU 1, 2, 4, 8 simulated ones."""
    rounds: int = 5
    """Turns of each number of devices."""
    seconds: float = 2.0
    """Least duration of a turn."""

    def problems(self) -> list[str]:
        """What is wrong with the values."""
        found = [*super().problems(), *at_least(1, batch=self.batch, rounds=self.rounds)]
        found += at_least(1, devices=self.devices) if self.devices else []
        found += known_loss(self.loss)
        return found


def program(devices: int, work: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    """What the worker serves: the library's step over the first `devices` devices."""
    from experiments.allocator import keep_freed_memory
    from experiments.bench.hlo import Module
    from experiments.bench.jax_programs import jaxunet_step

    keep_freed_memory()  # as all programs here do
    _, compiled = jaxunet_step(Workload(**work), devices)
    return {"run": compiled.train, "collectives": lambda: Module(compiled.hlo()).collectives()}


def visible() -> dict[str, Callable[..., Any]]:
    """What the worker serves that looks at the machine."""
    import jax

    from experiments.bench.jax_programs import device_names

    return {"describe": lambda: {**device_names(), "devices": jax.device_count()}}


def measure(options: Options) -> dict[str, Any]:
    """Measures all numbers of devices, interleaved.

    Returns:
      `{"machine", "results": [{"devices", "batch", "step_seconds", "images_per_second", "efficiency", "collectives",
      "bytes_a_step"}]}`; the efficiency is images a second and device over those of the first row.

    Raises:
      WorkerError: there are fewer devices than asked for.
    """
    from experiments.bench.results import summarise
    from experiments.bench.rounds import take_turns

    with Worker("the devices", "experiments.bench.scaling:visible", {}) as worker:
        machine = worker.call("describe")
    simulated = machine["platform"] == "cpu"
    counts = options.devices or (SIMULATED if simulated else _powers(machine["devices"]))
    network = {name: getattr(options, name) for name in ("size", "base_filters", "num_layers", "dropout_rate")}
    workers, exchanged = {}, {}
    try:
        for count in counts:
            work = Workload(batch=count * options.batch, loss=options.loss, dtype=options.dtype, **network)
            arguments = {"devices": count, "work": dataclasses.asdict(work)}
            flags = with_simulated_devices(count)
            workers[count] = Worker(
                f"{count} devices",
                "experiments.bench.scaling:program",
                arguments,
                environment={"XLA_FLAGS": flags} if simulated else {},
            )
            workers[count].call("run", steps=1)
            exchanged[count] = workers[count].call("collectives")
        seconds = take_turns(workers, options.rounds, options.seconds)
    finally:
        for worker in workers.values():
            worker.close()
    rows: list[dict[str, Any]] = []
    for count in counts:
        summary = summarise(seconds[count])
        rate = count * options.batch / summary["median"]
        rows.append(
            {
                "devices": count,
                "batch": count * options.batch,
                "step_seconds": summary,
                "images_per_second": rate,
                "efficiency": rate / count / (rows[0]["images_per_second"] / counts[0] if rows else rate / count),
                "collectives": exchanged[count],
                "bytes_a_step": sum(found["runs"] * found["bytes"] for found in exchanged[count]),
            }
        )
    return {"machine": {**machine, "simulated": simulated}, "results": rows}


def _powers(count: int) -> tuple[int, ...]:
    powers = [2**exponent for exponent in range(count.bit_length()) if 2**exponent <= count]
    return tuple(dict.fromkeys([*powers, count]))


def describe(collectives: Sequence[dict[str, Any]]) -> str:
    """How many exchanges of which kind and number formats, and how many of them run beside other work."""
    kinds: dict[str, int] = {}
    for collective in collectives:
        kind = f"{collective['kind']} ({', '.join(collective['types'])})"
        kinds[kind] = kinds.get(kind, 0) + collective["runs"]
    overlapping = sum(collective["runs"] for collective in collectives if collective["overlapped_operations"])
    if not kinds:
        return "none"
    return f"{', '.join(f'{count} {kind}' for kind, count in kinds.items())}; {overlapping} overlap with work"


def main(argv: Sequence[str]) -> int:
    """Measures, prints a table and writes what was asked for."""
    options = parse(Options, argv, command="scaling")
    from experiments import console as report
    from experiments.bench import results

    results.check_new(options.json)
    content = measure(options)
    results.write_json(options.json, "scaling", dataclasses.asdict(options), content)
    rows = [
        [
            row["devices"],
            row["batch"],
            results.milliseconds(row["step_seconds"]["median"]),
            results.spread(row["step_seconds"]),
            f"{row['images_per_second']:.1f}",
            f"{row['efficiency']:.2f}",
            f"{row['bytes_a_step'] / 1e6:.2f}",
            describe(row["collectives"]),
        ]
        for row in content["results"]
    ]
    columns = ("devices", "images", "ms a step", "least to most", "images/s", "efficiency", "exchanged MB", "exchanges")
    title = f"training step, {options.loss}, {options.batch} images of {options.size}x{options.size}x3 a device"
    report.table(title, columns, rows)
    if content["machine"]["simulated"]:
        sys.stdout.write("the devices are simulated and share the cores: read the bytes, not the times\n")
    return 0
