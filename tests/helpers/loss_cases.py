"""Logits and masks that the tests of the losses share, and each loss compiled once for their shape."""

import functools

import jax
import numpy as np

from jaxunet.losses import LOSSES

SHAPE = (2, 16, 18, 2)


def cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Logits and masks by name, all of one shape."""
    rng = np.random.default_rng(0)
    noise = rng.normal(scale=2, size=SHAPE)
    rows, columns = np.mgrid[: SHAPE[1], : SHAPE[2]]
    blob = np.broadcast_to(((rows - 8) ** 2 + (columns - 9) ** 2 < 25)[None, :, :, None], SHAPE)
    one = np.zeros(SHAPE)
    one[0, 5, 7, 0] = 1
    mask = rng.random(SHAPE) < 0.3
    error = (rng.permutation(noise.size).reshape(SHAPE) + 0.5) / noise.size  # no two alike: a step crosses no tie
    pairs = {
        "random": (noise, mask),
        "spread": (np.log(error / (1 - error)) * (1 - 2 * mask), mask),
        "blob": (noise + 6 * blob - 3, blob),
        "soft mask": (noise, rng.random(SHAPE)),
        "empty": (noise - 3, np.zeros(SHAPE)),
        "full": (noise, np.ones(SHAPE)),
        "one pixel": (noise, one),
        "confident": (noise + 12 * (2 * blob - 1), blob),
        "perfect": (20.0 * (2 * blob - 1), blob),
        "inverse": (-20.0 * (2 * blob - 1), blob),
    }
    return {name: (z.astype(np.float32), np.asarray(g, np.float32)) for name, (z, g) in pairs.items()}


CASES = cases()


@functools.cache
def program(name: str):
    """Value, gradient and values of the images: compiled once for a loss, with a weight a pixel."""

    def run(z, g, weight):
        loss = functools.partial(LOSSES[name].fn, weight=weight)
        return *jax.value_and_grad(loss)(z, g), loss(z, g, reduce="image")

    return jax.jit(run)


def compiled(name: str):
    """The loss as a function `(z, g, weight=None, reduce="batch")`."""

    def run(z, g, weight=None, reduce="batch"):
        weight = np.ones(len(z), np.float32) if weight is None else np.asarray(weight, np.float32)
        if weight.ndim == 1:
            weight = np.broadcast_to(weight[:, None, None, None], (*np.shape(z)[:3], 1))
        value, _, of_images = program(name)(z, np.asarray(g, np.float32), weight)
        return value if reduce == "batch" else of_images

    return run


def gradient(name: str):
    """Its gradient, as a function `(z, g)`."""
    return lambda z, g: program(name)(z, np.asarray(g, np.float32), np.ones((*np.shape(z)[:3], 1), np.float32))[1]
