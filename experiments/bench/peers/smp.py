"""The binary losses of segmentation_models.pytorch, in eager PyTorch.

Options are set as close to jaxunet's as possible; averages run over the batch where the library has the choice.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from experiments.bench.peers.torch import Loss, device, loss_functions


def serve_losses(size: int, batch: int) -> dict[str, Callable[..., Any]]:
    """The losses by the names of jaxunet."""
    losses = import_losses()
    binary = "binary"
    mcc = losses.MCCLoss()
    one: dict[str, Loss] = {
        "bce": losses.SoftBCEWithLogitsLoss(),
        "label_smoothing_bce": losses.SoftBCEWithLogitsLoss(smooth_factor=0.05),
        "weighted_bce": losses.SoftBCEWithLogitsLoss(pos_weight=torch.tensor(2.0)).to(device()),
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
    return loss_functions(size, batch, one, {}, {})


def import_losses() -> ModuleType:
    """Imports the package's losses without the package itself, which needs torchvision and timm."""
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
