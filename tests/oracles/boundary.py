"""Losses of the distance to a boundary in float64, written from the formulas, with SciPy's distance transform."""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt, minimum_filter

from tests.helpers.float64 import Oracle, collect, groups, pixel_weights, sigmoid

CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)


def of_each_image(one: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    """Applies a function of `[H, W]` to every image and channel of `[B, H, W, K]`."""
    result = np.zeros(images.shape)
    for i, k in np.ndindex(len(images), images.shape[3]):
        result[i, :, :, k] = one(images[i, :, :, k])
    return result


def level_set(image: np.ndarray) -> np.ndarray:
    mask = image > 0.5
    if not mask.any():
        return np.ones(mask.shape)
    if mask.all():
        return np.zeros(mask.shape)
    return distance_transform_edt(~mask) - np.maximum(distance_transform_edt(mask) - 1, 0)


def distance_field(image: np.ndarray) -> np.ndarray:
    mask = image > 0.5
    if mask.all() or not mask.any():
        return np.ones(mask.shape)
    return distance_transform_edt(mask) + distance_transform_edt(~mask)


def proximity(image: np.ndarray) -> np.ndarray:
    mask = image > 0.5
    result = np.zeros(mask.shape)
    if mask.all() or not mask.any():
        return result
    for side in (mask, ~mask):
        distance = distance_transform_edt(side)
        spread = distance.max() - 1  # the nearest are at 1
        result[side] = (distance.max() - distance[side]) / spread if spread else 1.0
    return result


def grouped(loss: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], float]) -> Oracle:
    """A loss of probabilities, logits, masks and weights `[B, H, W, K]`; what has no weight is background."""

    def of_groups(z: np.ndarray, g: np.ndarray, weight: np.ndarray | None = None, reduce: str = "batch") -> np.ndarray:
        w = pixel_weights(weight, z.shape)
        g = g.astype(np.float64) * (w > 0)
        return collect(reduce, [loss(*arrays) for arrays in groups(reduce, sigmoid(z), z.astype(np.float64), g, w)])

    return of_groups


@grouped
def boundary(p, z, g, w):
    return np.average(p * of_each_image(level_set, g), weights=w)


@grouped
def boundary_dou(p, z, g, w):
    true = g > 0.5
    eroded = of_each_image(lambda mask: binary_erosion(mask, CROSS), true).astype(bool)
    size, length = (w * true).sum(), (w * (true & ~eroded)).sum()
    alpha = min(1 - 2 * length / size, 0.8) if size else 0.8
    overlap, squares = (w * p * g).sum(), (w * (p**2 + g**2)).sum()
    smooth = 1.0 if not (w * g).any() else 0.0
    return (squares - 2 * overlap) / (squares - (1 + alpha) * overlap + smooth)


@grouped
def distance_bce(p, z, g, w):
    entropy = g * np.logaddexp(0, -z) + (1 - g) * np.logaddexp(0, z)
    return np.average((1 + of_each_image(proximity, g)) * entropy, weights=w)


@grouped
def distance_dice(p, z, g, w):
    w = w * (1 + of_each_image(proximity, g))
    return 1 - (2 * (w * p * g).sum() + 1) / ((w * p).sum() + (w * g).sum() + 1)


@grouped
def hausdorff_dt(p, z, g, w):
    distances = of_each_image(distance_field, np.where(w > 0, p, 0)) ** 2 + of_each_image(distance_field, g) ** 2
    return np.average((p - g) ** 2 * distances, weights=w)


def log_hausdorff_dt(
    z: np.ndarray, g: np.ndarray, weight: np.ndarray | None = None, reduce: str = "batch"
) -> np.ndarray:
    return np.log(1 + hausdorff_dt(z, g, weight, reduce))


@grouped
def hausdorff_er(p, z, g, w):
    errors = np.where(w > 0, (p - g) ** 2, 0)
    total = 0.0
    for k in range(1, 11):
        errors = of_each_image(lambda e: minimum_filter(e, footprint=CROSS, mode="constant", cval=0.0), errors)
        total += k**2 * np.average(errors, weights=w)
    return total
