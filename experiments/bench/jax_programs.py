"""Two contenders in JAX: the library itself, as its programs call it, and the same network in plain Flax."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.allocator import keep_freed_memory
from experiments.bench import flax_unet
from experiments.bench.hlo import Module
from experiments.bench.workload import ADAM, LEARNING_RATE, Workload, images_and_masks, weights
from jaxunet import TrainState, UNet
from jaxunet.losses import LOSSES
from jaxunet.sharding import global_batch, make_mesh, replicate
from jaxunet.step import compile_predict_step, compile_train_step


@dataclasses.dataclass
class Compiled:
    """A jitted step and what it is called with.

    Attributes:
      step: `(state, *inputs) -> (state, loss)`, the jitted function itself: its dispatch is timed as well.
      state: what a step changes; the parameters where it changes nothing.
      inputs: what stays.
      loss: of the last step.
    """

    step: Callable[..., Any]
    state: Any
    inputs: tuple[Any, ...]
    loss: Any = None

    def train(self, steps: int) -> float:
        """Makes training steps and waits for the last; returns its loss."""
        for _ in range(steps):
            self.state, self.loss = self.step(self.state, *self.inputs)
        jax.block_until_ready(self.state)
        return float(self.loss["loss"] if isinstance(self.loss, dict) else self.loss)

    def predict(self, steps: int) -> None:
        """Predicts the batch several times and waits for the last."""
        for _ in range(steps):
            probabilities = self.step(self.state, *self.inputs)
        jax.block_until_ready(probabilities)

    def compile(self) -> Any:
        """The optimised program; state and inputs may be shapes."""
        return self.step.lower(self.state, *self.inputs).compile()  # type: ignore[attr-defined]

    def memory(self) -> dict[str, int]:
        """Bytes of a step: what the device saw at most, or what the compiler planned where the device does not count.

        The plan is arguments, results and temporaries, less the results that overwrite arguments. A process that
        compiles for a GPU may see more than that: trials of algorithms take memory too.
        """
        parts = planned(self.compile())
        seen = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        return {"bytes": parts["planned"] if seen is None else seen, **parts}

    def flops(self) -> float:
        """Floating-point operations of a step, by XLA's own count of the program before optimisation, as on a CPU.

        It takes the body of a loop once, so it is short of the operations of a program with loops.
        """
        lowered = self.step.trace(self.state, *self.inputs).lower(lowering_platforms=("cpu",))  # type: ignore[attr-defined]
        return (lowered.cost_analysis() or {}).get("flops", 0.0)

    def bytes_accessed(self) -> int:
        """Bytes that the operations of the optimised program read and write, each as often as it runs.

        XLA's own count takes the body of a loop once, however often it runs.
        """
        return Module(self.hlo()).total_bytes()

    def hlo(self) -> str:
        """The optimised program as text."""
        return self.compile().as_text()


def planned(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of a program on one device, as the compiler planned them, and what they are made of."""
    plan: Any = compiled.memory_analysis()
    parts = {
        "arguments": plan.argument_size_in_bytes,
        "results": plan.output_size_in_bytes,
        "temporaries": plan.temp_size_in_bytes,
        "aliases": -plan.alias_size_in_bytes,
    }
    return {"planned": sum(parts.values()), **parts}


def parameters(tree: Any) -> int:
    """Number of elements of a tree's leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def device_names() -> dict[str, str]:
    """The first device and the versions, for the report."""
    device = jax.devices()[0]
    return {"platform": device.platform, "device": device.device_kind, "version": f"jax {jax.__version__}"}


def jaxunet_step(work: Workload, devices: int = 1) -> tuple[UNet, Compiled]:
    """The library's own step on the first devices, exactly as the training and prediction programs call it."""
    model = UNet(
        base_filters=work.base_filters,
        num_layers=work.num_layers,
        dropout_rate=work.dropout_rate,
        dtype=jnp.dtype(work.dtype),
    )
    mesh, tx = make_mesh(jax.devices()[:devices]), optax.adam(LEARNING_RATE, **ADAM)
    images, masks = images_and_masks(work)
    batch = global_batch({"image": images, "mask": masks, "weight": np.ones(work.batch, np.float32)}, mesh)
    params = replicate(weights(work), mesh)
    if work.task == "predict":
        return model, Compiled(compile_predict_step(mesh, apply_fn=model.apply), params, (batch["image"],))
    state = TrainState(jnp.zeros((), jnp.int32), params, jax.jit(tx.init)(params), apply_fn=model.apply, tx=tx)
    step = compile_train_step(mesh, loss=LOSSES[work.loss].fn, seed=0)
    return model, Compiled(step, replicate(state, mesh), (batch,))


def jaxunet(**arguments: Any) -> dict[str, Callable[..., Any]]:
    """The library; the arguments are those of `Workload`."""
    keep_freed_memory()  # as all programs here do
    work = Workload(**arguments)
    model, compiled = jaxunet_step(work)
    return _functions(work, model, compiled, LOSSES[work.loss].fn)


def flax_step(work: Workload) -> tuple[flax_unet.PlainUNet, Compiled]:
    """The plain Flax network's step on the first device."""
    model = flax_unet.PlainUNet(work.base_filters, work.num_layers, work.dropout_rate, jnp.dtype(work.dtype))
    images, masks = map(jnp.asarray, images_and_masks(work))
    params = jax.tree.map(jnp.asarray, flax_unet.to_flax(weights(work)))
    if work.task == "predict":
        return model, Compiled(jax.jit(partial(flax_unet.predict_step, apply_fn=model.apply)), params, (images,))
    create = partial(flax_unet.TrainState.create, apply_fn=model.apply, tx=optax.adam(LEARNING_RATE, **ADAM))
    state = jax.jit(lambda params: create(params=params))(params)
    step = jax.jit(partial(flax_unet.train_step, loss=work.loss), donate_argnums=0)
    return model, Compiled(step, state, (images, masks, jax.random.key(0)))


def flax(**arguments: Any) -> dict[str, Callable[..., Any]]:
    """Plain Flax; the arguments are those of `Workload`."""
    work = Workload(**arguments)
    model, compiled = flax_step(work)
    return _functions(work, model, compiled, flax_unet.LOSSES[work.loss])


def _functions(
    work: Workload, model: Any, compiled: Compiled, loss: Callable[..., Any]
) -> dict[str, Callable[..., Any]]:
    images, masks = images_and_masks(work)

    def params() -> Any:  # those of the step: a second copy would count as memory of it
        return compiled.state.params if work.task == "train" else compiled.state

    @jax.jit
    def value(params: Any, images: Any, masks: Any) -> Any:
        logits = model.apply({"params": params}, images)
        return loss(logits, masks.astype(jnp.float32)) if work.task == "train" else jax.nn.sigmoid(logits).mean()

    return {
        "describe": lambda: {**device_names(), "parameters": parameters(params())},
        "value": lambda: float(value(params(), images, masks)),
        "run": compiled.train if work.task == "train" else compiled.predict,
        "memory": compiled.memory,
        "flops": compiled.flops,
        "bytes_accessed": compiled.bytes_accessed,
    }
