"""`python -m experiments.bench step`: a training step and inference of the network, in jaxunet and in its peers.

Each peer has its own process; one works at a time, with all cores, and they take turns in rounds. All start from
the same weights and must find the same loss before anything is timed. A step is what a training program does with a
batch that is on the device: forward with dropout, loss, backward, Adam; jaxunet's also counts pixels for the scores and
guards against non-finite updates, as `jaxunet.step.compile_train_step` does.
"""

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from data_pipeline.console import progress
from experiments import console as terminal
from experiments.bench import results
from experiments.bench.machine import count_operations, inspect
from experiments.bench.options import DTYPES, StepOptions
from experiments.bench.peers import BASELINE, PEERS, baseline, missing
from experiments.bench.rounds import Participant, end_together, run_rounds, shared_processors, start_together
from experiments.bench.workload import Workload
from experiments.machine import ALLOCATOR_ENVIRONMENT

CACHES = {"JAX_COMPILATION_CACHE_DIR": "xla", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
"""Variables that name the directory of compiled programs, and its name in the temporary directory of a benchmark."""

COLUMNS = (
    *("peer", "ms per step", "range of rounds", "x jaxunet", "95 % interval", "images/s"),
    *("step MB", "process MB", "first step s", "% of matmul peak", "% of copy peak"),
)


def main(options: StepOptions) -> int:
    """Measures, prints a table for each workload and writes the files that were asked for."""
    results.check_new(options.json)
    if options.write_docs:
        results.read_marked(Path(options.docs), options.place)
    content = measure(options)
    results.write_json(options.json, "step", dataclasses.asdict(options), content)
    show(content, options)
    if options.write_docs:
        results.write_marked(Path(options.docs), options.place, to_markdown(content, options))
        sys.stdout.write(f"table: {options.docs}\n")
    if options.json:
        sys.stdout.write(f"figures: {options.json}\n")
    return 1 if any(name.startswith(BASELINE) for name in content["failed"]) else 0


def measure(options: StepOptions, console: Console | None = None) -> dict[str, Any]:
    """Measures all workloads.

    Args:
      options: checked.
      console: where the progress is shown; default standard output.

    Returns:
      `{"machine", "peaks", "results", "absent", "failed", "keep_freed_memory", "idle_cpu_share", "kept_caches"}`,
      the content of the JSON file.

    Raises:
      WorkerError: the machine cannot be described.
      ValueMismatchError: two peers do not compute the same.
    """
    workloads = list(options.workloads())
    start = time.perf_counter()
    before = inspect(DTYPES, seconds=options.seconds)
    present, absent = choose(options, before["platform"])
    # Compiled programs are kept for the later turns of this benchmark only, so that the first step always compiles.
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as background:
        counting = background.submit(count_operations, workloads)
        groups = [participants(work, present, options, f"{folder}/{number}") for number, work in enumerate(workloads)]
        everyone = [one for group in groups for one in group]
        try:
            if options.together:
                start_together(everyone, options.patience)
            operations = counting.result()  # before the rounds: nothing else may work while they are timed
            for work, group in zip(workloads, groups, strict=True):
                turns = len(group) * (options.rounds + options.resident)
                with progress(f"{work.title}, batch {work.batch}", turns, to=console) as advance:
                    run_rounds(group, options.rounds, advance, stay=options.together)
            end_together(everyone)
        finally:
            for one in everyone:
                one.close()
    # On a CPU, other programs of the machine lower the measured peaks for a while; a GPU has no other user.
    after = inspect(DTYPES, seconds=options.seconds) if before["platform"] == "cpu" else before
    peaks = {kind: max(before["peaks"][kind], after["peaks"][kind]) for kind in before["peaks"]}
    failed = {f"{one.name}: {one.work.title}, batch {one.work.batch}": one.failure for one in everyone}
    return {
        "machine": {key: value for key, value in before.items() if key != "peaks"},
        "peaks": peaks,
        "results": [
            row(one, group) | shares(one, operations[one.work], peaks)
            for group in groups
            for one in group
            if not one.failure
        ],
        "absent": absent,
        "failed": {name: reason for name, reason in failed.items() if reason},
        "keep_freed_memory": options.keep_freed_memory,
        "idle_cpu_share": sum(one.idle_cpu_seconds for one in everyone) / (time.perf_counter() - start),
        "kept_caches": [name for name in CACHES if name in os.environ],
    }


def choose(options: StepOptions, platform: str) -> tuple[list[str], dict[str, str]]:
    """Returns the names of the peers that take part, and why the other requested ones do not."""
    present, absent = [], {}
    for name, peer in PEERS.items():
        wanted = name in options.only if options.only else platform != "cpu" or peer.on_cpu
        if not wanted or peer.dtype not in options.dtype:
            continue
        if reason := missing(peer.packages):
            absent[name] = reason
        else:
            present.append(name)
    return present, absent


def participants(work: Workload, names: Sequence[str], options: StepOptions, folder: str) -> list[Participant]:
    """The peers of a workload; `folder` keeps what they compile, unless the environment names a directory."""
    environment = {name: f"{folder}/{kind}" for name, kind in CACHES.items()}
    environment |= shared_processors() if options.together else {}
    environment |= ALLOCATOR_ENVIRONMENT if options.keep_freed_memory else {}
    environment = {name: value for name, value in environment.items() if name not in os.environ}
    return [Participant(name, work, environment, options.resident, options.seconds, options.patience) for name in names]


def row(one: Participant, group: Sequence[Participant]) -> dict[str, Any]:
    """The figures of a peer in a workload, for the JSON file."""
    peer, work = PEERS[one.name], one.work
    present = {other.name: other.seconds for other in group if not other.failure}
    base = baseline(one.name, list(present))
    summary = results.summarise(one.seconds)
    memory = one.facts["memory"]
    return {
        "contender": one.name,
        "label": peer.label,
        "dtype": peer.dtype,
        "same_network": peer.same_network,
        "task": work.task,
        "loss": work.loss,
        "batch": work.batch,
        "step_seconds": summary,
        "compared_with": base,
        "ratio_to_ours": results.ratio(one.seconds, present[base]) if base else None,
        "ratio_interval": results.ratio_interval(one.seconds, present[base]) if base and base != one.name else None,
        "images_per_second": work.batch / summary["median"],
        "memory_bytes": memory["bytes"] if memory else None,
        **one.facts,
    }


def shares(one: Participant, flops: float, peaks: Mapping[str, float]) -> dict[str, Any]:
    """The network's operations, and how close a peer comes to the machine's peaks."""
    # A processor without bfloat16 computes in float32.
    peak = max(peaks.get(f"matmul_{dtype}", 0) for dtype in ("float32", PEERS[one.name].dtype))
    seconds = results.summarise(one.seconds)["median"]
    moved = one.facts.get("bytes_accessed")  # XLA counts them, the others do not
    return {
        "network_flops": flops,
        "matmul_share": flops / seconds / peak,
        "copy_share": moved / seconds / peaks["copy"] if moved else None,
    }


def show(content: Mapping[str, Any], options: StepOptions, console: Console | None = None) -> None:
    """Prints a table for each workload, and what the figures are based on."""
    out = console or terminal.console()
    for work in options.workloads():
        if rows := select(content["results"], work):
            size = f"{options.size}x{options.size}x3"
            title = f"{work.title}, batch {work.batch} of {size}, median of {options.rounds} rounds"
            terminal.table(title, COLUMNS, [cells(result) for result in rows], to=out)
    for line in notes(content):
        out.print(line, markup=False, soft_wrap=True)


def select(rows: Sequence[Mapping[str, Any]], work: Workload) -> list[Mapping[str, Any]]:
    """The results of a workload."""
    wanted = {"task": work.task, "loss": work.loss, "batch": work.batch}
    return [result for result in rows if wanted.items() <= result.items()]


def cells(result: Mapping[str, Any]) -> list[str]:
    """A row of the table."""
    name = result["label"] if result["same_network"] else f"{result['label']} ({terminal.number(result['parameters'])})"
    return [
        name,
        results.milliseconds(result["step_seconds"]["median"]),
        results.spread(result["step_seconds"]),
        "-" if result["ratio_to_ours"] is None else f"{result['ratio_to_ours']:.2f}",
        "{:.2f} to {:.2f}".format(*result["ratio_interval"]) if result["ratio_interval"] else "-",
        f"{result['images_per_second']:.1f}",
        "-" if result["memory_bytes"] is None else f"{result['memory_bytes'] / 1e6:.0f}",
        f"{result['process_peak_bytes'] / 1e6:.0f}",
        f"{result['first_step_seconds']:.1f}",
        f"{100 * result['matmul_share']:.0f}" if result["same_network"] else "-",
        "-" if result["copy_share"] is None else f"{100 * result['copy_share']:.0f}",
    ]


def notes(content: Mapping[str, Any]) -> list[str]:
    """The machine, its peaks, the versions, who is absent, and what disturbed the measurement."""
    machine, peaks = content["machine"], content["peaks"]
    rates = [
        f"{name.removeprefix('matmul_')} matmul {value / 1e9:.0f} GFLOP/s"
        for name, value in peaks.items()
        if name.startswith("matmul_")
    ]
    versions = sorted({result["version"] for result in content["results"]})
    lines = [
        f"machine: {machine['processor']}, {machine['device']}; measured peaks: {', '.join(rates)}, "
        f"copy {peaks['copy'] / 1e9:.1f} GB/s (read and write)",
        f"versions: {', '.join(versions)}",
    ]
    operations = {
        (result["task"], result["loss"], result["batch"]): result["network_flops"] for result in content["results"]
    }
    lines += [
        f"{Workload(task=task, loss=loss).title}, batch {batch}: {count / 1e9:.1f} GFLOP by XLA's count"
        for (task, loss, batch), count in operations.items()
    ]
    lines += [
        "% matmul: these operations divided by the time, in percent of the measured peak",
        "% copy: bytes that the compiled program reads and writes, divided by the time, in percent of the measured "
        "peak; XLA's count, which takes the body of a loop once; caches may serve some of them",
        "x jaxunet: the median of the ratios of the rounds, and from six rounds on its 95 % interval",
        "step MB: the device's own peak; on a CPU, the plan of JAX's compiler or the peak in PyTorch's profiler",
        "process MB: the peak of the whole process, compiling included",
    ]
    if machine["platform"] == "cpu":
        whose = "all peers keep" if content["keep_freed_memory"] else "only jaxunet keeps"
        lines.append(f"memory: {whose} freed memory (experiments.machine)")
    lines += [f"absent: {PEERS[name].label} ({reason})" for name, reason in content["absent"].items()]
    lines += [f"failed: {reason}" for reason in content["failed"].values()]
    if content["kept_caches"]:
        lines.append(f"first steps may find programs compiled before: {', '.join(content['kept_caches'])} is set")
    if content["idle_cpu_share"] > 0.01:
        lines.append(f"warning: waiting processes used {100 * content['idle_cpu_share']:.1f} % of a processor")
    return lines


def to_markdown(content: Mapping[str, Any], options: StepOptions) -> str:
    """The table of the documentation page: one row per workload and peer; below it, what the figures are based on."""
    columns = ("", *COLUMNS[1:9], "% matmul", "% copy")
    rows = []
    for work in options.workloads():
        for result in select(content["results"], work):
            name, *figures = cells(result)
            rows.append([f"{work.title}, batch {work.batch}: {name}", *figures])
    lines = "\n".join(f"- {line}" for line in notes(content))
    size = f"{options.size}x{options.size}x3"
    words = f"Images of {size}, {options.rounds} rounds, dropout {options.dropout_rate:g} per level."
    return f"{words}\n\n{results.markdown(columns, rows)}\n\n{lines}"
