"""The rule by which the predictions and masks of the score goldens are drawn: NumPy only, as in `rules.py`.

`make_sklearn.py` and the tests both call these functions, so that only scores are stored.
"""

import zlib

import numpy as np

SHAPE = (4, 12, 20)  # images, height, width

CASES = ("random", "rare", "common", "blob", "good", "inverted", "ties", "half", "constant", "one_pixel")
"""Both kinds of pixels in the masks: every score and every ranking is defined, but where nothing is predicted."""

DEGENERATE = ("empty_empty", "empty_some", "empty_full", "some_empty", "full_full", "full_some", "full_empty")
"""`mask_prediction`: only one kind of pixels in the mask, or nothing predicted."""

COUNTS = {
    "dataset": (2_500_001, 700_003, 1_100_007, 253_000_009),
    "beyond_32_bits": (3_000_000_019, 41, 2_999_999_929, 4_000_000_007),
    "one_in_a_billion": (1, 1_000_000_007, 2, 3_000_000_001),
    "anti": (5, 900_000_011, 800_000_009, 7),
}
"""`(tp, fp, fn, tn)` of more pixels than float32 can count, or int32; and products of more than 64 bits."""


def generator(name: str) -> np.random.Generator:
    """Returns the generator that belongs to a name."""
    return np.random.default_rng(zlib.crc32(f"score {name}".encode()))


def case(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns probabilities float64 in whole 64ths, so that many tie, and masks uint8, both of shape `SHAPE`."""
    rng = generator(name)
    uniform, noise = rng.random(SHAPE), rng.random(SHAPE)
    mask, probability = noise < 0.3, uniform
    if name in ("rare", "common"):
        mask = noise < (0.02 if name == "rare" else 0.98)
    elif name in ("blob", "good", "inverted"):
        y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
        centre = rng.random((2, SHAPE[0], 1, 1)) * 0.5 + 0.25
        mask = (y - centre[0] * SHAPE[1]) ** 2 + (x - centre[1] * SHAPE[2]) ** 2 < 9
        strength = {"blob": 0.4, "good": 0.9, "inverted": -0.9}[name]
        probability = 0.5 + strength * (mask - 0.5) + (1 - abs(strength)) * (uniform - 0.5)
    elif name == "ties":
        probability = np.floor(uniform * 4) / 4  # 0, 1/4, 1/2, 3/4: a quarter of the pixels at the threshold
    elif name in ("half", "constant"):
        probability = np.full(SHAPE, 0.5 if name == "half" else 0.75)
    elif name == "one_pixel":
        mask = np.zeros(SHAPE, bool)
        mask[1, 3, 5] = True
    elif name in DEGENERATE:
        parts = {"empty": np.zeros(SHAPE), "full": np.ones(SHAPE), "some": noise < 0.3}
        mask, probability = (np.asarray(parts[part], np.float64) for part in name.split("_"))
    return np.round(probability * 64) / 64, np.asarray(mask, np.uint8)


def fine() -> tuple[np.ndarray, np.ndarray]:
    """Returns probabilities float64 without ties and masks uint8, `[5000]`, of a classifier that knows something."""
    rng = generator("fine")
    mask = rng.random(5000) < 0.1
    return np.where(mask, np.sqrt(rng.random(5000)), rng.random(5000) ** 2), np.asarray(mask, np.uint8)


def binned() -> tuple[np.ndarray, np.ndarray]:
    """Returns logits float64 `[2, 50, 40, 1]` that lie in the middle of bins of width 2^-10, and masks uint8."""
    rng = generator("binned")
    shape = (2, 50, 40, 1)
    mask = rng.random(shape) < 0.1
    logits = np.floor((8 * (rng.random(shape) + rng.random(shape) - 1) + 4 * mask - 3) * 1024) / 1024 + 2.0**-11
    return logits, np.asarray(mask, np.uint8)
