"""Plain Flax: the network as a Flax user writes it, with `nn.Conv`, `nn.ConvTranspose`, `nn.max_pool` and optax."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from jax import Array, lax
from jax.typing import DTypeLike

from experiments.bench.peers.jaxunet import CompiledStep, value_of
from experiments.bench.workload import ADAM, LEARNING_RATE, SSIM, Weights, Workload, gaussian, images_and_masks, weights


class PlainUNet(nn.Module):
    """`jaxunet.UNet` in Flax's own layers; parameters have the same names."""

    base_filters: int
    num_layers: int
    dropout_rate: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Returns logits, float32 `[B, H, W, 1]`, of images `[B, H, W, 3]` with values 0..255."""
        x = images.astype(self.dtype) / 255
        skips = []
        for level in range(self.num_layers):
            x = self._convolutions(x, level, "encoder", train)
            skips.append(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = self._convolutions(x, self.num_layers, "encoder", train)
        for level in reversed(range(self.num_layers)):
            filters = self.base_filters * 2**level
            x = nn.ConvTranspose(filters, (2, 2), strides=(2, 2), dtype=self.dtype, name=f"decoder{level}_up")(x)
            x = jnp.concatenate([x, skips[level]], axis=-1)
            x = self._convolutions(x, level, "decoder", train)
        return nn.Conv(1, (1, 1), dtype=self.dtype, name="head")(x).astype(jnp.float32)

    def _convolutions(self, x: Array, level: int, path: str, train: bool) -> Array:
        for number in (1, 2):
            name = f"{path}{level}_conv{number}"
            init = nn.initializers.he_normal()
            x = nn.relu(nn.Conv(self.base_filters * 2**level, (3, 3), kernel_init=init, dtype=self.dtype, name=name)(x))
            if number == 1:
                x = nn.Dropout(self.dropout_rate * level, deterministic=not train)(x)
        return x


def to_flax(drawn: Weights) -> dict[str, dict[str, np.ndarray]]:
    """Returns weights in Flax's layout: the kernel of `nn.ConvTranspose` is flipped in both directions."""
    return {
        name: {**leaf, "kernel": leaf["kernel"][::-1, ::-1]} if name.endswith("_up") else leaf
        for name, leaf in drawn.items()
    }


def bce(logits: Array, masks: Array) -> Array:
    """Binary cross-entropy of optax."""
    return optax.sigmoid_binary_cross_entropy(logits, masks).mean()


def jaccard(probs: Array, masks: Array) -> Array:
    """One minus the soft Jaccard index of the batch."""
    overlap = (probs * masks).sum()
    return 1 - overlap / (probs.sum() + masks.sum() - overlap)


def ssim(x: Array, y: Array) -> Array:
    """One minus the structural similarity; its window is two convolutions."""
    maps = jnp.concatenate([x, y, x * x, y * y, x * y])
    window = jnp.asarray(gaussian())
    for kernel in (window[:, None, None, None], window[None, :, None, None]):
        maps = lax.conv_general_dilated(
            maps, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
        )
    mean_x, mean_y, square_x, square_y, product = jnp.split(maps, 5)
    luminance = (2 * mean_x * mean_y + SSIM["c1"]) / (mean_x**2 + mean_y**2 + SSIM["c1"])
    covariance, variances = product - mean_x * mean_y, square_x + square_y - mean_x**2 - mean_y**2
    return 1 - (luminance * (2 * covariance + SSIM["c2"]) / (variances + SSIM["c2"])).mean()


def hybrid(logits: Array, masks: Array) -> Array:
    """Mean of BCE, SSIM loss and Jaccard loss."""
    probs = nn.sigmoid(logits)
    return (bce(logits, masks) + ssim(probs, masks) + jaccard(probs, masks)) / 3


LOSSES = {"bce": bce, "hybrid": hybrid}


def train_step(state: TrainState, images: Array, masks: Array, key: Array, *, loss: str) -> tuple[TrainState, Array]:
    """One step of gradient descent; returns the state and the loss."""
    dropout = jax.random.fold_in(key, state.step)

    def objective(params: Any) -> Array:
        logits = state.apply_fn({"params": params}, images, train=True, rngs={"dropout": dropout})
        return LOSSES[loss](logits, masks.astype(jnp.float32))

    value, grads = jax.value_and_grad(objective)(state.params)
    return state.apply_gradients(grads=grads), value


def predict_step(params: Any, images: Array, *, apply_fn: Any) -> Array:
    """Returns probabilities."""
    return nn.sigmoid(apply_fn({"params": params}, images))


def compiled_step(work: Workload) -> CompiledStep:
    """The plain Flax network's step on the first device."""
    model = PlainUNet(work.base_filters, work.num_layers, work.dropout_rate, jnp.dtype(work.dtype))
    images, masks = map(jnp.asarray, images_and_masks(work))
    params = jax.tree.map(jnp.asarray, to_flax(weights(work)))
    value = value_of(work, model.apply, LOSSES[work.loss])
    if work.task == "predict":
        return CompiledStep(work, jax.jit(partial(predict_step, apply_fn=model.apply)), params, (images,), value)
    create = partial(TrainState.create, apply_fn=model.apply, tx=optax.adam(LEARNING_RATE, **ADAM))
    state = jax.jit(lambda params: create(params=params))(params)
    step = jax.jit(partial(train_step, loss=work.loss), donate_argnums=0)
    return CompiledStep(work, step, state, (images, masks, jax.random.key(0)), value)


def serve(**arguments: Any) -> dict[str, Callable[..., Any]]:
    """Plain Flax; the arguments are those of `Workload`."""
    return compiled_step(Workload(**arguments)).functions()


def serve_operations() -> dict[str, Callable[..., Any]]:
    """Counts floating-point operations: this network has no loops, whose bodies XLA would count once."""
    return {"flops": lambda **work: compiled_step(Workload(**work)).flops()}
