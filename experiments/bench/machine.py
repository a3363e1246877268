"""What the machine can do: its fastest matrix product and its fastest copy, measured; and the work of the network."""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.peers import PEER_MODULES, missing
from experiments.bench.worker import Worker
from experiments.bench.workload import Workload

SIDES = {"cpu": (256, 512, 1024, 2048), "gpu": (1024, 2048, 4096, 8192)}
"""Sides of the multiplied matrices; a larger one is tried while a product takes less than `PATIENCE` seconds."""

PATIENCE = 0.25

CHAIN = {"cpu": 1, "gpu": 20}
"""Products in a row, so that the dispatch to a device is not timed."""

COPY = {"cpu": 2**28, "gpu": 2**30}
"""Bytes of the copied array, larger than any cache."""

MEASURED_BY = {
    "jax": f"{PEER_MODULES}.jaxunet:serve_peaks",
    "torch": f"{PEER_MODULES}.torch:serve_peaks",
}
"""By the package that must be installed; the faster one gives the machine's peak."""


def inspect(dtypes: Sequence[str], *, seconds: float = 1.0) -> dict[str, Any]:
    """Measures the machine with each of `MEASURED_BY` that is installed.

    Args:
      dtypes: number formats of the matrix product.
      seconds: duration of a measurement.

    Returns:
      `{"platform", "device", "devices", "version", "processor", "peaks": {"matmul_<dtype>": flop/s, "copy": bytes/s,
      read and write}}`.
    """
    found: dict[str, Any] = {"peaks": {}}
    for package, target in MEASURED_BY.items():
        if missing([package]):
            continue
        with Worker(f"measuring the machine with {package}", target, {}) as worker:
            rates = {f"matmul_{dtype}": worker.call("matmul", dtype=dtype, seconds=seconds) for dtype in dtypes}
            rates["copy"] = worker.call("copy", seconds=seconds)
            found["peaks"] = {kind: max(value, found["peaks"].get(kind, 0)) for kind, value in rates.items()}
            if package == "jax":
                found |= worker.call("describe")
    return found


def count_operations(workloads: Sequence[Workload]) -> dict[Workload, float]:
    """Floating-point operations of workloads in plain Flax by XLA's count, which it makes on CPUs only."""
    target = f"{PEER_MODULES}.flax:serve_operations"
    with Worker("counting operations", target, {}, environment={"JAX_PLATFORMS": "cpu"}) as worker:
        return {work: worker.call("flops", **dataclasses.asdict(work)) for work in workloads}


def rate(run: Callable[[], object], amount: float, seconds: float) -> float:
    """The best `amount / duration` of runs repeated for some seconds; `run` returns when it is done."""
    run()
    best, end = 0.0, time.perf_counter() + seconds
    while not best or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = max(best, amount / (time.perf_counter() - start))
    return best


def matmul_rate(platform: str, prepare: Callable[[int], Callable[[], object]], seconds: float) -> float:
    """The best rate of products of square matrices; `prepare(side)` returns a function that multiplies a chain."""
    best = 0.0
    for side in SIDES[platform]:  # without hardware support, a number format may be a thousand times slower
        amount = CHAIN[platform] * 2 * side**3
        run = prepare(side)
        now = rate(run, amount, 0)
        best = max(best, now)
        if amount / now > PATIENCE:
            return best
    return max(best, rate(run, amount, seconds))


def noise(side: int) -> np.ndarray:
    """A random float32 matrix whose powers keep their scale; GPUs multiply constant matrices faster, at less power."""
    return np.random.default_rng(0).standard_normal((side, side), np.float32) * np.float32(side**-0.5)


def processor() -> str:
    """The processor's name and the number of processors that this process may use."""
    names = []
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        names = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")]
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{count} x {names[0] if names else 'CPU'}"
