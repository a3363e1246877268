"""The losses once more, in float64 NumPy and SciPy, written from the formulas and on purpose slow and plain.

`ORACLES[name](logits, masks, weight, reduce)`; every entry of `LOSSES` needs one.
"""

from jaxunet.losses import LOSSES
from tests.helpers.float64 import Oracle
from tests.oracles import boundary, compound, distribution, region, structural

FAMILIES = {
    "distribution": distribution,
    "region": region,
    "structural": structural,
    "boundary": boundary,
    "compound": compound,
}

# The oracle of a loss is the function of its name in the file of its family.
ORACLES: dict[str, Oracle] = {name: vars(FAMILIES[entry.family])[name] for name, entry in LOSSES.items()}

# Relative tolerance of the value in float32, then absolute: one minus a share has the rounding of one, and SSIM divides
# differences of nearly equal numbers.
VALUE_TOLERANCE: dict[str, tuple[float, float]] = {
    "bce": (1e-6, 0),
    "dice": (2e-6, 3e-7),
    "jaccard": (2e-6, 3e-7),
    "ssim": (0, 1e-5),
    "ms_ssim": (0, 1e-5),
    "bce_dice": (2e-6, 3e-7),
    "bce_jaccard": (2e-6, 3e-7),
    "hybrid": (0, 1e-5),
    "unet3plus": (0, 1e-5),
}
OTHER_VALUE_TOLERANCE = (1e-5, 1e-6)

# The same of the gradient, against the gradient in float64. Pixels of a skeleton that differ in the ninth digit are
# equal in float32, and the gradient of a minimum goes to another of them.
GRADIENT_TOLERANCE: dict[str, tuple[float, float]] = {
    "bce": (1e-5, 1e-13),
    "dice": (1e-4, 1e-9),
    "jaccard": (1e-4, 1e-9),
    "ssim": (1e-3, 5e-6),
    "ms_ssim": (1e-3, 5e-6),
    "cl_dice": (1e-3, 1e-6),
    "bce_dice": (1e-4, 1e-9),
    "bce_jaccard": (1e-4, 1e-9),
    "hybrid": (1e-3, 5e-6),
    "unet3plus": (1e-3, 5e-6),
    "dice_cl_dice": (1e-3, 1e-6),
}
OTHER_GRADIENT_TOLERANCE = (1e-3, 1e-7)

# Losses whose derivatives are compared to second order; the others to first order.
SMOOTH = ("bce", "dice", "jaccard", "ssim", "bce_dice", "bce_jaccard", "hybrid")
