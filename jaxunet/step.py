"""The pure steps of training, evaluation and prediction, and the one place where they are compiled.

A step receives a model, an optimizer and a loss, never names or files. All randomness is a function of (seed, step), so
no random state is stored and a resumed run repeats the uninterrupted one.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array, lax
from jax.sharding import Mesh

from jaxunet.accumulate import accumulated
from jaxunet.augment import Augment, augment_batch
from jaxunet.compiler import compiler_options
from jaxunet.metrics import PixelSums, pixel_sums
from jaxunet.sharding import replicated, split_largest_axes, split_rows

Batch = Mapping[str, Any]
Loss = Callable[..., Array]
Measure = Callable[..., Any]


class TrainState(struct.PyTreeNode):
    """The state that training changes.

    Attributes:
      step: int32 scalar, finished training steps.
      params: the network's parameters, float32.
      opt_state: the optimizer's state.
      apply_fn: the network's `apply`, static.
      tx: the optimizer, static.
    """

    step: Array
    params: Any
    opt_state: optax.OptState
    apply_fn: Callable[..., Any] = struct.field(pytree_node=False)
    tx: optax.GradientTransformation = struct.field(pytree_node=False)


def init_state(
    model: nn.Module, tx: optax.GradientTransformation, *, seed: int, image_shape: tuple[int, int, int]
) -> TrainState:
    """Initialises parameters and optimizer.

    Args:
      model: the network.
      tx: the optimizer.
      seed: of the parameters; the same seed gives the same parameters on any number of devices.
      image_shape: `(H, W, C)` of one image.

    Returns:
      The state at step 0.

    Raises:
      ValueError: called inside another `jit` or transformation; use `abstract_state` for the shapes.
    """
    return _initialiser(model, tx, image_shape)(jax.random.key(seed))


def abstract_state(
    model: nn.Module, tx: optax.GradientTransformation, *, image_shape: tuple[int, int, int]
) -> TrainState:
    """`init_state` with shapes and dtypes instead of arrays, without computing: what a checkpoint is restored to."""
    return _initialiser(model, tx, image_shape).eval_shape(jax.random.key(0))


@lru_cache(maxsize=1)  # shapes and values of one state share a trace, which takes a second
def _initialiser(model: nn.Module, tx: optax.GradientTransformation, image_shape: tuple[int, int, int]) -> Any:
    def init(key: Array) -> TrainState:
        params = model.init(key, jnp.zeros((1, *image_shape), jnp.uint8))["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params), apply_fn=model.apply, tx=tx
        )

    return jax.jit(init, compiler_options=compiler_options(jax.default_backend()))


def train_step(
    state: TrainState, batch: Batch, *, loss: Loss, seed: int, accumulate: int = 1, augment: Augment | None = None
) -> tuple[TrainState, dict[str, Any]]:
    """One step of gradient descent on the global batch.

    If the loss or a gradient is not finite, the state stays exactly as it was, including its step count.

    Args:
      state: parameters and optimizer.
      batch: `"image"` uint8 `[B, H, W, C]`, `"mask"` uint8 `[B, H, W, K]` in {0, 1}, `"weight"` float32 `[B]`. Or, for
        the first two, `"row"` int32 `[B]` and `"pixels"`, which has them for `[N, ...]` slices: see `take_rows`.
      loss: `(logits, masks, *, weight)`, or a plain `(logits, masks)`, to a scalar over the global batch. One that
        takes `patient` is passed the batch's patient index, one that takes `step` the number of finished steps.
      seed: of dropout and augmentation, which depend on (seed, step) only.
      accumulate: number of microbatches, computed one after the other; the loss is the mean of their losses, see
        `jaxunet.accumulate`.
      augment: changes each sample, see `jaxunet.augment`; None changes nothing and leaves images uint8.

    Returns:
      The new state, and `"loss"`, `"grad_norm"`, `"finite"` (scalars) and `"sums"` (`PixelSums`, one row per image).
    """
    loss = with_context(loss)

    def gradient(batch: Batch, dropout: Array) -> tuple[tuple[Array, PixelSums], Any]:
        def objective(params: Any) -> tuple[Array, Array]:
            logits = state.apply_fn({"params": params}, batch["image"], train=True, rngs={"dropout": dropout})
            return loss(
                logits, batch["mask"], weight=batch["weight"], patient=batch.get("patient"), step=state.step
            ), logits

        (value, logits), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        return (value, pixel_sums(logits, batch["mask"], weight=batch["weight"])), grads

    batch = take_rows(batch)
    if augment is not None:
        batch = augment_batch(augment, batch, seed=seed, step=state.step)
    dropout = jax.random.fold_in(jax.random.key(seed), state.step)
    (value, sums), grads = accumulated(gradient, accumulate)(batch, dropout)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)
    state = lax.platform_dependent(finite, state, grads, cpu=_update_by_branch, default=_update_by_selection)
    return state, {"loss": value, "grad_norm": grad_norm, "finite": finite, "sums": sums}


def _update(state: TrainState, grads: Any) -> TrainState:
    updates, opt_state = state.tx.update(grads, state.opt_state, state.params)
    return state.replace(step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state)


def _update_by_branch(finite: Array, state: TrainState, grads: Any) -> TrainState:
    """On a CPU five times faster than selecting every number; a GPU would wait for the host to branch."""
    return lax.cond(finite, _update, lambda state, grads: state, state, grads)


def _update_by_selection(finite: Array, state: TrainState, grads: Any) -> TrainState:
    return jax.tree.map(partial(jnp.where, finite), _update(state, grads), state)


def eval_step(
    params: Any,
    batch: Batch,
    step: Array | int = 0,
    *,
    apply_fn: Callable[..., Any],
    loss: Loss,
    rows: int,
    measure: Measure = pixel_sums,
) -> tuple[Array, Any]:
    """Loss and measurements of one batch, without dropout.

    Args:
      params: the network's parameters.
      batch: as in `train_step`; rows of weight 0, at the end of the batch, are padding.
      step: finished training steps, for a loss whose weights follow a schedule.
      apply_fn: the network's `apply`.
      loss: as in `train_step`; one without `weight` is passed the first `rows` rows only.
      rows: number of rows that are not padding, static.
      measure: `(logits, masks, *, weight)` to any arrays. By default `PixelSums` at a threshold of one half, one row
        per image, zero for padding.

    Returns:
      The loss, a scalar, and the result of `measure`.
    """
    batch = take_rows(batch)
    logits = apply_fn({"params": params}, batch["image"])
    value = with_context(loss, rows)(
        logits, batch["mask"], weight=batch["weight"], patient=batch.get("patient"), step=step
    )
    return value, measure(logits, batch["mask"], weight=batch["weight"])


def predict_step(params: Any, images: Array, *, apply_fn: Callable[..., Any]) -> Array:
    """Probabilities, float32 `[B, H, W, K]`, of images `[B, H, W, C]` with values 0..255."""
    return jax.nn.sigmoid(apply_fn({"params": params}, images))


def with_context(loss: Loss, rows: int | None = None) -> Loss:
    """Wraps a loss as `(logits, masks, *, weight, patient, step)`; it is passed only the arguments that it takes.

    A plain `(logits, masks)` loss cannot exclude padding, so it is passed the first `rows` rows only (all if None), and
    masks as floats: in uint8, `2 * masks - 1` would be 255 where the mask is 0.
    """
    taken = {"weight", "patient", "step"} & inspect.signature(loss).parameters.keys()

    def call(logits: Array, masks: Array, **context: Any) -> Array:
        if "weight" not in taken:
            logits, masks = logits[:rows], masks[:rows].astype(logits.dtype)
            context["patient"] = None if context.get("patient") is None else context["patient"][:rows]
        return loss(logits, masks, **{name: context.get(name) for name in taken})

    return call


def take_rows(batch: Batch) -> Batch:
    """Replaces row indices by their images and masks; a batch that has these is returned unchanged.

    Args:
      batch: with `"row"` int32 `[B]`, within `[0, N)`, and `"pixels"`, `{"image": [N, H, W, C], "mask": [N, H, W, K]}`:
        slices that stay on the device, so that a step receives 4 bytes per image.
    """
    if "pixels" not in batch:
        return batch
    rest = {name: value for name, value in batch.items() if name not in ("row", "pixels")}
    return rest | {name: value[batch["row"]] for name, value in batch["pixels"].items()}


def state_sharding(state: TrainState, mesh: Mesh, *, split_optimizer: bool) -> TrainState:
    """Sharding of each array of a train state: a copy on every device, or the optimizer's arrays divided among them.

    Dividing changes values only by the order of sums. Adam's moments, twice the size of the parameters, then take 1/D
    of their memory on each of D devices, and each device computes 1/D of the update.

    Args:
      state: arrays or shapes.
      mesh: the devices.
      split_optimizer: divide the optimizer's arrays.

    Returns:
      The state with a `NamedSharding` for each array.

    Source: Rajbhandari et al. 2020, arXiv 1910.02054 (ZeRO, stage 1).
    """
    whole = jax.tree.map(lambda _: replicated(mesh), state)
    return whole.replace(opt_state=split_largest_axes(state.opt_state, mesh)) if split_optimizer else whole


def compile_train_step(
    mesh: Mesh,
    *,
    loss: Loss,
    seed: int,
    accumulate: int = 1,
    augment: Augment | None = None,
    state_sharding: TrainState | None = None,
    batch_sharding: Mapping[str, Any] | None = None,
) -> jax.stages.Wrapped:
    """Compiles `train_step` over the mesh, as a function of `(state, batch)`; the state is donated.

    Args:
      mesh: the devices.
      loss: this and the next three arguments as in `train_step`.
      seed: see there.
      accumulate: see there.
      augment: see there.
      state_sharding: from `state_sharding`; None: a copy on every device. Metrics are copied to every device.
      batch_sharding: from `jaxunet.sharding.batch_sharding`, for a batch of row indices; None: all of it is split.
    """
    state = replicated(mesh) if state_sharding is None else state_sharding
    batch = split_rows(mesh) if batch_sharding is None else batch_sharding
    return jax.jit(
        partial(train_step, loss=loss, seed=seed, accumulate=accumulate, augment=augment),
        in_shardings=(state, batch),
        out_shardings=(state, replicated(mesh)),
        donate_argnums=0,
        compiler_options=_options(mesh),
    )


def compile_eval_step(
    mesh: Mesh,
    *,
    apply_fn: Callable[..., Any],
    loss: Loss,
    measure: Measure = pixel_sums,
    batch_sharding: Mapping[str, Any] | None = None,
) -> Callable[..., tuple[Array, Any]]:
    """Compiles `eval_step` over the mesh, as a function of `(params, batch, step=0, *, rows)`.

    A loss that takes `weight` compiles once; a plain one compiles again for a last batch with padding. `batch_sharding`
    as in `compile_train_step`.
    """
    batch = split_rows(mesh) if batch_sharding is None else batch_sharding
    weighted = "weight" in inspect.signature(loss).parameters
    evaluate = partial(eval_step, apply_fn=apply_fn, loss=loss, measure=measure)
    compiled = jax.jit(
        lambda params, batch, step, rows: evaluate(params, batch, step, rows=rows),
        in_shardings=(replicated(mesh), batch, replicated(mesh)),
        out_shardings=replicated(mesh),
        static_argnums=3,
        compiler_options=_options(mesh),
    )
    return lambda params, batch, step=0, *, rows: compiled(params, batch, step, 0 if weighted else rows)


def compile_predict_step(mesh: Mesh, *, apply_fn: Callable[..., Any]) -> Callable[[Any, Array], Array]:
    """Compiles `predict_step` over the mesh, as a function of `(params, images)`; images and result are split."""
    return jax.jit(
        partial(predict_step, apply_fn=apply_fn),
        in_shardings=(replicated(mesh), split_rows(mesh)),
        out_shardings=split_rows(mesh),
        compiler_options=_options(mesh),
    )


def _options(mesh: Mesh) -> dict[str, str] | None:
    return compiler_options(mesh.devices.flat[0].platform)
