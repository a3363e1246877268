"""Synthetic brain-like slices with lesions: a source without files, for demonstrations and tests.

No phantom is a real patient. Each phantom is a stylised head in three channels that behave like pre-contrast T1, FLAIR
and post-contrast T1. The lesion is bright in FLAIR, darker than white matter in T1 and sometimes has an enhancing rim.
Scalp fat, old blood, flow in the fluid, mucosa and the caps of the ventricles are bright in FLAIR as well, and gain,
bias field and contrast change from patient to patient. So no single FLAIR threshold finds the lesions; shape, place
and the other channels do.
"""

import hashlib
import json

import numpy as np

from data_pipeline.source import DataError, Record, Source, SourceOptions, UsageError, register
from data_pipeline.sources.phantom_head import (
    SITE_STYLES,
    SITES,
    SPLINE_SD,
    Blob,
    Canvas,
    Head,
    distance,
    draw_anatomy,
    paint_head,
    ramp,
    slice_count,
)

VERSION = 2  # of the drawing: raise it when any pixel changes, because prepared data are keyed by the fingerprint
AREA_RANGE = (0.001, 0.08)  # share of the slice that a lesion covers, where it is present
SMALLEST_SHARE = 0.003  # drawn lesions stay visible at 64x64 pixels
GRAIN_CELLS = 56  # the finest texture, drawn separately for each slice
MIN_SIDE = 16


class Phantoms(Source):
    """Synthetic slices in three channels; nothing is drawn until a slice is read. About 65 % have an empty mask.

    Args:
      patients: number of invented patients, at least 1. Patient 7 is the same for any number of patients.
      slices_per_patient: mean number of slices, at least 3.
      size: height and width in pixels, at least 16 each.
      seed: not negative; another seed gives other patients.

    Raises:
      UsageError: a value is out of range; the message names all that are.
    """

    kind = "synthetic"
    notes = ("All slices are drawn by a program; scores on them say nothing about patients.",)

    def __init__(
        self,
        *,
        patients: int = 48,
        slices_per_patient: int = 21,
        size: tuple[int, int] = (256, 256),
        seed: int = 0,
    ):
        height, width = size
        checks = (
            ("patients", patients, patients >= 1, "at least 1"),
            ("slices_per_patient", slices_per_patient, slices_per_patient >= 3, "at least 3"),
            ("size", f"{height}x{width}", min(size) >= MIN_SIDE, f"at least {MIN_SIDE} pixels each way"),
            ("seed", seed, seed >= 0, "0 or more"),
        )
        if problems := [
            f"{name} is {found}, expected {expected}" for name, found, fine, expected in checks if not fine
        ]:
            raise UsageError("synthetic phantoms cannot be drawn: " + "; ".join(problems))
        self._slices_per_patient, self._size, self._seed = slices_per_patient, (height, width), seed
        names = sorted((f"phantom_{SITES[number % len(SITES)]}_{number:04d}", number) for number in range(patients))
        self.records = [
            Record(name=f"{name}_{index}", patient=name, slice=index, site=name.split("_")[1])
            for name, number in names
            for index in range(slice_count(np.random.default_rng((seed, number)), slices_per_patient))
        ]
        self.title = (
            f"SYNTHETIC PHANTOMS, NOT REAL DATA: {patients} invented patients, {len(self.records)} slices "
            f"of {height}x{width}, seed {seed}"
        )
        self._described = {
            "generator": "phantom",
            "version": VERSION,
            "patients": patients,
            "slices_per_patient": slices_per_patient,
            "size": (height, width),
            "seed": seed,
        }

    def fingerprint(self) -> str:
        """Returns a sha256 hex digest of the generator's version and its parameters."""
        return hashlib.sha256(json.dumps(self._described, sort_keys=True).encode()).hexdigest()

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws one slice, the same on every call, in any order and from any thread.

        Returns image `uint8[H, W, 3]` (pre-contrast T1, FLAIR, post-contrast T1) and mask `uint8[H, W, 1]` in {0, 1}.
        """
        if not 0 <= index < len(self.records):
            raise DataError(
                f"synthetic phantoms: there is no slice {index}; expected 0 to {len(self.records) - 1}, "
                "choose one of these or ask for more patients"
            )
        record = self.records[index]
        number = int(record.patient.rsplit("_", 1)[1])
        canvas = Canvas(draw_anatomy(self._seed, number, self._slices_per_patient), record.slice, self._size)
        head = paint_head(canvas)
        bumps, lobes = canvas.cut("bumps"), canvas.cut("lobes")
        _paint_others(canvas, head, 0.7 * bumps[0] + 0.4 * lobes[0])
        mask = _paint_lesion(canvas, head, bumps[1], lobes[1])
        return _acquire(canvas, np.random.default_rng((self._seed, number, record.slice))), mask


@register("synthetic", opens=lambda root: root is None, synthetic=True)
def open_phantoms(root: None, options: SourceOptions) -> Phantoms:
    """Returns the synthetic set that the options describe; raises `UsageError`."""
    if options.channels != 3:
        raise UsageError(f"synthetic slices have 3 channels, not {options.channels} (model.image_channels)")
    size = options.size or (256, 256)
    return Phantoms(patients=options.phantom_patients, seed=options.phantom_seed, size=size)


def _round_field(canvas: Canvas, blob: Blob, radius: float, window: tuple[slice, slice]) -> np.ndarray:
    """Returns the field of an ellipse: positive inside, `radius` at its centre."""
    u, v = canvas.u[:, window[1]] - np.float32(blob.u), canvas.v[window[0]] - np.float32(blob.v)
    stretch = np.sqrt(blob.stretch)
    cosine, sine = np.float32(np.cos(blob.angle)), np.float32(np.sin(blob.angle))
    return np.float32(radius) - distance((u * cosine + v * sine) / stretch, (v * cosine - u * sine) * stretch)


def _paint_others(canvas: Canvas, head: Head, shapes: np.ndarray) -> None:
    """Things that are not lesions: old blood and rings bright in FLAIR and T1 alike, cysts, enhancing nodules."""
    for blob in canvas.anatomy.others:
        t = (canvas.index - blob.middle) / blob.half
        window = canvas.window(blob.u, blob.v, 2.2 * blob.size)
        if abs(t) >= 1 or not head.brain[window].size:
            continue
        field = _round_field(canvas, blob, blob.size * np.sqrt(1 - t * t), window)
        field += np.float32(0.22 * blob.size) * shapes[window]
        field = np.minimum(field, head.brain[window] - 0.015)
        if blob.kind == "ring":
            half = 0.011 + 0.12 * blob.size
            canvas.paint("blood", ramp(half - np.abs(field - half), 1.5 * canvas.edge), window)
        else:
            canvas.paint(blob.kind, ramp(field, 2 * canvas.edge), window)


def _paint_lesion(canvas: Canvas, head: Head, bumps: np.ndarray, lobes: np.ndarray) -> np.ndarray:
    """Paints the lesion, where this slice has it, and returns its mask `uint8[H, W, 1]`."""
    blob, (height, width) = canvas.anatomy.lesion, canvas.size
    mask = np.zeros((height, width), np.uint8)
    t = (canvas.index - blob.middle) / blob.half
    if abs(t) >= 1:
        return mask[..., None]
    share = max(blob.size * (1 - t * t), SMALLEST_SHARE) * min(canvas.size) / max(canvas.size)
    share = min(max(share, AREA_RANGE[0]), AREA_RANGE[1])
    pixels = max(1, int(np.ceil(AREA_RANGE[0] * height * width)), int(share * height * width))
    radius = float(np.sqrt(share * 4 / np.pi))
    everywhere = (slice(None), slice(None))
    field = _round_field(canvas, blob, radius, everywhere)
    field += np.float32(0.025 + 0.20 * radius) * (0.65 * bumps + 0.45 * lobes)
    # Growth stops at the brain's surface, the ventricles and the midline; the lesion spreads along them instead.
    border = np.minimum(np.minimum(head.brain - 0.02, -0.01 - head.fluid), np.sign(blob.u) * head.u - 0.01)
    field -= 40 * np.square(np.minimum(border - 0.04, 0))
    # The mask is the `pixels` highest pixels: its area is exact at any size, and never empty.
    level = np.partition(field, -pixels, axis=None)[-pixels]
    field -= level
    inside = np.zeros(field.size, np.uint8)
    inside[np.flatnonzero(field >= 0)[:pixels]] = 1
    mask[canvas.crop] = inside.reshape(field.shape)

    field += np.float32(0.25 * canvas.pixel)
    uneven = 1 - 0.12 * np.clip(lobes + 0.3, 0, 1.5)
    canvas.paint("lesion", ramp(field, max(0.022, 1.2 * canvas.pixel)) * uneven)
    if blob.kind != "plain" and radius > 0.10:
        core = field - np.float32(0.30 * radius)
        canvas.fill("core", core, soft=0.05, strength=0.85)
        if blob.kind == "rim":
            canvas.fill("rim", 0.020 - np.abs(core), soft=0.02)
    return mask[..., None]


def _acquire(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Texture, gain, bias field, noise and rounding: from tissue to `uint8[H, W, 3]`."""
    a, (height, width) = canvas.anatomy, canvas.size
    _, noise_sd, bias_sd = SITE_STYLES[a.site]
    grain = rng.standard_normal((3, GRAIN_CELLS, GRAIN_CELLS), dtype=np.float32) * np.float32(0.035 / SPLINE_SD**2)
    texture = canvas.cut("texture") * np.float32(0.035)
    texture += canvas.plane(grain)
    texture += 1
    bias = canvas.cut("bias") * np.float32(bias_sd)
    np.clip(bias, -2 * bias_sd, 2 * bias_sd, out=bias)
    bias += 1
    bias *= a.gain
    canvas.image *= texture
    canvas.image *= bias
    # A mean of neighbours makes the noise look interpolated, as scanners deliver it; folding keeps magnitudes positive.
    noise = rng.standard_normal((3, height + 1, width + 1), dtype=np.float32) * np.float32(noise_sd * 0.65)
    noise = noise[:, 1:] + noise[:, :-1]
    image = noise[:, :, 1:] + noise[:, :, :-1]
    image[:, canvas.crop[0], canvas.crop[1]] += canvas.image
    np.abs(image, out=image)
    image *= 255
    np.minimum(np.rint(image, out=image), 255, out=image)
    return np.ascontiguousarray(image.astype(np.uint8).transpose(1, 2, 0))
