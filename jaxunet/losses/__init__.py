"""Segmentation losses: pure functions of `(logits, masks)` with one signature.

`loss(logits, masks, *, weight=None, reduce="batch", patient=None, empty="perfect", **options)`

- `logits`: `[B, H, W, K]` unnormalised scores of any float dtype; computed in float32.
- `masks`: the same shape, values in [0, 1], any dtype.
- `weight`: `[B]` or `[B, H, W, 1]`; zero removes a sample or a pixel from value and gradient.
- `reduce`: "batch" returns one scalar, with sums over the whole global batch; "image" returns `[B]`, one per image;
  "patient" returns `[B]`, the loss of each patient in the row of its first image and zero in the others. Losses defined
  per image (SSIM, Lovász) are averaged over the images of a group. `averaged` turns the last two into a scalar.
- `patient`: int `[B]`, equal for the images of one patient; only `reduce="patient"` needs it.
- `empty`: "perfect" or "skip", how a group without a true pixel counts; the metrics follow the same rule.
- ValueError: shapes differ, logits are not floats, or an argument has an unknown value.

In the formulas p = sigmoid(logits), z = logits, g = masks; TP = sum(pg), FP = sum(p (1 - g)), FN = sum((1 - p) g) and
TN = sum((1 - p) (1 - g)) are soft counts. Docstrings list only a loss's own options. `LOSSES` holds every loss by name,
with its range and other properties.
"""

# ruff: noqa: F403, I001
# The order of these imports is the order of LOSSES. Each file's __all__ names its losses.
from jaxunet.losses.distribution.cross_entropy import *
from jaxunet.losses.distribution.focal import *
from jaxunet.losses.region.dice import *
from jaxunet.losses.region.jaccard import *
from jaxunet.losses.region.tversky import *
from jaxunet.losses.region.confusion import *
from jaxunet.losses.region.lovasz import *
from jaxunet.losses.structural import *
from jaxunet.losses.boundary import *
from jaxunet.losses.compound.cross_entropy import *
from jaxunet.losses.compound.focal import *
from jaxunet.losses.compound.structure import *
from jaxunet.losses.compound.combine import combine
from jaxunet.losses.entry import CONTRACT, LOSSES, Loss, register
from jaxunet.losses.reduction import Empty, Reduce, averaged

_FUNCTIONS = [entry.fn.__name__ for entry in LOSSES.values()]

__all__ = ["CONTRACT", "LOSSES", "Empty", "Loss", "Reduce", "averaged", "combine", "register", *_FUNCTIONS]
