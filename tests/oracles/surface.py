"""The surface scores once more, pixel by pixel and pair by pair in float64, written from the definitions."""

import itertools
import math

import numpy as np

Point = tuple[int, ...]
Points = list[Point]


def inside(mask: np.ndarray, point: Point) -> bool:
    """Whether a pixel exists and is true."""
    return all(0 <= x < size for x, size in zip(point, mask.shape, strict=True)) and bool(mask[point])


def surface(mask: np.ndarray) -> Points:
    """True pixels with a side to something that is not."""
    sides = [tuple(s if a == axis else 0 for a in range(mask.ndim)) for axis in range(mask.ndim) for s in (-1, 1)]
    points = [tuple(int(x) for x in point) for point in np.argwhere(mask)]
    return [p for p in points if any(not inside(mask, tuple(np.add(p, side).tolist())) for side in sides)]


def distance(p: Point, q: Point, spacing: tuple[float, ...]) -> float:
    return math.sqrt(sum((s * (a - b)) ** 2 for a, b, s in zip(p, q, spacing, strict=True)))


def directed(points: Points, others: Points, spacing: tuple[float, ...]) -> list[float]:
    return [min((distance(p, q, spacing) for q in others), default=math.inf) for p in points]


def percentile(values: list[float], percent: float) -> float:
    """Between the two nearest order statistics, the first at 0 and the last at 100."""
    values = sorted(values)
    place = (len(values) - 1) * percent / 100
    low = min(math.floor(place), len(values) - 1)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def scores(prediction: np.ndarray, mask: np.ndarray, spacing: tuple[float, ...], tolerance: float) -> dict[str, float]:
    """All scores of distances, of a case in which neither is empty."""
    predicted, actual = surface(prediction), surface(mask)
    there, back = directed(predicted, actual, spacing), directed(actual, predicted, spacing)
    return {
        "hausdorff": max(there + back),
        "hd95": max(percentile(there, 95), percentile(back, 95)),
        "assd": sum(there + back) / len(there + back),
        "surface_dice": sum(d <= tolerance for d in there + back) / len(there + back),
    }


def band(mask: np.ndarray, width: float, spacing: tuple[float, ...]) -> set[Point]:
    """True pixels at most `width` from a pixel outside, in the image or around it."""
    outside = [p for p in itertools.product(*(range(-1, n + 1) for n in mask.shape)) if not inside(mask, p)]
    points = [tuple(int(x) for x in point) for point in np.argwhere(mask)]
    return {p for p in points if min(distance(p, q, spacing) for q in outside) <= width}


def boundary_iou(prediction: np.ndarray, mask: np.ndarray, width: float, spacing: tuple[float, ...]) -> float:
    predicted, actual = band(prediction, width, spacing), band(mask, width, spacing)
    return len(predicted & actual) / len(predicted | actual)
