"""MONAI: its losses, and its own U-Net of the nearest size (a different network, so only the speed is compared)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from monai import losses
from monai.losses.unified_focal_loss import AsymmetricFocalLoss, AsymmetricFocalTverskyLoss
from monai.networks.nets import UNet
from torch import Tensor, nn

from experiments.bench.peers.torch import Loss, device, functions, loss_functions
from experiments.bench.workload import CHANNELS, Workload, parameter_count

ONE = {"smooth_nr": 1.0, "smooth_dr": 1.0}
DISTANCES = ((0.0, 1.0), (1.0, 0.0))


class Scaled(nn.Module):
    """A network on images of 0..255."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits."""
        return self.network(images.float() / 255)


class Hybrid(nn.Module):
    """Mean of BCE, SSIM loss and Jaccard loss."""

    def __init__(self) -> None:
        super().__init__()
        self.ssim = losses.SSIMLoss(spatial_dims=2)
        self.jaccard = losses.DiceLoss(jaccard=True, batch=True)

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Returns the loss."""
        probs = logits.sigmoid()
        bce = nn.functional.binary_cross_entropy_with_logits(logits, masks)
        return (bce + self.ssim(probs, masks) + self.jaccard(probs, masks)) / 3


def nearest(work: Workload) -> nn.Module:
    """The MONAI U-Net with the reference's filters whose number of parameters is nearest to the reference's."""
    channels = [work.filters(level) for level in range(work.num_layers + 1)]
    sizes = {}
    for units in range(4):
        with torch.device("meta"):  # counts without allocating
            network = UNet(2, CHANNELS, 1, channels, (2,) * work.num_layers, num_res_units=units)
        sizes[units] = sum(parameter.numel() for parameter in network.parameters())
    best = min(sizes, key=lambda units: abs(sizes[units] - parameter_count(work)))
    return UNet(2, CHANNELS, 1, channels, (2,) * work.num_layers, num_res_units=best)


def serve(**arguments: Any) -> dict[str, Callable[..., Any]]:
    """MONAI; the arguments are those of `Workload`."""
    work = Workload(**arguments)
    loss = nn.functional.binary_cross_entropy_with_logits if work.loss == "bce" else Hybrid().to(device())
    torch.manual_seed(0)
    return functions(work, Scaled(nearest(work)), loss)


def serve_losses(size: int, batch: int) -> dict[str, Callable[..., Any]]:
    """MONAI's losses of one channel, or two where it has no other form; options as close to jaxunet's as possible."""
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
    return loss_functions(size, batch, one, two, numbered)
