"""The library as a peer: its steps as the programs call them, its losses, and the peaks of this machine through XLA."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench import machine
from experiments.bench.workload import ADAM, LEARNING_RATE, Workload, images_and_masks, weights
from experiments.machine import keep_freed_memory
from jaxunet import TrainState, UNet
from jaxunet.losses import LOSSES
from jaxunet.sharding import global_batch, make_mesh, replicate
from jaxunet.step import compile_predict_step, compile_train_step


@dataclasses.dataclass
class CompiledStep:
    """A jitted step with its arguments.

    Attributes:
      work: the task.
      step: `(state, *inputs) -> (state, loss)`, or `-> probabilities`; the jitted function itself, so that its dispatch
        is timed as well.
      state: what a training step changes; for inference, the parameters.
      inputs: the other arguments, the same at each step.
      value: `(params, images, masks)` to the loss without dropout, or to the mean probability.
    """

    work: Workload
    step: Callable[..., Any]
    state: Any
    inputs: tuple[Any, ...]
    value: Callable[..., Any]

    @property
    def params(self) -> Any:
        """Those of the step: a second copy would count as its memory."""
        return self.state.params if self.work.task == "train" else self.state

    def run(self, steps: int) -> float | None:
        """Makes steps and waits for the last; returns its loss, None for inference."""
        result = None
        for _ in range(steps):
            result = self.step(self.state, *self.inputs)
            if self.work.task == "train":
                self.state, result = result
        jax.block_until_ready((self.state, result))
        if self.work.task == "predict":
            return None
        return float(result["loss"] if isinstance(result, dict) else result)  # type: ignore[arg-type]

    def compile(self) -> Any:
        """The optimised program; state and inputs may be shapes."""
        return self.step.lower(self.state, *self.inputs).compile()  # type: ignore[attr-defined]

    def memory(self) -> dict[str, int]:
        """Bytes of a step: the device's own peak, or the compiler's plan where the device does not count.

        The plan is arguments, results and temporaries, less the results that overwrite arguments. A process that
        compiles for a GPU may see more than that: trials of algorithms take memory too.
        """
        plan = self.compile().memory_analysis()
        parts = {
            "arguments": plan.argument_size_in_bytes,
            "results": plan.output_size_in_bytes,
            "temporaries": plan.temp_size_in_bytes,
            "aliases": -plan.alias_size_in_bytes,
        }
        planned = sum(parts.values())
        seen = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        return {"bytes": planned if seen is None else seen, "planned": planned, **parts}

    def flops(self) -> float:
        """Floating-point operations of a step, by XLA's own count of the program before optimisation, as on a CPU.

        XLA counts the body of a loop once, so a program with loops makes more.
        """
        lowered = self.step.trace(self.state, *self.inputs).lower(lowering_platforms=("cpu",))  # type: ignore[attr-defined]
        return (lowered.cost_analysis() or {}).get("flops", 0.0)

    def bytes_accessed(self) -> float | None:
        """Bytes that the operations of the optimised program read and write, by XLA's count (loop bodies once)."""
        return (self.compile().cost_analysis() or {}).get("bytes accessed")

    def trace(self, directory: str, steps: int) -> float:
        """Writes a profile of some steps and returns the seconds per step under the profiler."""
        with jax.profiler.trace(directory):
            start = time.perf_counter()
            for number in range(steps):
                with jax.profiler.StepTraceAnnotation(self.work.task, step_num=number):
                    self.run(1)
            return (time.perf_counter() - start) / steps

    def functions(self) -> dict[str, Callable[..., Any]]:
        """What a worker serves."""
        images, masks = images_and_masks(self.work)
        value = jax.jit(self.value)
        return {
            "describe": lambda: {**describe(), "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.params))},
            "value": lambda: float(value(self.params, images, masks)),
            "run": self.run,
            "memory": self.memory,
            "bytes_accessed": self.bytes_accessed,
            "program": lambda: self.compile().as_text(),
            "trace": self.trace,
        }


def value_of(work: Workload, apply_fn: Callable[..., Any], loss: Callable[..., Any]) -> Callable[..., Any]:
    """`CompiledStep.value` of a Flax network."""

    def value(params: Any, images: Any, masks: Any) -> Any:
        logits = apply_fn({"params": params}, images)
        return loss(logits, masks.astype(jnp.float32)) if work.task == "train" else jax.nn.sigmoid(logits).mean()

    return value


def describe() -> dict[str, Any]:
    """The first device, the number of devices and the version, for the report."""
    device = jax.devices()[0]
    version = f"jax {jax.__version__}"
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "version": version,
    }


def compiled_step(work: Workload, devices: int = 1) -> CompiledStep:
    """The library's step on the first devices, exactly as the training and prediction programs call it."""
    model = UNet(
        base_filters=work.base_filters,
        num_layers=work.num_layers,
        dropout_rate=work.dropout_rate,
        dtype=jnp.dtype(work.dtype),
    )
    mesh, tx = make_mesh(jax.devices()[:devices]), optax.adam(LEARNING_RATE, **ADAM)
    images, masks = images_and_masks(work)
    batch = global_batch({"image": images, "mask": masks, "weight": np.ones(work.batch, np.float32)}, mesh)
    params, loss = replicate(weights(work), mesh), LOSSES[work.loss].fn
    value = value_of(work, model.apply, loss)
    if work.task == "predict":
        step = compile_predict_step(mesh, apply_fn=model.apply)
        return CompiledStep(work, step, params, (batch["image"],), value)
    state = TrainState(jnp.zeros((), jnp.int32), params, jax.jit(tx.init)(params), apply_fn=model.apply, tx=tx)
    step = compile_train_step(mesh, loss=loss, seed=0)
    return CompiledStep(work, step, replicate(state, mesh), (batch,), value)


def serve(devices: int = 1, **arguments: Any) -> dict[str, Callable[..., Any]]:
    """The library's step on some devices; the other arguments are those of `Workload`."""
    keep_freed_memory()  # as all programs of this repository do
    return compiled_step(Workload(**arguments), devices).functions()


def serve_losses(size: int, batch: int) -> dict[str, Callable[..., Any]]:
    """The losses of the library, each compiled with its gradient."""
    keep_freed_memory()
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
        "describe": describe,
        "value": lambda loss: float(compiled[loss](logits, masks)[0]),
        "run": run,
        "temporary_bytes": temporary_bytes,
    }


def serve_peaks() -> dict[str, Callable[..., Any]]:
    """The machine's peaks through XLA, on CPUs through NumPy's BLAS as well."""
    platform = "cpu" if jax.devices()[0].platform == "cpu" else "gpu"
    count = machine.COPY[platform] // 4

    def multiply(side: int, dtype: str) -> Callable[[], object]:
        matrix = jnp.asarray(machine.noise(side), dtype)
        product = jax.jit(lambda a, b: (a @ b).astype(dtype))

        def run() -> None:
            result = matrix
            for _ in range(machine.CHAIN[platform]):
                result = product(result, matrix)
            jax.block_until_ready(result)

        return run

    def multiply_by_blas(side: int) -> Callable[[], object]:
        matrix, out = machine.noise(side), np.empty((side, side), np.float32)
        return lambda: np.matmul(matrix, matrix, out=out)

    def matmul(dtype: str, seconds: float) -> float:
        best = machine.matmul_rate(platform, partial(multiply, dtype=dtype), seconds)
        if platform == "cpu" and dtype == "float32":
            best = max(best, machine.matmul_rate(platform, multiply_by_blas, seconds))
        return best

    def copy(seconds: float) -> float:
        array = jnp.zeros(count)
        touch = jax.jit(lambda x: x + 1, donate_argnums=0)  # in place: new pages would cost more than the copy

        def run() -> None:
            nonlocal array
            array = jax.block_until_ready(touch(array))

        return machine.rate(run, 2 * 4 * count, seconds)

    return {"describe": lambda: {**describe(), "processor": machine.processor()}, "matmul": matmul, "copy": copy}
