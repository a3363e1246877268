"""The rule by which the cases of the surface goldens are drawn: NumPy only.

The script that makes the goldens and the test that reads them both call `cases`, so that only OUTPUTS are stored. Only
uniform draws and the four operations are used: their bits are the same on every machine.
"""

import zlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Case:
    """A mask, its prediction, and how they are measured.

    Attributes:
      prediction: bool `[H, W]` or `[D, H, W]`.
      mask: the same.
      spacing: one number an axis.
      tolerance: of the surface Dice; no distance in the case is close to it.
    """

    prediction: np.ndarray
    mask: np.ndarray
    spacing: tuple[float, ...]
    tolerance: float


def ellipsoids(rng: np.random.Generator, shape: tuple[int, ...], count: int) -> np.ndarray:
    """A union of ellipsoids, some of which reach over the image's edge."""
    grid = np.indices(shape)
    mask = np.zeros(shape, bool)
    for _ in range(count):
        centre = [n * (0.15 + 0.7 * u) for n, u in zip(shape, rng.random(len(shape)), strict=True)]
        radii = [n * (0.08 + 0.2 * u) for n, u in zip(shape, rng.random(len(shape)), strict=True)]
        mask |= sum(((x - c) / r) ** 2 for x, c, r in zip(grid, centre, radii, strict=True)) < 1
    return mask


def cases() -> dict[str, Case]:
    """Every case by name; a generator is seeded by the name, so that the order of drawing does not matter."""
    drawn = {}
    for name, shape, spacing, tolerance, count in (
        ("slice", (40, 56), (1.0, 1.0), 1.7, 6),
        ("slice spaced", (40, 56), (0.7, 1.9), 1.3, 6),
        ("volume", (12, 20, 24), (1.0, 1.0, 1.0), 1.2, 3),
        ("volume spaced", (12, 20, 24), (3.0, 0.9, 1.1), 2.1, 3),
    ):
        for index in range(count):
            rng = np.random.default_rng(zlib.crc32(f"{name} {index}".encode()))
            mask = ellipsoids(rng, shape, 3)
            if index % 2:
                prediction = ellipsoids(rng, shape, 2)
            else:  # shifted and with holes
                prediction = np.roll(mask, index + 1, -1) ^ (mask & (rng.random(shape) < 0.05))
            drawn[f"{name} {index}"] = Case(prediction, mask, spacing, tolerance)
    lesion, empty = ellipsoids(np.random.default_rng(1), (40, 56), 2), np.zeros((40, 56), bool)
    drawn["missed"] = Case(empty, lesion, (1.0, 1.0), 1.0)
    drawn["false"] = Case(lesion, empty, (1.0, 1.0), 1.0)
    drawn["empty"] = Case(empty, empty, (1.0, 1.0), 1.0)
    drawn["perfect"] = Case(lesion, lesion, (1.0, 1.0), 1.0)
    return drawn


def checksum() -> int:
    """A number that changes if the drawn cases do."""
    code = 0
    for name, case in cases().items():
        code = zlib.crc32(name.encode() + case.prediction.tobytes() + case.mask.tobytes(), code)
    return code
