"""Computes the goldens of `test_loss_peers.py` with MONAI, segmentation_models.pytorch and PyTorch.

None is a dependency of the project. Made with Python 3.11, PyTorch 2.13.0, MONAI 1.6.1, segmentation_models.pytorch
0.6.0, SciPy 1.18 and NumPy 2.4.6; the file names its versions. To make it again, in an environment of its own::

    python3.11 -m venv /tmp/peers && /tmp/peers/bin/pip install torch==2.13.0 monai==1.6.1 scipy
    /tmp/peers/bin/pip install --no-deps segmentation-models-pytorch==0.6.0
    /tmp/peers/bin/python tests/goldens/make_losses_peers.py

Only the losses of segmentation_models.pytorch are imported, past its `__init__`, which wants model weights' libraries.
Everything runs in float64, but Lovász in float32. Logits and masks come from `rules.py`, which the test shares; stored
are each value, the norm of its gradient and every 31st number of the gradient.
"""

import importlib.metadata
import importlib.util
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import rules
import torch
from monai import losses as monai
from monai.losses.unified_focal_loss import AsymmetricFocalLoss, AsymmetricFocalTverskyLoss
from torch import Tensor
from torch.nn import functional

FOLDER = Path(__file__).parent
CASES = ("random", "blob", "inverse", "one_pixel", "one_image", "empty")
GRADIENT_STRIDE = 31


def import_smp_losses() -> ModuleType:
    """Imports the package's folder of losses under a name of its own."""
    package = importlib.util.find_spec("segmentation_models_pytorch")
    folder = Path(package.origin).parent / "losses"
    spec = importlib.util.spec_from_file_location(
        "smp_losses", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["smp_losses"] = module
    spec.loader.exec_module(module)
    return module


smp = import_smp_losses()
ONE = {"smooth_nr": 1.0, "smooth_dr": 1.0}
NONE = {"smooth_nr": 0.0, "smooth_dr": 0.0}
BINARY = "binary"


def both(z: Tensor) -> Tensor:
    """Two channels of logits, `[0, z]`."""
    return torch.cat([torch.zeros_like(z), z], 1)


def shares(p: Tensor) -> Tensor:
    """Two channels of probabilities or labels, `[1 - p, p]`."""
    return torch.cat([1 - p, p], 1)


def of_shares(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, g: loss(shares(torch.sigmoid(z)), shares(g))


def of_probabilities(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, g: loss(torch.sigmoid(z), g)


def single(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """For a loss that casts the masks to float32 itself."""
    return lambda z, g: loss(z.float(), g.float())


def nacl(z: Tensor, g: Tensor) -> Tensor:
    """Of the pair of logits with the difference z whose background is at its prior: the least penalty of all."""
    loss = monai.NACLLoss(classes=2, dim=2)
    background = loss.get_constr_target(g[:, 0])[:, :1].to(z.dtype)
    return loss(torch.cat([background, background + z], 1), g[:, 0].long())


def topk(z: Tensor, g: Tensor) -> Tensor:
    values = functional.binary_cross_entropy_with_logits(z, g, reduction="none").flatten()
    return values.topk(values.numel() // 10).values.mean()


def lovasz_sigmoid(z: Tensor, g: Tensor) -> Tensor:
    return smp.lovasz._lovasz_softmax(torch.sigmoid(z)[:, 0], g[:, 0], classes=[1], per_image=True)


DISTANCES = np.array([[0.0, 1.0], [1.0, 0.0]])

PEERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    # By library and its own name for it; images are averaged unless the name says batch.
    "monai.dice batch": monai.DiceLoss(sigmoid=True, batch=True, **ONE),
    "monai.dice": monai.DiceLoss(sigmoid=True, **ONE),
    "monai.squared_dice batch": monai.DiceLoss(sigmoid=True, batch=True, squared_pred=True, **ONE),
    "monai.jaccard batch": monai.DiceLoss(sigmoid=True, batch=True, jaccard=True, **ONE),
    "monai.soft_label_dice batch": monai.DiceLoss(sigmoid=True, batch=True, soft_label=True, **ONE),
    "monai.soft_label_jaccard batch": monai.DiceLoss(sigmoid=True, batch=True, soft_label=True, jaccard=True, **ONE),
    "monai.tversky batch": monai.TverskyLoss(sigmoid=True, batch=True, alpha=0.3, beta=0.7, **ONE),
    "monai.focal": monai.FocalLoss(alpha=0.25, gamma=2.0),
    "monai.generalized_dice": of_shares(monai.GeneralizedDiceLoss(**NONE)),
    "monai.generalized_dice batch": of_shares(monai.GeneralizedDiceLoss(batch=True, **NONE)),
    "monai.generalized_dice default": of_shares(monai.GeneralizedDiceLoss()),
    "monai.generalized_dice single": monai.GeneralizedDiceLoss(sigmoid=True, **NONE),
    "monai.wasserstein_dice": lambda z, g: monai.GeneralizedWassersteinDiceLoss(DISTANCES, **ONE)(both(z), g.long()),
    "monai.nacl": nacl,
    "monai.asymmetric_focal": of_shares(AsymmetricFocalLoss()),
    "monai.asymmetric_focal_tversky": of_shares(AsymmetricFocalTverskyLoss()),
    "monai.asymmetric_unified_focal": of_probabilities(monai.AsymmetricUnifiedFocalLoss()),
    "monai.mcc batch": monai.MCCLoss(sigmoid=True, batch=True, smooth_dr=0.0),
    "monai.dice_ce batch": monai.DiceCELoss(sigmoid=True, batch=True, **ONE),
    "monai.dice_focal batch": monai.DiceFocalLoss(sigmoid=True, batch=True, gamma=2.0, alpha=0.25, **ONE),
    "monai.generalized_dice_focal": lambda z, g: monai.GeneralizedDiceFocalLoss(softmax=True, gamma=2.0, **NONE)(
        both(z), shares(g)
    ),
    "monai.hausdorff_dt": monai.HausdorffDTLoss(sigmoid=True, include_background=True),
    "monai.log_hausdorff_dt": monai.LogHausdorffDTLoss(sigmoid=True, include_background=True),
    "monai.boundary": monai.BoundaryLoss(sigmoid=True),
    # Its harmonic mean adds `smooth`, so that a perfect prediction costs 5e-5; 0 is refused.
    "monai.soft_cldice exact": monai.SoftclDiceLoss(sigmoid=True, smooth=1e-15),
    "monai.soft_dice_cldice exact": monai.SoftDiceclDiceLoss(sigmoid=True, smooth=1e-15),
    "monai.ssim": of_probabilities(monai.SSIMLoss(spatial_dims=2)),
    "smp.dice batch": smp.DiceLoss(BINARY, smooth=0.5),
    "smp.jaccard batch": smp.JaccardLoss(BINARY, smooth=0.5),
    "smp.log_dice batch": smp.DiceLoss(BINARY, log_loss=True, smooth=0.5),
    "smp.log_jaccard batch": smp.JaccardLoss(BINARY, log_loss=True, smooth=1.0),
    "smp.tversky batch": smp.TverskyLoss(BINARY, alpha=0.3, beta=0.7),
    "smp.focal_tversky batch": smp.TverskyLoss(BINARY, alpha=0.3, beta=0.7, gamma=0.75),
    "smp.focal": smp.FocalLoss(BINARY, alpha=0.25),
    "smp.normalized_focal": smp.FocalLoss(BINARY, normalized=True, reduction="sum"),
    "smp.normalized_focal mean": smp.FocalLoss(BINARY, normalized=True),
    "smp.reduced_focal": smp.FocalLoss(BINARY, reduced_threshold=0.5),
    "smp.reduced_focal 0.3": smp.FocalLoss(BINARY, reduced_threshold=0.3),
    "smp.lovasz_hinge": single(smp.LovaszLoss(BINARY, per_image=True)),
    "smp.lovasz_softmax": single(lovasz_sigmoid),
    "smp.label_smoothing_bce": smp.SoftBCEWithLogitsLoss(smooth_factor=0.05),
    "smp.weighted_bce": smp.SoftBCEWithLogitsLoss(pos_weight=torch.tensor(2.0)),
    "smp.mcc batch": of_probabilities(smp.MCCLoss()),
    "smp.mcc of logits": smp.MCCLoss(),
    "torch.bce": functional.binary_cross_entropy_with_logits,
    "torch.topk_bce": topk,
}


def compute(loss: Callable[[Tensor, Tensor], Tensor], case: str) -> tuple[float, float, np.ndarray]:
    """Returns value, gradient norm and strided gradient of one loss on one case."""
    logits, masks = (torch.tensor(array.transpose(0, 3, 1, 2), dtype=torch.float64) for array in rules.loss_case(case))
    logits.requires_grad_()
    value = loss(logits, masks)
    gradient = torch.autograd.grad(value, logits, allow_unused=True)[0] if value.requires_grad else None
    gradient = np.zeros(logits.shape) if gradient is None else gradient.numpy()
    return float(value), float(np.linalg.norm(gradient)), gradient.ravel()[::GRADIENT_STRIDE]


def main() -> None:
    """Writes `losses_peers.npz` beside this file."""
    torch.set_num_threads(1)
    arrays: dict[str, np.ndarray] = {"names": np.array(list(PEERS))}
    for case in CASES:
        rows = [compute(loss, case) for loss in PEERS.values()]
        arrays[f"{case}.values"] = np.array([row[0] for row in rows])
        arrays[f"{case}.norms"] = np.array([row[1] for row in rows])
        arrays[f"{case}.gradients"] = np.array([row[2] for row in rows], np.float32)
        for name, row in zip(PEERS, rows, strict=True):
            print(f"{case:10} {name:32} {row[0]:.7f} {row[1]:.7f}")
    packages = ("torch", "monai", "segmentation-models-pytorch", "scipy", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages} | {"python": platform.python_version()}
    arrays["versions"] = np.array(json.dumps(versions))
    np.savez_compressed(FOLDER / "losses_peers.npz", **arrays)


if __name__ == "__main__":
    main()
