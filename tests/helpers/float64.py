"""What the oracles of the losses are written with: weights, groups and the sigmoid in float64."""

from collections.abc import Callable

import numpy as np

Oracle = Callable[[np.ndarray, np.ndarray, np.ndarray | None, str], np.ndarray]


def sigmoid(z: np.ndarray) -> np.ndarray:
    z = z.astype(np.float64)
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1, small) / (1 + small)


def pixel_weights(weight: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    if weight is None:
        return np.ones(shape)
    weight = np.asarray(weight, np.float64)
    return np.broadcast_to(weight.reshape(-1, 1, 1, 1) if weight.ndim == 1 else weight, shape)


def groups(reduce: str, *arrays: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """The sets of pixels that get a loss of their own: the batch, or each image."""
    if reduce == "batch":
        return [arrays]
    return [tuple(a[i : i + 1] for a in arrays) for i in range(len(arrays[0]))]


def collect(reduce: str, values: list[float]) -> np.ndarray:
    return np.array(values[0] if reduce == "batch" else values)
