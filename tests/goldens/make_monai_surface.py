"""Computes the goldens of `test_surface.py` with MONAI, which is no dependency of the project.

Made with Python 3.11, MONAI 1.6.1, PyTorch 2.13.0 (CPU), SciPy 1.17.1 and NumPy 2.4.6; the file names its versions. To
make it again, in an environment of its own::

    python3.11 -m venv /tmp/monai && /tmp/monai/bin/pip install torch==2.13.0 monai==1.6.1 scipy==1.17.1
    /tmp/monai/bin/python tests/goldens/make_monai_surface.py

Masks come from `surface_rules.py`, which the test shares, so that only outputs are stored. MONAI computes in float32.
"""

import json
import platform
import warnings
from importlib.metadata import version
from pathlib import Path

import surface_rules
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

FILE = Path(__file__).parent / "monai_surface.json"


def scores(case: surface_rules.Case) -> dict[str, float]:
    """The scores of one case, as MONAI gives them; NaN and infinity included."""
    pair = [torch.from_numpy(image[None, None].astype("float32")) for image in (case.prediction, case.mask)]
    options = {"include_background": True, "spacing": list(case.spacing)}
    return {
        "hausdorff": compute_hausdorff_distance(*pair, **options).item(),
        "hd95": compute_hausdorff_distance(*pair, percentile=95, **options).item(),
        "assd": compute_average_surface_distance(*pair, symmetric=True, **options).item(),
        "surface_dice": compute_surface_dice(*pair, class_thresholds=[case.tolerance], **options).item(),
    }


def main() -> None:
    """Writes the file and prints what is in it."""
    warnings.filterwarnings("ignore", message=".*all 0, this may result in nan/inf distance")
    versions = {name: version(name) for name in ("monai", "torch", "scipy", "numpy")}
    found = {name: scores(case) for name, case in surface_rules.cases().items()}
    for name, values in found.items():
        print(f"{name:18}", {score: round(value, 4) for score, value in values.items()})
    content = {"versions": {"python": platform.python_version(), **versions}, "checksum": surface_rules.checksum()}
    rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(values)}" for name, values in found.items())
    header = json.dumps(content, indent=2)[:-2]
    FILE.write_text(f'{header},\n  "scores": {{\n{rows}\n  }}\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
