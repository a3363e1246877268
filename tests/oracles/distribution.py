"""Losses of each pixel's probability in float64, written from the formulas."""

from collections.abc import Callable

import numpy as np

from tests.helpers.float64 import Oracle, collect, groups, pixel_weights, sigmoid

Pixels = Callable[[np.ndarray, np.ndarray, np.ndarray], float]
"""A loss of one group: of its logits, masks and weights."""


def of_groups(loss: Pixels) -> Oracle:
    def grouped(z: np.ndarray, g: np.ndarray, weight: np.ndarray | None = None, reduce: str = "batch") -> np.ndarray:
        arrays = groups(reduce, z.astype(np.float64), g.astype(np.float64), pixel_weights(weight, z.shape))
        return collect(reduce, [loss(*group) for group in arrays])

    return grouped


def minus_log(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """-log p and -log(1 - p)."""
    return np.logaddexp(0, -z), np.logaddexp(0, z)


def cross_entropy(z: np.ndarray, g: np.ndarray) -> np.ndarray:
    true, false = minus_log(z)
    return g * true + (1 - g) * false


@of_groups
def bce(z, g, w):
    return np.average(cross_entropy(z, g), weights=w)


@of_groups
def weighted_bce(z, g, w):
    true, false = minus_log(z)
    return np.average(2 * g * true + (1 - g) * false, weights=w)


@of_groups
def balanced_bce(z, g, w):
    true, false = minus_log(z)
    b = np.average(1 - g, weights=w)
    if not (w * g).any() or not (w * (1 - g)).any():
        b = 0.5
    return np.average(b * g * true + (1 - b) * (1 - g) * false, weights=w)


@of_groups
def label_smoothing_bce(z, g, w):
    return np.average(cross_entropy(z, 0.9 * g + 0.05), weights=w)


@of_groups
def poly_bce(z, g, w):
    p = sigmoid(z)
    return np.average(cross_entropy(z, g) + 1 - (p * g + (1 - p) * (1 - g)), weights=w)


@of_groups
def topk_bce(z, g, w):
    """Takes weight from the largest downwards until a tenth of all is used up."""
    values = cross_entropy(z, g).ravel()
    order = np.argsort(-values)
    left, total = 0.1 * w.sum(), 0.0
    for value, weight in zip(values[order], w.ravel()[order], strict=True):
        taken = min(weight, left)
        total, left = total + taken * value, left - taken
    return total / (0.1 * w.sum())


@of_groups
def nacl(z, g, w):
    _, height, width, _ = g.shape
    prior = np.zeros_like(g)
    for i in range(height):
        for j in range(width):
            window = np.s_[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            counts = (w[window] != 0).astype(float)
            prior[:, i, j] = (counts * g[window]).sum((1, 2)) / np.maximum(counts.sum((1, 2)), 1)
    return np.average(cross_entropy(z, g) + 0.1 * np.abs(2 * prior - 1 - z) / 2, weights=w)


@of_groups
def focal(z, g, w):
    (true, false), p = minus_log(z), sigmoid(z)
    return np.average(0.25 * g * (1 - p) ** 2 * true + 0.75 * (1 - g) * p**2 * false, weights=w)


@of_groups
def normalized_focal(z, g, w):
    true, false = minus_log(z)
    log_of_true, log_of_false = np.log(w * g + 1e-300) - 2 * false, np.log(w * (1 - g) + 1e-300) - 2 * true
    largest = max(log_of_true.max(), log_of_false.max())  # cancels; without it all may underflow
    of_true, of_false = np.exp(log_of_true - largest), np.exp(log_of_false - largest)
    return (of_true * true + of_false * false).sum() / (of_true + of_false).sum()


@of_groups
def reduced_focal(z, g, w):
    (true, false), p = minus_log(z), sigmoid(z)
    of_true = np.where(p < 0.5, 1, ((1 - p) / 0.5) ** 2) * true
    of_false = np.where(1 - p < 0.5, 1, (p / 0.5) ** 2) * false
    return np.average(g * of_true + (1 - g) * of_false, weights=w)


@of_groups
def asymmetric_focal(z, g, w):
    (true, false), p = minus_log(z), sigmoid(z)
    return np.average(0.7 * g * true + 0.3 * (1 - g) * p**2 * false, weights=w)
