"""Scores of a segmentation, from integer counts that add up exactly over batches, devices and hosts.

- `counts`: pixels by truth and prediction, a row an image, on the device (`pixel_sums`); added on the host.
- `scores`: ratios of these sums (`SCORES`), and the one rule for empty masks; `batch`: the same of one batch of logits.
- `table`: every score by slice, tumour slice, patient, site and overall, micro and macro (`score_table`).
- `detection`: lesions as connected components; false alarms in slices without tumour.
- `probability`: AUROC, average precision, Brier, calibration, exact or from a histogram made on the device.

docs/metrics.md explains what each says and what each gives for empty masks.
"""

from jaxunet.losses.reduction import Empty
from jaxunet.metrics.batch import (
    accuracy,
    dice,
    dice_coef,
    jaccard,
    jaccard_coef,
    precision,
    sensitivity,
    specificity,
)
from jaxunet.metrics.counts import PixelSums, above, add, group, pixel_sums
from jaxunet.metrics.detection import (
    FalsePositiveSlices,
    LesionCounts,
    false_positive_slices,
    lesion_counts,
    lesion_precision_score,
    lesion_sensitivity_score,
)
from jaxunet.metrics.probability import (
    Histogram,
    Probabilities,
    Reliability,
    add_histograms,
    auroc_bounds,
    auroc_score,
    average_precision_bounds,
    average_precision_score,
    brier_score,
    distinct,
    expected_calibration_error,
    from_histogram,
    probability_histogram,
    reliability,
)
from jaxunet.metrics.scores import (
    SCORES,
    accuracy_score,
    balanced_accuracy_score,
    dice_score,
    f2_score,
    f_beta_score,
    jaccard_score,
    kappa_score,
    mcc_score,
    npv_score,
    precision_score,
    sensitivity_score,
    soft_dice_score,
    soft_jaccard_score,
    specificity_score,
    volume_difference,
    volume_error,
)
from jaxunet.metrics.table import TableRow, score_table

__all__ = [
    "SCORES",
    "Empty",
    "FalsePositiveSlices",
    "Histogram",
    "LesionCounts",
    "PixelSums",
    "Probabilities",
    "Reliability",
    "TableRow",
    "above",
    "accuracy",
    "accuracy_score",
    "add",
    "add_histograms",
    "auroc_bounds",
    "auroc_score",
    "average_precision_bounds",
    "average_precision_score",
    "balanced_accuracy_score",
    "brier_score",
    "dice",
    "dice_coef",
    "dice_score",
    "distinct",
    "expected_calibration_error",
    "f2_score",
    "f_beta_score",
    "false_positive_slices",
    "from_histogram",
    "group",
    "jaccard",
    "jaccard_coef",
    "jaccard_score",
    "kappa_score",
    "lesion_counts",
    "lesion_precision_score",
    "lesion_sensitivity_score",
    "mcc_score",
    "npv_score",
    "pixel_sums",
    "precision",
    "precision_score",
    "probability_histogram",
    "reliability",
    "score_table",
    "sensitivity",
    "sensitivity_score",
    "soft_dice_score",
    "soft_jaccard_score",
    "specificity",
    "specificity_score",
    "volume_difference",
    "volume_error",
]
