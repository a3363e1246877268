"""Losses of several terms in float64, written from the formulas."""

import numpy as np

from tests.helpers.float64 import Oracle, sigmoid
from tests.oracles.boundary import boundary
from tests.oracles.distribution import bce, minus_log, of_groups, topk_bce
from tests.oracles.distribution import focal as focal_of_alpha
from tests.oracles.region import dice, generalized_dice_of, jaccard, of_sums, tversky_index
from tests.oracles.structural import cl_dice, ms_ssim, ssim

generalized_dice = of_sums(generalized_dice_of)


def sum_of(*terms: tuple[float, Oracle]) -> Oracle:
    def weighted(z: np.ndarray, g: np.ndarray, weight: np.ndarray | None = None, reduce: str = "batch") -> np.ndarray:
        return sum(factor * term(z, g, weight, reduce) for factor, term in terms)

    return weighted


@of_groups
def focal(z, g, w):
    """Without a weight of the classes."""
    (true, false), p = minus_log(z), sigmoid(z)
    return np.average(g * (1 - p) ** 2 * true + (1 - g) * p**2 * false, weights=w)


@of_groups
def exp_log(z, g, w):
    p, total_dice, total_entropy = sigmoid(z), 0.0, 0.0
    for of_class, label, surprisal in ((p, g, minus_log(z)[0]), (1 - p, 1 - g, minus_log(z)[1])):
        dice = (2 * (w * of_class * label).sum() + 1) / ((w * of_class).sum() + (w * label).sum() + 1)
        total_dice += 0.5 * max(-np.log(dice), 0) ** 0.3
        frequency = np.average(label, weights=w)
        if frequency:
            total_entropy += frequency**-0.5 * np.average(label * surprisal**0.3, weights=w)
    return 0.8 * total_dice + 0.2 * total_entropy


@of_groups
def asymmetric_focal(z, g, w):
    (true, false), p = minus_log(z), sigmoid(z)
    return np.average(0.6 * g * true + 0.4 * (1 - g) * np.sqrt(p) * false, weights=w)


@of_sums
def asymmetric_focal_tversky(n):
    background = 1 - tversky_index(n.tn, n.fn, n.fp, 0.4, 0.6)
    return (background + (1 - tversky_index(n.tp, n.fp, n.fn, 0.4, 0.6)) ** 0.5) / 2


bce_dice = sum_of((1 / 2, bce), (1 / 2, dice))
bce_jaccard = sum_of((1 / 2, bce), (1 / 2, jaccard))
combo = sum_of((1 / 4, bce), (1 / 2, dice))
dice_topk = sum_of((1, dice), (1, topk_bce))
jaccard_topk = sum_of((1, jaccard), (1, topk_bce))
dice_focal = sum_of((1, dice), (1, focal))
generalized_dice_focal = sum_of((1, generalized_dice), (1, focal))
focal_jaccard = sum_of((1, focal_of_alpha), (1, jaccard))
unified_focal = sum_of((1 / 2, asymmetric_focal), (1 / 2, asymmetric_focal_tversky))
hybrid = sum_of((1 / 3, bce), (1 / 3, ssim), (1 / 3, jaccard))
unet3plus = sum_of((1, focal_of_alpha), (1, ms_ssim), (1, jaccard))
dice_cl_dice = sum_of((1 / 2, dice), (1 / 2, cl_dice))
dice_boundary = sum_of((0.99, dice), (0.01, boundary))
