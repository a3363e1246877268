"""Losses of local structure in float64, written from the formulas."""

import numpy as np
from scipy.ndimage import maximum_filter, minimum_filter
from scipy.signal import convolve2d

from tests.helpers.float64 import collect, groups, pixel_weights, sigmoid

CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)


def similarity_maps(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Luminance, and contrast times structure, of two `[H, W]` images in all 11x11 windows inside."""
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()

    def blur(a: np.ndarray) -> np.ndarray:
        return convolve2d(a, window, mode="valid")

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, covariance = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance, (2 * covariance + c2) / (var_x + var_y + c2)


def smallest_in_windows(weight: np.ndarray) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(weight, (11, 11)).min((2, 3))


def ssim(z: np.ndarray, g: np.ndarray, weight: np.ndarray | None = None, reduce: str = "batch") -> np.ndarray:
    values = []
    for p, m, w in groups(reduce, sigmoid(z), g.astype(np.float64), pixel_weights(weight, z.shape)):
        total = counted = 0.0
        for i, k in np.ndindex(len(p), p.shape[3]):
            luminance, contrast = similarity_maps(p[i, :, :, k], m[i, :, :, k])
            smallest = smallest_in_windows(w[i, :, :, k])
            total += (smallest * luminance * contrast).sum()
            counted += smallest.sum()
        values.append(1 - total / counted)
    return collect(reduce, values)


def halve(image: np.ndarray, summary=np.mean) -> np.ndarray:
    rows, columns = image.shape[0] // 2, image.shape[1] // 2
    return np.array(
        [[summary(image[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]) for j in range(columns)] for i in range(rows)]
    )


def ms_ssim_of(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> float:
    powers = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]
    powers = powers[: sum(min(x.shape) // 2**scale >= 11 for scale in range(5))]
    product = 1.0
    for scale, power in enumerate(powers):
        if scale:
            x, y, weight = halve(x), halve(y), halve(weight, np.min)
        luminance, contrast = similarity_maps(x, y)
        maps = luminance * contrast if scale == len(powers) - 1 else contrast
        smallest = smallest_in_windows(weight)
        similarity = (smallest * maps).sum() / smallest.sum() if smallest.any() else 1.0
        product *= (similarity if similarity >= 1e-3 else 1e-6 / (2e-3 - similarity)) ** (power / sum(powers))
    return product


def ms_ssim(z: np.ndarray, g: np.ndarray, weight: np.ndarray | None = None, reduce: str = "batch") -> np.ndarray:
    values = []
    for p, m, w in groups(reduce, sigmoid(z), g.astype(np.float64), pixel_weights(weight, z.shape)):
        images = list(np.ndindex(len(p), p.shape[3]))
        similarity = [ms_ssim_of(p[i, :, :, k], m[i, :, :, k], w[i, :, :, k]) for i, k in images]
        counted = [smallest_in_windows(w[i, :, :, k]).mean() for i, k in images]
        values.append(1 - np.average(similarity, weights=counted))
    return collect(reduce, values)


def skeleton(image: np.ndarray) -> np.ndarray:
    """Soft skeleton of `[H, W]` after three erosions."""
    joined = np.zeros_like(image)
    for _ in range(4):
        eroded = minimum_filter(image, footprint=CROSS, mode="constant", cval=np.inf)
        opened = maximum_filter(eroded, size=3, mode="constant", cval=-np.inf)
        ridges = np.maximum(image - opened, 0)
        joined = joined + ridges - joined * ridges
        image = eroded
    return joined


def cl_dice(z: np.ndarray, g: np.ndarray, weight: np.ndarray | None = None, reduce: str = "batch") -> np.ndarray:
    values = []
    for p, m, w in groups(reduce, sigmoid(z), g.astype(np.float64), pixel_weights(weight, z.shape)):
        p, m = p * (w > 0), m * (w > 0)
        of_p, of_m = np.zeros_like(p), np.zeros_like(m)
        for i, k in np.ndindex(len(p), p.shape[3]):
            of_p[i, :, :, k], of_m[i, :, :, k] = skeleton(p[i, :, :, k]), skeleton(m[i, :, :, k])
        precision = ((w * of_p * m).sum() + 1) / ((w * of_p).sum() + 1)
        sensitivity = ((w * of_m * p).sum() + 1) / ((w * of_m).sum() + 1)
        values.append(1 - 2 / (1 / precision + 1 / sensitivity))
    return collect(reduce, values)
