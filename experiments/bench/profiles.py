"""Profiles of a compiled step: which instruction ran when, and its share of the time."""

import collections
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.bench.hlo import CONTAINERS, Module


@dataclasses.dataclass(frozen=True)
class Event:
    """An instruction at work, in nanoseconds."""

    name: str
    start: float
    end: float


def profile(run: Callable[[int], Any], text: str, steps: int) -> dict[str, Any]:
    """Profiles steps.

    Args:
      run: makes a number of steps and waits for the last.
      text: the optimised program.
      steps: how many.

    Returns:
      `{"step_seconds", "operations": [{"name", "opcode", "label", "runs", "seconds", "flops", "bytes"}],
      "idle_seconds"}`, a step each, the longest operation first. What a loop runs counts each time; loops and branches
      themselves compute nothing.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            start = time.perf_counter()
            for _ in range(steps):
                run(1)
            seconds = (time.perf_counter() - start) / steps
        (path,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(path)).planes
    module = Module(text)
    events = [event for event in read_events(planes, module.name) if event.name in module]
    containers = {event.name for event in events if module[event.name].opcode in CONTAINERS}
    shares = divide(events, containers)
    counts = collections.Counter(event.name for event in events)
    operations = []
    for name, nanoseconds in sorted(shares.items(), key=lambda share: -share[1]):
        # a GPU has several events for an instruction of several kernels
        runs, instruction = 1.0 if name in module.entry else counts[name] / steps, module[name]
        work = 0.0 if name in containers else runs
        operations.append(
            {
                "name": name,
                "opcode": instruction.opcode,
                "label": instruction.label,
                "runs": runs,
                "seconds": nanoseconds / 1e9 / steps,
                "flops": work * module.flops(instruction),
                "bytes": work * module.bytes_moved(instruction),
            }
        )
    busy = sum(shares.values()) / 1e9 / steps
    return {"step_seconds": seconds, "operations": operations, "idle_seconds": max(0.0, seconds - busy)}


def read_events(planes: Iterable[Any], module: str) -> list[Event]:
    """The instructions of a module in a profile.

    On a device an event lasts as long as its kernel. On a CPU the threads of an instruction go on when the event that
    started them is over; a second event, `end: NAME`, says when they are done.
    """
    events: list[Event] = []
    for plane in planes:
        begun: list[tuple[float, float, str]] = []
        ends: dict[str, collections.deque[float]] = collections.defaultdict(collections.deque)
        # XLA repeats the kernels of a device's streams on lines of its own
        lines = list(plane.lines)
        streams = [line for line in lines if line.name.startswith("Stream")]
        for line in streams or lines:
            for event in line.events:
                if event.name.startswith("end: "):
                    ends[event.name.removeprefix("end: ")].append(event.start_ns)
                    continue
                stats = dict(event.stats)
                if stats.get("hlo_module", "").partition("(")[0] == module and "hlo_op" in stats:
                    begun.append((event.start_ns, event.start_ns + event.duration_ns, stats["hlo_op"]))
        for name, times in ends.items():
            ends[name] = collections.deque(sorted(times))
        for start, end, name in sorted(begun):
            while ends[name] and ends[name][0] < start:
                ends[name].popleft()
            events.append(Event(name, start, max(end, ends[name].popleft()) if ends[name] else end))
    return events


def divide(events: Sequence[Event], containers: Iterable[str] = ()) -> dict[str, float]:
    """Divides the time evenly among the instructions that run at each moment.

    Args:
      events: what ran when.
      containers: instructions that run others; they get the moments in which none of those is at work.

    Returns:
      Nanoseconds by instruction, in all the time in which anything ran.
    """
    outer = set(containers)
    changes = sorted(
        change for event in events for change in ((event.start, 1, event.name), (event.end, -1, event.name))
    )
    active: collections.Counter[str] = collections.Counter()
    shares: dict[str, float] = collections.defaultdict(float)
    previous = 0.0
    for moment, change, name in changes:
        running = [other for other, count in active.items() if count]
        running = [other for other in running if other not in outer] or running
        for other in running:
            shares[other] += (moment - previous) / len(running)
        active[name] += change
        if not active[name]:
            del active[name]
        previous = moment
    return shares
