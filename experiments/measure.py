"""What an evaluation measures: counts and histograms on the device; lesions on the host, patient by patient."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

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


class Observations:
    """Collects what was measured, batch by batch; masks (of the first class) are kept until their patient is complete.

    Args:
      entries: one a slice, in the order of the batches, with `patient` and `slice`.
      volumes: whether each patient's slices are all there and make a volume.
      iou: when a lesion is found, as in `jaxunet.metrics.lesion_counts`.

    Attributes:
      histogram: of all pixels so far, None before the first batch.
      lesions: of each slice so far, 8 neighbours.
      volumes: what `measure_volume` says of each patient that is complete.
    """

    def __init__(self, entries: Sequence[Any], *, volumes: bool, iou: float | None = None) -> None:
        self.histogram: Histogram | None = None
        self.lesions: list[LesionCounts] = []
        self.volumes: dict[str, dict[str, Any]] = {}
        self._entries, self._iou = entries, iou
        self._missing = Counter(entry.patient for entry in entries) if volumes else Counter()
        self._waiting: dict[str, list[tuple[int, np.ndarray, np.ndarray]]] = {}

    def take(self, measured: Measured, rows: int) -> PixelSums:
        """Adds a batch of NumPy arrays, of which the first `rows` rows are no padding; returns the sums of these."""
        parts = [measured.histogram] if self.histogram is None else [self.histogram, measured.histogram]
        self.histogram = add_histograms(parts)
        for prediction, mask in zip(measured.prediction[:rows, :, :, 0], measured.mask[:rows, :, :, 0], strict=True):
            entry = self._entries[len(self.lesions)]
            self.lesions.append(lesion_counts(prediction, mask, iou=self._iou))
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
            self.volumes[patient] = measure_volume(predictions, masks, iou=self._iou)


def stack(positions: Sequence[int], slices: Sequence[np.ndarray]) -> np.ndarray:
    """Puts slices `[H, W]` in the order of their positions into a volume `[D, H, W]`.

    An empty slice stands in each gap, however wide, so that what lies on its two sides is not connected.
    """
    planes: list[np.ndarray] = []
    before = None
    for k in sorted(range(len(positions)), key=lambda k: positions[k]):
        if before is not None and positions[k] > before + 1:
            planes.append(np.zeros_like(slices[k]))
        planes.append(slices[k])
        before = positions[k]
    return np.stack(planes)


def measure_volume(prediction: np.ndarray, mask: np.ndarray, *, iou: float | None = None) -> dict[str, Any]:
    """Scores of a patient's volume `[D, H, W]` that no counts of pixels give: its lesions, 26 neighbours.

    Returns:
      By name, which are columns of `evaluation_patients.csv`.
    """
    lesions = lesion_counts(prediction, mask, iou=iou)
    return {f"lesions_{name}": int(count) for name, count in lesions._asdict().items()}
