"""Scores of a segmentation, from integer counts that add up exactly over batches, devices and hosts.

- `counts`: pixels by truth and prediction, one row per image, on the device (`pixel_sums`); added on the host.
- `scores`: ratios of these sums (`SCORES`), the one rule for empty masks, and scores of one batch of logits.
- `table`: every score by slice, tumour slice, patient, site and overall, micro and macro (`score_table`).
- `detection`: lesions as connected components; false alarms in slices without tumour.
- `probability`: AUROC, average precision, Brier, calibration, exact or from a histogram made on the device.

docs/metrics.md explains each score and its value for empty masks.
"""

# ruff: noqa: F403
from jaxunet.losses.reduction import Empty
from jaxunet.metrics import counts, detection, probability, scores, table
from jaxunet.metrics.counts import *
from jaxunet.metrics.detection import *
from jaxunet.metrics.probability import *
from jaxunet.metrics.scores import *
from jaxunet.metrics.table import *

__all__ = ["Empty", *counts.__all__, *detection.__all__, *probability.__all__, *scores.__all__, *table.__all__]
