"""The documented network and the losses as a user of PyTorch writes them: `nn.Module`, channels_last, logits."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from experiments.bench.workload import CHANNELS, SSIM, Weights, Workload, gaussian


class Block(nn.Module):
    """Convolution, ReLU, dropout, convolution, ReLU."""

    def __init__(self, incoming: int, filters: int, rate: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(incoming, filters, 3, padding=1)
        self.dropout = nn.Dropout(rate) if rate else nn.Identity()
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `[B, filters, H, W]`."""
        x = self.dropout(nnf.relu(self.conv1(x), inplace=True))
        return nnf.relu(self.conv2(x), inplace=True)


class UNet(nn.Module):
    """The U-Net of `jaxunet.UNet`: logits `[B, 1, H, W]` of images `[B, 3, H, W]` with values 0..255."""

    def __init__(self, work: Workload) -> None:
        super().__init__()
        filters = [work.filters(level) for level in range(work.num_layers + 1)]
        rates = [work.dropout_rate * level for level in range(work.num_layers + 1)]
        self.encoder = nn.ModuleList(
            Block(incoming, count, rate)
            for incoming, count, rate in zip([CHANNELS, *filters[:-1]], filters, rates, strict=True)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(below, count, 2, stride=2)
            for below, count in zip(filters[1:], filters[:-1], strict=True)
        )
        self.decoder = nn.ModuleList(
            Block(2 * count, count, rate) for count, rate in zip(filters[:-1], rates[:-1], strict=True)
        )
        self.head = nn.Conv2d(filters[0], 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits."""
        x = images.float() / 255
        skips = []
        for block in self.encoder[:-1]:
            skips.append(block(x))
            x = nnf.max_pool2d(skips[-1], 2)
        x = self.encoder[-1](x)
        for level in reversed(range(len(skips))):
            x = self.decoder[level](torch.cat([self.up[level](x), skips[level]], dim=1))
        return self.head(x)

    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        """The layers with parameters, under the names of `jaxunet.UNet`."""
        for path, blocks in (("encoder", self.encoder), ("decoder", self.decoder)):
            for level, block in enumerate(blocks):
                yield f"{path}{level}_conv1", block.conv1
                yield f"{path}{level}_conv2", block.conv2
        for level, up in enumerate(self.up):
            yield f"decoder{level}_up", up
        yield "head", self.head

    def fill(self, drawn: Weights) -> None:
        """Copies weights: PyTorch keeps convolutions as `[out, in, h, w]` and up-convolutions as `[in, out, h, w]`."""
        with torch.no_grad():
            for name, layer in self.layers():
                order = (2, 3, 0, 1) if name.endswith("_up") else (3, 2, 0, 1)
                layer.weight.copy_(torch.from_numpy(drawn[name]["kernel"].transpose(order)))
                layer.bias.copy_(torch.from_numpy(drawn[name]["bias"]))


def bce(logits: Tensor, masks: Tensor) -> Tensor:
    """Binary cross-entropy."""
    return nnf.binary_cross_entropy_with_logits(logits, masks)


def jaccard(probs: Tensor, masks: Tensor) -> Tensor:
    """One minus the soft Jaccard index of the batch."""
    overlap = (probs * masks).sum()
    return 1 - overlap / (probs.sum() + masks.sum() - overlap)


class Ssim(nn.Module):
    """One minus the structural similarity, its window as two depthwise convolutions."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.from_numpy(gaussian()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the loss of maps `[B, 1, H, W]`."""
        maps = torch.cat([x, y, x * x, y * y, x * y], dim=1)
        window = self.window.expand(5, 1, -1)
        maps = nnf.conv2d(nnf.conv2d(maps, window[:, :, :, None], groups=5), window[:, :, None, :], groups=5)
        mean_x, mean_y, square_x, square_y, product = maps.unbind(1)
        luminance = (2 * mean_x * mean_y + SSIM["c1"]) / (mean_x**2 + mean_y**2 + SSIM["c1"])
        covariance, variances = product - mean_x * mean_y, square_x + square_y - mean_x**2 - mean_y**2
        return 1 - (luminance * (2 * covariance + SSIM["c2"]) / (variances + SSIM["c2"])).mean()


class Hybrid(nn.Module):
    """Mean of BCE, SSIM loss and Jaccard loss."""

    def __init__(self) -> None:
        super().__init__()
        self.ssim = Ssim()

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Returns the loss."""
        probs = logits.sigmoid()
        return (bce(logits, masks) + self.ssim(probs, masks) + jaccard(probs, masks)) / 3


def loss(name: str, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss by its name."""
    return bce if name == "bce" else Hybrid().to(device)
