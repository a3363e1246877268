"""`python -m experiments.bench`: a training step and inference of the documented network, in ours and in the others.

Each contender has a process of its own; one works at a time, with all cores, and they take turns in rounds. All are
given the same weights and must find the same loss before anything is timed. A step is what a training program does with
a batch that lies on the device: forward with dropout, loss, backward, Adam; ours also counts pixels for the scores and
guards against non-finite updates, as `jaxunet.step.compile_train_step` does.
"""

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import allocator
from experiments.bench.contenders import BASELINE, CONTENDERS, baseline
from experiments.bench.options import Names, Network, Numbers, at_least, check_names, parse
from experiments.bench.workload import Workload

if TYPE_CHECKING:
    from rich.console import Console

CACHES = {"JAX_COMPILATION_CACHE_DIR": "xla", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
"""Variables that say where compiled programs are kept, and the folder for them in this run's own."""

TASKS, LOSSES, DTYPES = ("train", "predict"), ("bce", "hybrid"), ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Options(Network):
    """A training step and inference of the documented network, beside what people would use instead."""

    batch: Numbers = (4,)
    """Images a step, one or several sizes."""
    task: Names = TASKS
    """train, predict."""
    loss: Names = LOSSES
    """Losses of the training step: bce, hybrid."""
    dtype: Names = DTYPES
    """float32 (TF32 on GPUs), bfloat16: contenders of other number formats are left out."""
    only: Names = ()
    """Contenders by name; none: all that this machine is made for."""
    rounds: int = 5
    """Turns of each contender."""
    seconds: float = 2.0
    """Least duration of a turn."""
    resident: bool = True
    """Keep all processes between turns. --no_resident starts each turn anew, where memory does not hold all of them."""
    together: bool = False
    """Start and compile contenders of all workloads at the same time, where a machine with many processors is at hand
    for a short time. First steps then share the processors; turns are taken one at a time all the same. What is
    compiled is kept for a later run where the environment says: JAX_COMPILATION_CACHE_DIR, TORCHINDUCTOR_CACHE_DIR."""
    patience: float = 1800.0
    """Seconds that a contender may take for an answer, and all of them to compile --together; who takes longer is left
    out."""
    keep_freed_memory: bool = False
    """Let the C library of every contender keep memory that was freed, as all programs here do on CPUs. Otherwise the
    others have what their users have who set nothing."""
    write_readme: bool = False
    """Replace the table between the marks in the file of --readme."""
    readme: str = "README.md"
    """The file whose table --write_readme replaces."""
    place: str = "step"
    """Which of its tables, by the name in the marks around it."""

    def problems(self) -> list[str]:
        """What is wrong with the values."""
        return [
            *super().problems(),
            *at_least(1, batch=self.batch, rounds=self.rounds),
            *check_names("task", self.task, TASKS),
            *check_names("loss", self.loss, LOSSES),
            *check_names("dtype", self.dtype, DTYPES),
            *check_names("only", self.only, list(CONTENDERS)),
            *(["together: needs resident processes"] if self.together and not self.resident else []),
            *([] if self.patience > 0 else [f"patience={self.patience:g}: must be more than 0 seconds"]),
        ]

    def workloads(self) -> Iterator[Workload]:
        """What is measured, one after the other."""
        for batch in self.batch:
            for task, losses in (("train", self.loss), ("predict", ("bce",))):
                for loss in losses if task in self.task else ():
                    network = {
                        name: getattr(self, name) for name in ("size", "base_filters", "num_layers", "dropout_rate")
                    }
                    yield Workload(task=task, loss=loss, batch=batch, **network)


def choose(options: Options, platform: str) -> tuple[list[str], dict[str, str]]:
    """Returns the names of those who take part, and why the others that were asked for do not."""
    present, absent = [], {}
    for name, contender in CONTENDERS.items():
        wanted = name in options.only if options.only else platform != "cpu" or contender.on_cpu
        if not wanted or contender.dtype not in options.dtype:
            continue
        if contender.missing:
            absent[name] = f"{' and '.join(contender.missing)} not installed"
        else:
            present.append(name)
    return present, absent


def measure(options: Options, console: "Console | None" = None) -> dict[str, Any]:
    """Measures all workloads.

    Args:
      options: checked.
      console: where the progress is shown; default standard output.

    Returns:
      `{"machine", "peaks", "results", "absent", "failed", "keep_freed_memory", "idle_cpu_share", "kept_caches"}`,
      what the JSON file holds.

    Raises:
      WorkerError: the machine cannot be described.
      ValueMismatchError: two contenders do not compute the same.
    """
    from experiments import console as report
    from experiments.bench.machine import count_operations, inspect
    from experiments.bench.rounds import compete, part, start_together

    workloads = list(options.workloads())
    start = time.perf_counter()
    before = inspect(DTYPES, seconds=options.seconds)
    present, absent = choose(options, before["platform"])
    # Compiled programs are kept for the later turns of this run only: the first step always compiles.
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as aside:
        counting = aside.submit(count_operations, workloads)
        groups = [seats_of(work, present, options, f"{folder}/{number}") for number, work in enumerate(workloads)]
        everyone = [seat for seats in groups for seat in seats]
        try:
            if options.together:
                start_together(everyone, options.patience)
            operations = counting.result()
            for work, seats in zip(workloads, groups, strict=True):
                turns = len(seats) * (options.rounds + options.resident)
                with report.progress(f"{describe(work)}, batch {work.batch}", turns, to=console) as advance:
                    compete(seats, options.rounds, advance, stay=options.together)
            part(everyone)
        finally:
            for seat in everyone:
                seat.close()
    results = [row(seat, seats) for seats in groups for seat in seats if not seat.failure]
    failed = {f"{seat.name}: {describe(seat.work)}, batch {seat.work.batch}": seat.failure for seat in everyone}
    failed = {name: reason for name, reason in failed.items() if reason}
    idle = sum(seat.idle_cpu_seconds for seat in everyone)
    # What else runs on the machine lowers a CPU's peaks for a while; a GPU has no other user.
    after = inspect(DTYPES, seconds=options.seconds) if before["platform"] == "cpu" else before
    peaks = {kind: max(before["peaks"][kind], after["peaks"][kind]) for kind in before["peaks"]}
    for result in results:
        flops = result["network_flops"] = operations[result.pop("work")]
        # a processor without the format computes in float32
        peak = max(peaks.get(f"matmul_{dtype}", 0) for dtype in ("float32", result["dtype"]))
        seconds = result["step_seconds"]["median"]
        result["matmul_share"] = flops / seconds / peak
        moved = result.get("bytes_accessed")  # which XLA counts, and the others do not
        result["copy_share"] = moved / seconds / peaks["copy"] if moved else None
    machine = {key: value for key, value in before.items() if key != "peaks"}
    share = idle / (time.perf_counter() - start)
    return {
        "machine": machine,
        "peaks": peaks,
        "results": results,
        "absent": absent,
        "failed": failed,
        "keep_freed_memory": options.keep_freed_memory,
        "idle_cpu_share": share,
        "kept_caches": [name for name in CACHES if name in os.environ],
    }


def seats_of(work: Workload, names: Sequence[str], options: Options, folder: str) -> list[Any]:
    """A place for each contender in a workload; `folder` keeps what they compile, unless the environment names one."""
    from experiments.bench.rounds import Seat, shared_processors

    caches = {name: f"{folder}/{kind}" for name, kind in CACHES.items()}
    environment = caches | (shared_processors() if options.together else {})
    environment |= allocator.ENVIRONMENT if options.keep_freed_memory else {}
    environment = {name: value for name, value in environment.items() if name not in os.environ}
    return [Seat(name, work, environment, options.resident, options.seconds, options.patience) for name in names]


def describe(work: Workload) -> str:
    """What is measured, in words."""
    return f"training step, {work.loss}" if work.task == "train" else "inference"


def row(seat: Any, seats: Sequence[Any]) -> dict[str, Any]:
    """What is known of a contender and a workload."""
    from experiments.bench.results import ratio, ratio_interval, summarise

    contender, work = CONTENDERS[seat.name], seat.work
    present = {other.name: other for other in seats if not other.failure}
    ours = baseline(seat.name, list(present))
    base = present[ours].seconds if ours else None
    summary = summarise(seat.seconds)
    memory = seat.facts["memory"]
    return {
        "work": work,
        "contender": seat.name,
        "label": contender.label,
        "dtype": contender.dtype,
        "same_network": contender.same_network,
        "task": work.task,
        "loss": work.loss,
        "batch": work.batch,
        "step_seconds": summary,
        "compared_with": ours,
        "ratio_to_ours": ratio(seat.seconds, base) if base else None,
        "ratio_interval": ratio_interval(seat.seconds, base) if base and ours != seat.name else None,
        "images_per_second": work.batch / summary["median"],
        "memory_bytes": memory["bytes"] if memory else None,
        **seat.facts,
    }


def main(argv: Sequence[str]) -> int:
    """Measures, prints a table for each workload and writes what was asked for."""
    options = parse(Options, argv, command="step")
    from experiments.bench import results, step_report

    results.check_new(options.json)
    if options.write_readme:
        results.read_marked(Path(options.readme), options.place)
    content = measure(options)
    results.write_json(options.json, "step", dataclasses.asdict(options), content)
    step_report.show(content, options)
    if options.write_readme:
        results.write_marked(Path(options.readme), options.place, step_report.to_markdown(content, options))
        sys.stdout.write(f"table: {options.readme}\n")
    if options.json:
        sys.stdout.write(f"figures: {options.json}\n")
    return 1 if any(name.startswith(BASELINE) for name in content["failed"]) else 0
