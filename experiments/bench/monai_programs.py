"""MONAI's own U-Net of the nearest size, with MONAI's losses: another network, so only its speed can be compared."""

from collections.abc import Callable
from typing import Any

import torch
from monai.losses import DiceLoss, SSIMLoss
from monai.networks.nets import UNet
from torch import Tensor, nn

from experiments.bench.torch_programs import device, functions
from experiments.bench.workload import CHANNELS, Workload, parameter_count


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
        self.ssim = SSIMLoss(spatial_dims=2)
        self.jaccard = DiceLoss(jaccard=True, batch=True)

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Returns the loss."""
        probs = logits.sigmoid()
        bce = nn.functional.binary_cross_entropy_with_logits(logits, masks)
        return (bce + self.ssim(probs, masks) + self.jaccard(probs, masks)) / 3


def nearest(work: Workload) -> nn.Module:
    """The network with the documented filters whose number of parameters is nearest to the documented one."""
    channels = [work.filters(level) for level in range(work.num_layers + 1)]
    sizes = {}
    for units in range(4):
        with torch.device("meta"):  # counts without allocating
            network = UNet(2, CHANNELS, 1, channels, (2,) * work.num_layers, num_res_units=units)
        sizes[units] = sum(parameter.numel() for parameter in network.parameters())
    best = min(sizes, key=lambda units: abs(sizes[units] - parameter_count(work)))
    return UNet(2, CHANNELS, 1, channels, (2,) * work.num_layers, num_res_units=best)


def monai(**arguments: Any) -> dict[str, Callable[..., Any]]:
    """MONAI; the arguments are those of `Workload`."""
    work = Workload(**arguments)
    loss = nn.functional.binary_cross_entropy_with_logits if work.loss == "bce" else Hybrid().to(device())
    torch.manual_seed(0)
    return functions(work, Scaled(nearest(work)), loss)
