"""The losses once more, in float64 NumPy and SciPy, written from the formulas and on purpose slow and plain.

`ORACLES[name](logits, masks, weight, reduce)`; every entry of `LOSSES` needs one.
"""

import numpy as np
import oracle_distribution
import oracle_region
from float64 import Oracle, collect, groups, pixel_weights, sigmoid
from scipy.signal import convolve2d


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
    **oracle_distribution.ORACLES,
    **oracle_region.ORACLES,
    "ssim": ssim,
    "bce_dice": mean_of(oracle_distribution.bce, oracle_region.dice),
    "bce_jaccard": mean_of(oracle_distribution.bce, oracle_region.jaccard),
    "hybrid": mean_of(oracle_distribution.bce, ssim, oracle_region.jaccard),
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
