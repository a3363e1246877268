"""Losses of overlap in float64, written from the formulas."""

import itertools
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from tests.helpers.float64 import Oracle, collect, groups, pixel_weights, sigmoid


def sums(p: np.ndarray, g: np.ndarray, w: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(
        tp=(w * p * g).sum(),
        fp=(w * p * (1 - g)).sum(),
        fn=(w * (1 - p) * g).sum(),
        tn=(w * (1 - p) * (1 - g)).sum(),
        p=(w * p).sum(),
        g=(w * g).sum(),
        pp=(w * p * p).sum(),
        gg=(w * g * g).sum(),
        difference=(w * np.abs(p - g)).sum(),
        hit=(w * g * (1 - np.abs(p - g))).sum(),
        missed=(w * (g - p) ** 2 * g).sum(),
        invented=(w * (g - p) ** 2 * (1 - g)).sum(),
        background=(w * (1 - g)).sum(),
        all=w.sum(),
    )


def of_sums(loss: Callable[[SimpleNamespace], float]) -> Oracle:
    def grouped(z: np.ndarray, g: np.ndarray, weight: np.ndarray | None = None, reduce: str = "batch") -> np.ndarray:
        arrays = groups(reduce, sigmoid(z), g.astype(np.float64), pixel_weights(weight, z.shape))
        return collect(reduce, [loss(sums(*group)) for group in arrays])

    return grouped


def one_where_empty(n: SimpleNamespace) -> float:
    return 1.0 if n.g == 0 else 0.0


def tversky_index(tp: float, fp: float, fn: float, alpha: float, beta: float) -> float:
    s = 1.0 if tp + fn == 0 else 0.0
    return (tp + s) / (tp + alpha * fp + beta * fn + s)


@of_sums
def dice(n):
    return 1 - (2 * n.tp + 1) / (n.p + n.g + 1)


@of_sums
def squared_dice(n):
    return 1 - (2 * n.tp + 1) / (n.pp + n.gg + 1)


@of_sums
def log_dice(n):
    return -np.log((2 * n.tp + 1) / (n.p + n.g + 1))


@of_sums
def log_cosh_dice(n):
    return np.log(np.cosh(1 - (2 * n.tp + 1) / (n.p + n.g + 1)))


@of_sums
def dice_metric(n):
    overlap = (n.p + n.g - n.difference) / 2
    return 1 - (2 * overlap + 1) / (n.p + n.g + 1)


@of_sums
def wasserstein_dice(n):
    s = one_where_empty(n)
    return 1 - (2 * n.hit + s) / (2 * n.hit + n.difference + s)


@of_sums
def jaccard(n):
    s = one_where_empty(n)
    return 1 - (n.tp + s) / (n.p + n.g - n.tp + s)


@of_sums
def log_jaccard(n):
    return -np.log((n.tp + 1) / (n.p + n.g - n.tp + 1))


@of_sums
def jaccard_metric(n):
    s, intersection = one_where_empty(n), (n.p + n.g - n.difference) / 2
    return 1 - (intersection + s) / (n.p + n.g - intersection + s)


@of_sums
def tversky(n):
    return 1 - tversky_index(n.tp, n.fp, n.fn, 0.3, 0.7)


@of_sums
def focal_tversky(n):
    return (1 - tversky_index(n.tp, n.fp, n.fn, 0.3, 0.7)) ** 0.75


@of_sums
def asymmetric_similarity(n):
    square = 1.5**2
    return 1 - tversky_index(n.tp, n.fp, n.fn, 1 / (1 + square), square / (1 + square))


@of_sums
def asymmetric_focal_tversky(n):
    tumour = 1 - tversky_index(n.tp, n.fp, n.fn, 0.3, 0.7)
    background = 1 - tversky_index(n.tn, n.fn, n.fp, 0.3, 0.7)
    return (background + tumour**0.25) / 2


def generalized_dice_of(n: SimpleNamespace) -> float:
    if n.g == 0 or n.background == 0:
        tumour = background = 1.0
    else:
        tumour, background = 1 / n.g**2, 1 / n.background**2
    both_tumour, both_background = n.p + n.g, 2 * n.all - n.p - n.g
    overlap = tumour * n.tp + background * n.tn
    return 1 - 2 * overlap / (tumour * both_tumour + background * both_background)


@of_sums
def penalty_generalized_dice(n):
    similarity = 1 - generalized_dice_of(n)
    return 1 - similarity / (1 + 2.5 * (1 - similarity))


@of_sums
def sensitivity_specificity(n):
    missed = n.missed / n.g if n.g else 0
    invented = n.invented / n.background if n.background else 0
    return 0.1 * missed + 0.9 * invented


@of_sums
def mcc(n):
    tp, tn = n.tp + 1, n.tn + 1
    return 1 - (tp * tn - n.fp * n.fn) / np.sqrt((tp + n.fp) * (tp + n.fn) * (tn + n.fp) * (tn + n.fn))


def jaccard_of_errors(mistaken: np.ndarray, g: np.ndarray, w: np.ndarray) -> float:
    """Jaccard loss of a prediction that is wrong exactly at the mistaken pixels."""
    union = (w * np.where(mistaken, 1, g)).sum()
    return (w * mistaken).sum() / union if union else 0.0


def lovasz(error: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Oracle:
    """Of each image: the integral of the Jaccard loss of the pixels whose error is above t, over all t."""

    def of_image(z: np.ndarray, g: np.ndarray, w: np.ndarray) -> float:
        errors = error(z, g)
        levels = np.unique(np.append(errors, 0))
        steps = itertools.pairwise(levels)
        return sum((high - low) * jaccard_of_errors(errors > low, g, w) for low, high in steps)

    def grouped(z: np.ndarray, g: np.ndarray, weight: np.ndarray | None = None, reduce: str = "batch") -> np.ndarray:
        w = pixel_weights(weight, z.shape)
        values = [of_image(*image) for image in zip(z.astype(np.float64), g.astype(np.float64), w, strict=True)]
        return np.array(values) if reduce == "image" else np.average(values, weights=w.mean((1, 2, 3)))

    return grouped


generalized_dice = of_sums(generalized_dice_of)
lovasz_hinge = lovasz(lambda z, g: np.maximum(0, 1 - z * (2 * g - 1)))
lovasz_sigmoid = lovasz(lambda z, g: np.abs(g - sigmoid(z)))
