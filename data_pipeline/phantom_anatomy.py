"""The invented patients behind the synthetic phantoms: what differs between them, drawn from (seed, patient).

Geometry is in relative coordinates, whatever the number of pixels: the shorter side of a slice spans -1 to 1, u runs to
the image's right, v from front (top of the image) to back, z from the base of the skull (-0.78) to the vertex (0.94).
"""

import dataclasses
import functools

import numpy as np

SITES = ("S1", "S2", "S1", "S3", "S1", "S2", "S1", "S4", "S2", "S1", "S3", "S2")  # of patient 0, 1, ... repeated

# Pre-contrast T1, FLAIR, post-contrast T1, before gain: about 0 to 1.
TISSUES = {
    "air": (0.0, 0.0, 0.0),
    "fat": (0.88, 0.69, 0.90),
    "muscle": (0.36, 0.34, 0.46),
    "bone": (0.07, 0.06, 0.08),
    "marrow": (0.50, 0.34, 0.52),
    "fluid": (0.15, 0.09, 0.16),
    "white": (0.66, 0.38, 0.66),
    "gray": (0.47, 0.53, 0.49),
    "nuclei": (0.54, 0.48, 0.56),
    "caps": (0.56, 0.68, 0.56),
    "flow": (0.14, 0.72, 0.16),
    "mucosa": (0.34, 0.84, 0.80),
    "choroid": (0.34, 0.30, 0.88),
    "vessel": (0.18, 0.14, 0.95),
    "vitreous": (0.13, 0.12, 0.13),
    "blood": (0.84, 0.80, 0.86),
    "cyst": (0.20, 0.14, 0.20),
    "enhancing": (0.50, 0.48, 0.92),
    "lesion": (0.37, 0.80, 0.39),
    "core": (0.25, 0.60, 0.24),
    "rim": (0.42, 0.78, 0.92),
}
ROWS = {name: row for row, name in enumerate(TISSUES)}

# Site: gain of each channel, standard deviation of the noise, strength of the bias field.
SITE_STYLES = {
    "S1": ((1.00, 1.00, 1.00), 0.026, 0.10),
    "S2": ((0.92, 1.06, 0.90), 0.034, 0.16),
    "S3": ((1.05, 0.88, 1.04), 0.040, 0.12),
    "S4": ((0.88, 0.96, 0.94), 0.030, 0.20),
}

# Smooth random fields of a patient: name -> (fields, cells along z, cells along each side of the slice).
LATTICES = {
    "warp": (2, 5, 4),
    "ripple": (2, 8, 12),
    "bias": (3, 3, 3),
    "folds": (1, 14, 24),
    "texture": (3, 14, 22),
    "bumps": (2, 8, 8),
    "lobes": (2, 12, 19),
}
SPLINE_SD = 0.69  # standard deviation that cubic B-spline interpolation along one axis leaves of white noise


@dataclasses.dataclass(frozen=True)
class Blob:
    """A round-ish thing in 3-D: a lesion or something that only looks like one."""

    kind: str
    u: float
    v: float
    angle: float
    stretch: float
    size: float  # radius; of a lesion: largest share of the slice
    middle: float  # in slices
    half: float  # in slices


@dataclasses.dataclass(frozen=True, eq=False)
class Anatomy:
    """What all slices of a patient share."""

    slices: int
    site: str
    half_width: float
    half_length: float
    tilt: float
    shift: tuple[float, float]
    egg: float
    atrophy: float
    scalp: float
    ventricles: float
    caps: float
    flow: float
    tissues: np.ndarray  # float32[tissue, 3, 1, 1]
    gain: np.ndarray  # float32[3, 1, 1]
    lattices: dict[str, np.ndarray]  # float32[fields, z, cells, cells]
    lesion: Blob
    others: tuple[Blob, ...]


def slice_count(rng: np.random.Generator, slices_per_patient: int) -> int:
    """Draws a patient's number of slices: the first draw of `default_rng((seed, patient))`."""
    jitter = min(2, slices_per_patient // 8)
    return int(slices_per_patient + rng.integers(-jitter, jitter + 1))


@functools.lru_cache(maxsize=64)
def draw_anatomy(seed: int, patient: int, slices_per_patient: int) -> Anatomy:
    """Draws a patient; a pure function of its arguments, cached because each slice needs it."""
    rng = np.random.default_rng((seed, patient))
    slices = slice_count(rng, slices_per_patient)
    site = SITES[patient % len(SITES)]
    half_width, half_length = rng.uniform(0.66, 0.74), rng.uniform(0.82, 0.90)
    lesion = _draw_lesion(rng, patient, slices, half_width, half_length)
    kinds = ("blood", "ring", "enhancing", "blood", "ring", "cyst", "blood", "ring")
    others = tuple(
        Blob(
            kind=kind,
            u=half_width * rng.uniform(-0.6, 0.6),
            v=half_length * rng.uniform(-0.65, 0.65),
            angle=rng.uniform(0, np.pi),
            stretch=rng.uniform(1.0, 1.5),
            size=rng.uniform(0.09, 0.16) if kind == "ring" else rng.uniform(0.05, 0.15),
            middle=rng.uniform(0.2, 0.95) * slices,
            half=rng.uniform(0.06, 0.16) * slices,
        )
        for kind in kinds[: int(rng.integers(5, len(kinds) + 1))]
    )
    lattices = {
        name: rng.standard_normal((fields, depth, cells, cells), dtype=np.float32) / np.float32(SPLINE_SD**3)
        for name, (fields, depth, cells) in LATTICES.items()
    }
    # Without its slow part the field changes sign at even distances: its zero lines become evenly spaced sulci.
    folds = lattices["folds"]
    lattices["folds"] = folds - sum(np.roll(folds, shift, axis) for axis in (2, 3) for shift in (-1, 1)) / 4
    tissues = np.array(list(TISSUES.values())) * (1 + 0.05 * rng.standard_normal((len(TISSUES), 3)))
    gain = np.array(SITE_STYLES[site][0]) * rng.uniform((0.72, 0.57, 0.70), 1.0)
    return Anatomy(
        slices=slices,
        site=site,
        half_width=half_width,
        half_length=half_length,
        tilt=rng.normal(0, 0.05),
        shift=(rng.normal(0, 0.02), rng.normal(0, 0.015)),
        egg=rng.uniform(0.02, 0.12),
        atrophy=rng.uniform(0.0, 1.0),
        scalp=rng.uniform(0.035, 0.065),
        ventricles=rng.uniform(0.7, 1.5),
        caps=rng.uniform(0.0, 1.0),
        flow=rng.uniform(0.0, 1.0),
        tissues=tissues.astype(np.float32)[:, :, None, None],
        gain=gain.astype(np.float32)[:, None, None],
        lattices=lattices,
        lesion=lesion,
        others=others,
    )


def _draw_lesion(rng: np.random.Generator, patient: int, slices: int, half_width: float, half_length: float) -> Blob:
    # The golden ratio spreads the shares evenly over patients: about 65 % of slices are empty in any set of them.
    count = max(1, round((0.27 + 0.16 * ((0.5 + 0.618034 * patient) % 1)) * slices))
    lowest = round(0.22 * slices)
    first = int(rng.integers(lowest, max(round(0.92 * slices) - count, lowest) + 1))
    first = min(first, slices - count)
    return Blob(
        kind=str(rng.choice(("plain", "plain", "rim", "cystic"))),
        u=rng.choice((-1.0, 1.0)) * half_width * rng.uniform(0.25, 0.50),
        v=half_length * rng.uniform(-0.5, 0.45),
        angle=rng.uniform(0, np.pi),
        stretch=rng.uniform(1.0, 1.6),
        size=rng.uniform(0.11, 0.265) ** 2,
        middle=first + (count - 1) / 2,
        half=(count - 1) / 2 + 0.35,
    )
