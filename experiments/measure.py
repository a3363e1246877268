"""What an evaluation measures: counts and histograms on the device; lesions and outlines on the host, by patient."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jax import Array

from jaxunet.metrics import (
    Histogram,
    LesionCounts,
    PixelSums,
    above,
    add_histograms,
    lesion_counts,
    pixel_sums,
    probability_histogram,
)
from jaxunet.surface import SurfaceScores, surface_scores

if TYPE_CHECKING:
    from jaxunet.losses.reduction import Empty


class Measured(NamedTuple):
    """Of one batch.

    Attributes:
      sums: a row an image.
      histogram: of all pixels that count.
      prediction: bool `[B, H, W, K]`.
      mask: the true one, of the same shape.
    """

    sums: Any
    histogram: Any
    prediction: Any
    mask: Any


def measure(logits: Array, masks: Array, *, weight: Array, threshold: float = 0.5) -> Measured:
    """Measures a batch on the device; arguments as in `jaxunet.metrics.pixel_sums`."""
    return Measured(
        sums=pixel_sums(logits, masks, weight=weight, threshold=threshold),
        histogram=probability_histogram(logits, masks, weight=weight),
        prediction=above(logits, threshold),
        mask=masks,
    )


class Options(NamedTuple):
    """How lesions and outlines are compared.

    Attributes:
      iou: when a lesion is found, as in `jaxunet.metrics.lesion_counts`.
      tolerance: of the surface Dice, in units of the spacing.
      spacing: between slices, rows and columns; None: pixels.
      empty: what masks without a true pixel are worth.
    """

    iou: float | None = None
    tolerance: float = 1.0
    spacing: tuple[float, float, float] | None = None
    empty: "Empty" = "perfect"


_DEFAULT = Options()


class Observations:
    """Collects what was measured, batch by batch; masks (of the first class) are kept until their patient is complete.

    Args:
      entries: one a slice, in the order of the batches, with `patient` and `slice`.
      volumes: whether each patient's slices are all there and make a volume.
      options: how they are compared.

    Attributes:
      histogram: of all pixels so far, None before the first batch.
      lesions: of each slice so far, 8 neighbours.
      surfaces: outlines of each slice so far.
      volumes: what `measure_volume` says of each patient that is complete.
    """

    def __init__(self, entries: Sequence[Any], *, volumes: bool, options: Options = _DEFAULT) -> None:
        self.histogram: Histogram | None = None
        self.lesions: list[LesionCounts] = []
        self.surfaces: list[SurfaceScores] = []
        self.volumes: dict[str, dict[str, Any]] = {}
        self._entries, self._options = entries, options
        self._missing = Counter(entry.patient for entry in entries) if volumes else Counter()
        self._waiting: dict[str, list[tuple[int, np.ndarray, np.ndarray]]] = {}

    def take(self, measured: Measured, rows: int) -> PixelSums:
        """Adds a batch of NumPy arrays, of which the first `rows` rows are no padding; returns the sums of these."""
        parts = [measured.histogram] if self.histogram is None else [self.histogram, measured.histogram]
        self.histogram = add_histograms(parts)
        for prediction, mask in zip(measured.prediction[:rows, :, :, 0], measured.mask[:rows, :, :, 0], strict=True):
            entry = self._entries[len(self.lesions)]
            self.lesions.append(lesion_counts(prediction, mask, iou=self._options.iou))
            self.surfaces.append(_surfaces(prediction, mask, self._options))
            if self._missing[entry.patient]:
                self._wait(entry.patient, entry.slice, prediction, mask)
        return PixelSums(*(values[:rows] for values in measured.sums))

    def _wait(self, patient: str, position: int, prediction: np.ndarray, mask: np.ndarray) -> None:
        self._waiting.setdefault(patient, []).append((position, prediction, mask))
        self._missing[patient] -= 1
        if not self._missing[patient]:
            slices = self._waiting.pop(patient)
            positions = [position for position, _, _ in slices]
            predictions = stack(positions, [prediction for _, prediction, _ in slices])
            masks = stack(positions, [mask for _, _, mask in slices])
            self.volumes[patient] = measure_volume(predictions, masks, self._options)


def stack(positions: Sequence[int], slices: Sequence[np.ndarray]) -> np.ndarray:
    """Puts slices `[H, W]` in the order of their positions into a volume `[D, H, W]`.

    An empty slice stands in each gap, however wide, so that what lies on its two sides is not connected; distances
    across it are too short.
    """
    planes: list[np.ndarray] = []
    before = None
    for k in sorted(range(len(positions)), key=lambda k: positions[k]):
        if before is not None and positions[k] > before + 1:
            planes.append(np.zeros_like(slices[k]))
        planes.append(slices[k])
        before = positions[k]
    return np.stack(planes)


def measure_volume(prediction: np.ndarray, mask: np.ndarray, options: Options = _DEFAULT) -> dict[str, Any]:
    """Scores of a patient's volume `[D, H, W]` that no counts of pixels give: lesions, of 26 neighbours, and outlines.

    Returns:
      By name, which are columns of `evaluation_patients.csv`.
    """
    lesions = lesion_counts(prediction, mask, iou=options.iou)
    counts = {f"lesions_{name}": int(count) for name, count in lesions._asdict().items()}
    return counts | _surfaces(prediction, mask, options)._asdict()


def _surfaces(prediction: np.ndarray, mask: np.ndarray, options: Options) -> SurfaceScores:
    spacing = None if options.spacing is None else options.spacing[-mask.ndim :]
    return surface_scores(prediction, mask, tolerance=options.tolerance, spacing=spacing, empty=options.empty)
