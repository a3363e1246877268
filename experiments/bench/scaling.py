"""`python -m experiments.bench scaling`: a training step on one to N devices: its time, and the bytes exchanged.

The batch is per device, so that the work of a device stays the same. On a CPU the devices are simulated and share its
cores: there the exchange is meaningful, the time is not.
"""

import dataclasses
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from experiments import console
from experiments.bench import results
from experiments.bench.options import ScalingOptions
from experiments.bench.peers import PEER_MODULES
from experiments.bench.rounds import take_turns, timed
from experiments.bench.worker import Worker, xla_flags

SIMULATED = (1, 2, 4, 8)
JAXUNET = f"{PEER_MODULES}.jaxunet"

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_ELEMENT = re.compile(r"\b(pred|[suf]\d+|bf16|f8\w*|c64|c128)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)")
_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|called_computations)=\{?([^{}=]*?)(?:[},]|$)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_NO_WORK = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")


def main(options: ScalingOptions) -> int:
    """Measures, prints a table and writes the files that were asked for."""
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
    columns = (
        *("devices", "images", "ms per step", "range of rounds", "images/s", "efficiency"),
        *("exchanged MB", "exchanges"),
    )
    size = f"{options.size}x{options.size}x3"
    console.table(f"training step, {options.loss}, {options.batch} images of {size} per device", columns, rows)
    if content["machine"]["simulated"]:
        sys.stdout.write("the devices are simulated and share the cores: read the bytes, not the times\n")
    return 0


def measure(options: ScalingOptions) -> dict[str, Any]:
    """Measures all numbers of devices, in turns.

    Returns:
      `{"machine", "results": [{"devices", "batch", "step_seconds", "images_per_second", "efficiency", "collectives",
      "bytes_a_step"}]}`; the efficiency is images per second and device, divided by those of the first row.

    Raises:
      WorkerError: there are fewer devices than requested.
    """
    with Worker("the devices", f"{JAXUNET}:serve_peaks", {}) as worker:
        machine = worker.call("describe")
    simulated = machine["platform"] == "cpu"
    counts = options.devices or (SIMULATED if simulated else powers(machine["devices"]))
    workers, exchanged = {}, {}
    try:
        for count in counts:
            work = options.workload(batch=count * options.batch, loss=options.loss, dtype=options.dtype)
            flags = xla_flags(f"--xla_force_host_platform_device_count={count}") if simulated else {}
            arguments = {"devices": count, **dataclasses.asdict(work)}
            workers[count] = Worker(f"{count} devices", f"{JAXUNET}:serve", arguments, environment=flags)
            workers[count].call("run", steps=1)
            exchanged[count] = exchanges(workers[count].call("program"))
        seconds = take_turns(
            {count: partial(timed, worker) for count, worker in workers.items()}, options.rounds, options.seconds
        )
    finally:
        for worker in workers.values():
            worker.close()
    rows: list[dict[str, Any]] = []
    for count in counts:
        summary = results.summarise(seconds[count])
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


def powers(count: int) -> tuple[int, ...]:
    """1, 2, 4 and so on, up to the count itself."""
    return tuple(dict.fromkeys([*(2**exponent for exponent in range(count.bit_length())), count]))


def exchanges(program: str) -> list[dict[str, Any]]:
    """Finds what the devices exchange in a compiled program; no interface of JAX lists it.

    Args:
      program: the text of `jax.stages.Compiled.as_text()`.

    Returns:
      For each exchange `{"kind", "name", "runs", "bytes", "types", "asynchronous", "overlapped_operations"}`: how often
      it takes place, the bytes that a device sends each time and their types, and the number of operations between its
      start and its end.
    """
    computations: dict[str, list[tuple[str, ...]]] = {}
    body: list[tuple[str, ...]] = []
    for line in program.splitlines():
        if header := _COMPUTATION.match(line):
            body = computations.setdefault(header[1], [])
        elif found := _INSTRUCTION.match(line):
            body.append(found.groups())
    types = {name: kind for body in computations.values() for name, kind, _, _ in body}
    runs = count_runs(computations)
    exchanged = []
    for computation, body in computations.items():
        for index, (name, _, opcode, rest) in enumerate(body):
            kind = opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            operands = [types[one] for one in re.findall(r"%([\w.\-]+)", re.split(r"\)(?:,|$)", rest)[0])]
            overlapped = until_done(body[index + 1 :], name) if opcode != kind else []
            exchanged.append(
                {
                    "kind": kind,
                    "name": name,
                    "runs": runs[computation],
                    "bytes": sum(map(size, operands)),
                    "types": sorted({element for text in operands for element, _ in _ELEMENT.findall(text)}),
                    "asynchronous": opcode != kind,
                    "overlapped_operations": len(overlapped),
                }
            )
    return exchanged


def count_runs(computations: dict[str, list[tuple[str, ...]]]) -> dict[str, int]:
    """How often each computation runs; loops of unknown length and branches count as one run."""
    callers: dict[str, list[tuple[str, int]]] = {}
    for caller, body in computations.items():
        for _, _, opcode, rest in body:
            trips = _TRIPS.search(rest) if opcode == "while" else None
            for group in _CALLED.findall(rest):
                for name in group.split(","):
                    callers.setdefault(name.strip(" %"), []).append((caller, int(trips[1]) if trips else 1))

    def runs(name: str) -> int:
        return sum(runs(caller) * trips for caller, trips in callers[name]) if name in callers else 1

    return {name: runs(name) for name in computations}


def until_done(instructions: Sequence[tuple[str, ...]], started: str) -> list[str]:
    """The operations scheduled before the end of an asynchronous exchange."""
    work: list[str] = []
    for name, _, opcode, rest in instructions:
        if opcode.endswith("-done") and re.search(rf"%{re.escape(started)}\b", rest):
            return work
        if opcode not in _NO_WORK and not opcode.endswith(("-start", "-done", "-update")):
            work.append(name)
    return work


def size(kind: str) -> int:
    """Bytes of a type, of all arrays of a tuple."""
    total = 0
    for element, sides in _ELEMENT.findall(kind):
        bits = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}.get(element) or int(re.sub(r"\D.*", "", element[1:]))
        total += math.prod(int(side) for side in sides.split(",") if side) * bits // 8
    return total


def describe(collectives: Sequence[dict[str, Any]]) -> str:
    """The number of exchanges by kind and number formats, and how many of them overlap with other work."""
    kinds: Counter[str] = Counter()
    for found in collectives:
        kinds[f"{found['kind']} ({', '.join(found['types'])})"] += found["runs"]
    if not kinds:
        return "none"
    overlapping = sum(found["runs"] for found in collectives if found["overlapped_operations"])
    return f"{', '.join(f'{count} {kind}' for kind, count in kinds.items())}; {overlapping} overlap with work"
