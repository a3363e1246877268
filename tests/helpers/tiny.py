"""Tiny networks, their training state and a batch of discs, made without compiling anything."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunet import TrainState


def batch(rows: int = 4, size: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
    """Bright discs in noise; the masks are the discs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    centres, radii = rng.uniform(0.3, 0.7, (rows, 2)) * size, rng.uniform(0.15, 0.25, rows) * size
    mask = (y - centres[:, :1, None]) ** 2 + (x - centres[:, 1:, None]) ** 2 < radii[:, None, None] ** 2
    image = rng.integers(0, 100, (rows, size, size, 3)) + 120 * mask[..., None]
    return {
        "image": image.astype(np.uint8),
        "mask": mask[..., None].astype(np.uint8),
        "weight": np.ones(rows, np.float32),
        "patient": np.zeros(rows, np.int32),
        "slice": np.zeros(rows, np.int32),
    }


class Pixelwise(nn.Module):
    """Two layers on each pixel alone: compiled in a moment, where it does not matter what the network is."""

    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Logits, `[B, H, W, 1]`."""
        x = nn.relu(nn.Dense(16)(images.astype(jnp.float32) / 255))
        return nn.Dense(1)(nn.Dropout(self.dropout_rate, deterministic=not train)(x))


def params(model: nn.Module, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """He-normal kernels drawn by NumPy and small biases: initialising through JAX takes seconds of compilation."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.01
        return rng.normal(scale=scale, size=leaf.shape).astype(np.float32)

    return jax.tree.map(draw, shapes)


def state(model: nn.Module, tx: optax.GradientTransformation, seed: int = 0) -> TrainState:
    """A state at step zero, in arrays of its own each time, because a step consumes its state."""
    drawn = jax.tree.map(jnp.array, params(model, seed))
    return TrainState(jnp.zeros((), jnp.int32), drawn, tx.init(drawn), apply_fn=model.apply, tx=tx)


def travelling(program: str) -> int:
    """Elements of the largest array that a compiled program sends between devices other than to add it up."""
    sent = re.findall(r"= \(?\w+\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute)(?:-start)?\(", program)
    return max((int(np.prod([int(n) for n in shape.split(",") if n])) for shape in sent), default=0)
