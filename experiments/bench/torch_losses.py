"""The losses of MONAI and of segmentation_models.pytorch in eager PyTorch, set up as near to ours as their options go.

Averages run over the batch where the library has the choice, as ours do. Masks are float32 on the device,
`[B, 1, H, W]`; what a library wants of them (two classes, integers) is made outside the time that is measured.
"""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from experiments.bench.workload import Workload, images_and_masks

Loss = Callable[[Tensor, Tensor], Tensor]
ONE = {"smooth_nr": 1.0, "smooth_dr": 1.0}
DISTANCES = ((0.0, 1.0), (1.0, 0.0))


def monai(size: int, batch: int) -> dict[str, Callable[..., Any]]:
    """MONAI's losses of one channel, and of two where it has them for two only."""
    import numpy as np
    from monai import losses
    from monai.losses.unified_focal_loss import AsymmetricFocalLoss, AsymmetricFocalTverskyLoss

    nacl = losses.NACLLoss(classes=2, dim=2)
    wasserstein = losses.GeneralizedWassersteinDiceLoss(np.array(DISTANCES), **ONE)
    ssim, unified = losses.SSIMLoss(spatial_dims=2), losses.AsymmetricUnifiedFocalLoss()
    one: dict[str, Loss] = {
        "dice": losses.DiceLoss(sigmoid=True, batch=True, **ONE),
        "squared_dice": losses.DiceLoss(sigmoid=True, batch=True, squared_pred=True, **ONE),
        "dice_metric": losses.DiceLoss(sigmoid=True, batch=True, soft_label=True, **ONE),
        "jaccard": losses.DiceLoss(sigmoid=True, batch=True, jaccard=True, **ONE),
        "jaccard_metric": losses.DiceLoss(sigmoid=True, batch=True, jaccard=True, soft_label=True, **ONE),
        "tversky": losses.TverskyLoss(sigmoid=True, batch=True, alpha=0.3, beta=0.7, **ONE),
        "focal": losses.FocalLoss(alpha=0.25, gamma=2.0),
        "mcc": losses.MCCLoss(sigmoid=True, batch=True),
        "bce_dice": losses.DiceCELoss(sigmoid=True, batch=True, **ONE),
        "dice_focal": losses.DiceFocalLoss(sigmoid=True, batch=True, gamma=2.0, alpha=0.25, **ONE),
        "hausdorff_dt": losses.HausdorffDTLoss(sigmoid=True, include_background=True),
        "log_hausdorff_dt": losses.LogHausdorffDTLoss(sigmoid=True, include_background=True),
        "boundary": losses.BoundaryLoss(sigmoid=True),
        "cl_dice": losses.SoftclDiceLoss(sigmoid=True),
        "dice_cl_dice": losses.SoftDiceclDiceLoss(sigmoid=True),
        "ssim": lambda z, g: ssim(torch.sigmoid(z), g),
        "unified_focal": lambda z, g: unified(torch.sigmoid(z), g),
    }
    two: dict[str, Loss] = {
        "generalized_dice": losses.GeneralizedDiceLoss(softmax=True, batch=True),
        "generalized_dice_focal": losses.GeneralizedDiceFocalLoss(softmax=True, gamma=2.0),
        "asymmetric_focal": lambda z, g: AsymmetricFocalLoss()(torch.softmax(z, 1), g),
        "asymmetric_focal_tversky": lambda z, g: AsymmetricFocalTverskyLoss()(torch.softmax(z, 1), g),
    }
    numbered: dict[str, Loss] = {"wasserstein_dice": wasserstein, "nacl": lambda z, g: nacl(z, g[:, 0])}
    return _functions(size, batch, one, two, numbered)


def smp(size: int, batch: int) -> dict[str, Callable[..., Any]]:
    """The binary losses of segmentation_models.pytorch."""
    losses = _smp_losses()
    binary = "binary"
    mcc = losses.MCCLoss()
    one: dict[str, Loss] = {
        "bce": losses.SoftBCEWithLogitsLoss(),
        "label_smoothing_bce": losses.SoftBCEWithLogitsLoss(smooth_factor=0.05),
        "weighted_bce": losses.SoftBCEWithLogitsLoss(pos_weight=torch.tensor(2.0)).to(_device()),
        "dice": losses.DiceLoss(binary, smooth=0.5),
        "log_dice": losses.DiceLoss(binary, log_loss=True, smooth=0.5),
        "jaccard": losses.JaccardLoss(binary, smooth=1.0),
        "log_jaccard": losses.JaccardLoss(binary, log_loss=True, smooth=1.0),
        "tversky": losses.TverskyLoss(binary, alpha=0.3, beta=0.7),
        "focal_tversky": losses.TverskyLoss(binary, alpha=0.3, beta=0.7, gamma=0.75),
        "focal": losses.FocalLoss(binary, alpha=0.25),
        "normalized_focal": losses.FocalLoss(binary, normalized=True, reduction="sum"),
        "reduced_focal": losses.FocalLoss(binary, reduced_threshold=0.5),
        "lovasz_hinge": losses.LovaszLoss(binary, per_image=True),
        "mcc": lambda z, g: mcc(torch.sigmoid(z), g),
    }
    return _functions(size, batch, one, {}, {})


def _smp_losses() -> ModuleType:
    """Imports the package's losses, but not the package itself: that one wants torchvision and timm."""
    package = importlib.util.find_spec("segmentation_models_pytorch")
    assert package is not None and package.origin is not None
    folder, name = Path(package.origin).parent / "losses", "segmentation_models_pytorch_losses"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _functions(
    size: int, batch: int, one: Mapping[str, Loss], two: Mapping[str, Loss], numbered: Mapping[str, Loss]
) -> dict[str, Callable[..., Any]]:
    """What a worker serves: losses of one channel, of two channels of shares, of two channels and class numbers."""
    device = _device()
    masks = torch.from_numpy(images_and_masks(Workload(size=size, batch=batch))[1]).permute(0, 3, 1, 2)
    masks = masks.float().contiguous().to(device)
    logits = torch.randn(masks.shape, generator=torch.Generator().manual_seed(0)).to(device)
    pair = torch.cat([torch.zeros_like(logits), logits], 1)
    inputs = dict.fromkeys(one, (logits, masks))
    inputs |= dict.fromkeys(two, (pair, torch.cat([1 - masks, masks], 1)))
    inputs |= dict.fromkeys(numbered, (pair, masks.long()))
    losses = {**one, **two, **numbered}
    leaves = {name: z.detach().clone().requires_grad_() for name, (z, _) in inputs.items()}

    def run(loss: str, steps: int) -> None:
        z, g = leaves[loss], inputs[loss][1]
        for _ in range(steps):
            z.grad = None
            losses[loss](z, g).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return {
        "names": lambda: {name: type(fn).__name__ for name, fn in losses.items()},
        "describe": lambda: {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads",
            "version": f"torch {torch.__version__}",
        },
        "value": lambda loss: float(losses[loss](leaves[loss], inputs[loss][1]).detach()),
        "run": run,
        "temporary_bytes": lambda loss: None,
    }
