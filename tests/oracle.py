"""The losses once more, in float64 NumPy and SciPy, written from the formulas and on purpose slow and plain.

`ORACLES[name](logits, masks, weight, reduce)`; every entry of `LOSSES` needs one.
"""

from collections.abc import Callable

import numpy as np
from scipy.signal import convolve2d

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


def bce(z: np.ndarray, g: np.ndarray, weight: np.ndarray | None = None, reduce: str = "batch") -> np.ndarray:
    z, g = z.astype(np.float64), g.astype(np.float64)
    entropy = g * np.logaddexp(0, -z) + (1 - g) * np.logaddexp(0, z)
    return collect(
        reduce, [np.average(e, weights=w) for e, w in groups(reduce, entropy, pixel_weights(weight, z.shape))]
    )


def dice(
    z: np.ndarray, g: np.ndarray, weight: np.ndarray | None = None, reduce: str = "batch", smooth: float = 1.0
) -> np.ndarray:
    values = []
    for p, m, w in groups(reduce, sigmoid(z), g.astype(np.float64), pixel_weights(weight, z.shape)):
        true_positive, false_positive, false_negative = (
            (w * p * m).sum(),
            (w * p * (1 - m)).sum(),
            (w * (1 - p) * m).sum(),
        )
        values.append(1 - (2 * true_positive + smooth) / (2 * true_positive + false_positive + false_negative + smooth))
    return collect(reduce, values)


def jaccard(
    z: np.ndarray, g: np.ndarray, weight: np.ndarray | None = None, reduce: str = "batch", smooth: float = 0.0
) -> np.ndarray:
    values = []
    for p, m, w in groups(reduce, sigmoid(z), g.astype(np.float64), pixel_weights(weight, z.shape)):
        true_positive, false_positive, false_negative = (
            (w * p * m).sum(),
            (w * p * (1 - m)).sum(),
            (w * (1 - p) * m).sum(),
        )
        s = smooth if (w * m).any() else max(smooth, 1.0)
        values.append(1 - (true_positive + s) / (true_positive + false_positive + false_negative + s))
    return collect(reduce, values)


def ssim_of(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Weighted mean SSIM of two `[H, W]` images over all 11x11 windows inside, and the sum of the window weights."""
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()

    def blur(a: np.ndarray) -> np.ndarray:
        return convolve2d(a, window, mode="valid")

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, covariance = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    similarity = luminance * (2 * covariance + c2) / (var_x + var_y + c2)
    smallest = np.lib.stride_tricks.sliding_window_view(weight, (11, 11)).min((2, 3))
    return float((smallest * similarity).sum()), float(smallest.sum())


def ssim(z: np.ndarray, g: np.ndarray, weight: np.ndarray | None = None, reduce: str = "batch") -> np.ndarray:
    values = []
    for p, m, w in groups(reduce, sigmoid(z), g.astype(np.float64), pixel_weights(weight, z.shape)):
        parts = [ssim_of(p[i, :, :, k], m[i, :, :, k], w[i, :, :, k]) for i in range(len(p)) for k in range(p.shape[3])]
        total, counted = np.sum(parts, axis=0)
        values.append(1 - total / counted)
    return collect(reduce, values)


def mean_of(*terms: Oracle) -> Oracle:
    def mean(z: np.ndarray, g: np.ndarray, weight: np.ndarray | None = None, reduce: str = "batch") -> np.ndarray:
        return np.mean([term(z, g, weight, reduce) for term in terms], axis=0)

    return mean


ORACLES: dict[str, Oracle] = {
    "bce": bce,
    "dice": dice,
    "jaccard": jaccard,
    "ssim": ssim,
    "bce_dice": mean_of(bce, dice),
    "bce_jaccard": mean_of(bce, jaccard),
    "hybrid": mean_of(bce, ssim, jaccard),
}

# Relative tolerance of the value in float32, then absolute: one minus a share has the rounding of one, and SSIM divides
# differences of nearly equal numbers.
VALUE_TOLERANCE: dict[str, tuple[float, float]] = {
    "bce": (1e-6, 0),
    "dice": (2e-6, 3e-7),
    "jaccard": (2e-6, 3e-7),
    "ssim": (0, 1e-5),
    "bce_dice": (2e-6, 3e-7),
    "bce_jaccard": (2e-6, 3e-7),
    "hybrid": (0, 1e-5),
}
OTHER_VALUE_TOLERANCE = (1e-5, 1e-6)

# The same of the gradient, against the gradient in float64.
GRADIENT_TOLERANCE: dict[str, tuple[float, float]] = {
    "bce": (1e-5, 1e-13),
    "dice": (1e-4, 1e-9),
    "jaccard": (1e-4, 1e-9),
    "ssim": (1e-3, 5e-6),
    "bce_dice": (1e-4, 1e-9),
    "bce_jaccard": (1e-4, 1e-9),
    "hybrid": (1e-3, 5e-6),
}
OTHER_GRADIENT_TOLERANCE = (1e-3, 1e-7)

# Losses whose derivatives are compared to second order; the others to first order.
SMOOTH = ("bce", "dice", "jaccard", "ssim", "bce_dice", "bce_jaccard", "hybrid")
