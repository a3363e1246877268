"""What the machine can do: its fastest matrix product and its fastest copy, measured, and the work of the network."""

import dataclasses
import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.workers import Worker
from experiments.bench.workload import Workload

SIDES = {"cpu": (256, 512, 1024, 2048), "gpu": (1024, 2048, 4096, 8192)}
"""Sides of the multiplied matrices; a larger one is tried while a product takes less than `PATIENCE` seconds."""

PATIENCE = 0.25

CHAIN = {"cpu": 1, "gpu": 20}
"""Products in a row, so that the dispatch to a device is not timed."""

COPY = {"cpu": 2**28, "gpu": 2**30}
"""Bytes of the copied array, beyond all caches."""

TARGETS = {"jax": ("experiments.bench.machine:jax", "jax"), "torch": ("experiments.bench.machine:torch", "torch")}
"""Who measures, and what must be installed; the faster one is the machine's peak."""


def inspect(dtypes: Sequence[str], *, seconds: float = 1.0) -> dict[str, Any]:
    """Measures the machine with whatever is installed.

    Args:
      dtypes: number formats of the matrix product.
      seconds: duration of a measurement.

    Returns:
      `{"platform", "device", "version", "processor", "peaks": {"matmul_<dtype>": flop/s, "copy": bytes/s, read and
      write}}`.
    """
    found: dict[str, Any] = {"peaks": {}}
    for name, (target, package) in TARGETS.items():
        if importlib.util.find_spec(package) is None:
            continue
        with Worker(f"measuring the machine with {name}", target, {}) as worker:
            rates = {f"matmul_{dtype}": worker.call("matmul", dtype=dtype, seconds=seconds) for dtype in dtypes}
            rates["copy"] = worker.call("copy", seconds=seconds)
            found["peaks"] = {kind: max(value, found["peaks"].get(kind, 0)) for kind, value in rates.items()}
            if name == "jax":
                found |= worker.call("describe")
    return found


def count_operations(workloads: Sequence[Workload]) -> dict[Workload, float]:
    """Floating-point operations of workloads in plain Flax by XLA's count, which it makes on CPUs only."""
    with Worker("counting operations", TARGETS["jax"][0], {}, environment={"JAX_PLATFORMS": "cpu"}) as worker:
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
    """The best rate of the products of square matrices; `prepare(side)` returns what multiplies a chain of them."""
    best = 0.0
    for side in SIDES[platform]:  # a format that the processor has not may be a thousand times slower than one it has
        amount = CHAIN[platform] * 2 * side**3
        run = prepare(side)
        now = rate(run, amount, 0)
        best = max(best, now)
        if amount / now > PATIENCE:
            return best
    return max(best, rate(run, amount, seconds))


def noise(side: int) -> np.ndarray:
    """A random matrix whose powers keep their size, float32: GPUs multiply constant ones faster, on less power."""
    return np.random.default_rng(0).standard_normal((side, side), np.float32) * np.float32(side**-0.5)


def processor() -> str:
    """The processor's name and the number of processors that this process may use."""
    names = []
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        names = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")]
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{count} x {names[0] if names else 'CPU'}"


def jax() -> dict[str, Callable[..., Any]]:
    """Peaks through XLA, on CPUs through NumPy's BLAS as well; and the floating-point operations of a workload."""
    import jax
    import jax.numpy as jnp

    from experiments.bench import jax_programs

    platform = "cpu" if jax.devices()[0].platform == "cpu" else "gpu"
    count = COPY[platform] // 4

    def multiply(side: int, dtype: str) -> Callable[[], object]:
        matrix = jnp.asarray(noise(side), dtype)
        product = jax.jit(lambda a, b: (a @ b).astype(dtype))

        def run() -> None:
            result = matrix
            for _ in range(CHAIN[platform]):
                result = product(result, matrix)
            jax.block_until_ready(result)

        return run

    def multiply_by_blas(side: int) -> Callable[[], object]:
        matrix, out = noise(side), np.empty((side, side), np.float32)
        return lambda: np.matmul(matrix, matrix, out=out)

    def matmul(dtype: str, seconds: float) -> float:
        best = matmul_rate(platform, partial(multiply, dtype=dtype), seconds)
        if platform == "cpu" and dtype == "float32":
            best = max(best, matmul_rate(platform, multiply_by_blas, seconds))
        return best

    def copy(seconds: float) -> float:
        array = jnp.zeros(count)
        touch = jax.jit(lambda x: x + 1, donate_argnums=0)  # in place: new pages would cost more than the copy

        def run() -> None:
            nonlocal array
            array = jax.block_until_ready(touch(array))

        return rate(run, 2 * 4 * count, seconds)

    return {
        "describe": lambda: {**jax_programs.device_names(), "processor": processor()},
        "matmul": matmul,
        "copy": copy,
        "flops": lambda **work: jax_programs.flax_step(Workload(**work))[1].flops(),
    }


def torch() -> dict[str, Callable[..., Any]]:
    """Peaks through PyTorch."""
    import torch

    torch.set_float32_matmul_precision("high")  # TF32 on GPUs
    gpu = torch.cuda.is_available()
    platform, on = ("gpu", "cuda") if gpu else ("cpu", "cpu")
    count = COPY[platform] // 4

    def waiting(run: Callable[[], object]) -> Callable[[], object]:
        return (lambda: (run(), torch.cuda.synchronize())) if gpu else run

    def multiply(side: int, dtype: str) -> Callable[[], object]:
        matrix = torch.from_numpy(noise(side)).to(on, getattr(torch, dtype))
        out = torch.empty_like(matrix)
        return waiting(lambda: [torch.matmul(matrix, matrix, out=out) for _ in range(CHAIN[platform])])

    def matmul(dtype: str, seconds: float) -> float:
        return matmul_rate(platform, partial(multiply, dtype=dtype), seconds)

    def copy(seconds: float) -> float:
        source = torch.zeros(count, device=on)
        target = torch.ones(count, device=on)
        return rate(waiting(lambda: target.copy_(source)), 2 * 4 * count, seconds)

    return {"matmul": matmul, "copy": copy}
