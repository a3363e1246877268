"""PyTorch: eager or compiled, float32 or bfloat16 autocast, channels_last, fused Adam; its DataLoader and its peaks."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from experiments.bench import machine
from experiments.bench.workload import (
    ADAM,
    CHANNELS,
    LEARNING_RATE,
    SSIM,
    Weights,
    Workload,
    gaussian,
    images_and_masks,
    weights,
)

Loss = Callable[[Tensor, Tensor], Tensor]


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
    """`jaxunet.UNet` in PyTorch: logits `[B, 1, H, W]` of images `[B, 3, H, W]` with values 0..255."""

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
        """The layers with parameters, by their names in `jaxunet.UNet`."""
        for path, blocks in (("encoder", self.encoder), ("decoder", self.decoder)):
            for level, block in enumerate(blocks):
                yield f"{path}{level}_conv1", block.conv1
                yield f"{path}{level}_conv2", block.conv2
        for level, up in enumerate(self.up):
            yield f"decoder{level}_up", up
        yield "head", self.head

    def fill(self, drawn: Weights) -> None:
        """Copies weights: PyTorch stores convolutions as `[out, in, h, w]` and up-convolutions as `[in, out, h, w]`."""
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
    """One minus the structural similarity; its window is two depthwise convolutions."""

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


def serve(**arguments: Any) -> dict[str, Callable[..., Any]]:
    """PyTorch; the arguments are those of `Workload`."""
    work = Workload(**arguments)
    network = UNet(work)
    network.fill(weights(work))
    return functions(work, network, bce if work.loss == "bce" else Hybrid().to(device()))


def device() -> torch.device:
    """The GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def functions(work: Workload, network: nn.Module, loss: Loss) -> dict[str, Callable[..., Any]]:
    """What a worker serves for any network in PyTorch.

    Args:
      work: the task.
      network: images `[B, 3, H, W]`, 0..255, to logits `[B, 1, H, W]`.
      loss: `(logits, masks)` to a scalar, both float32.
    """
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs
    torch.backends.cudnn.benchmark = True
    on = device()
    network = network.to(on, memory_format=torch.channels_last)
    images, masks = (
        torch.from_numpy(array).to(on).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        for array in images_and_masks(work)
    )
    masks = masks.float()
    optimizer = torch.optim.Adam(
        network.parameters(), LEARNING_RATE, (ADAM["b1"], ADAM["b2"]), eps=ADAM["eps"], fused=True
    )
    forward = torch.compile(network) if work.compiled else network
    compared = torch.compile(loss) if work.compiled else loss

    def autocast() -> contextlib.AbstractContextManager[Any]:
        if work.dtype == "bfloat16":
            return torch.autocast(on.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def objective() -> Tensor:
        with autocast():
            logits = forward(images)
        return compared(logits.float(), masks)

    def train(steps: int) -> float:
        network.train()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            value = objective()
            value.backward()
            optimizer.step()
        return value.item() if on.type == "cpu" else _wait(value)

    def predict(steps: int) -> None:
        network.eval()
        with torch.inference_mode(), autocast():
            for _ in range(steps):
                probabilities = forward(images).float().sigmoid()
            probabilities[0, 0, 0, 0].item()  # waits for the device

    def value() -> float:
        network.eval()
        with torch.inference_mode(), autocast():
            logits = network(images).float()
        return float(loss(logits, masks) if work.task == "train" else logits.sigmoid().mean())

    run = train if work.task == "train" else predict

    def prepare() -> None:
        """Compiles all but the update, without cuDNN's timing of algorithms, which the first step makes alone."""
        torch.backends.cudnn.benchmark = False
        if work.task == "train":
            network.train()
            objective().backward()
        else:
            predict(1)
        torch.backends.cudnn.benchmark = True

    return {
        "prepare": prepare,
        "describe": lambda: {
            "platform": "gpu" if on.type == "cuda" else "cpu",
            "device": torch.cuda.get_device_name() if on.type == "cuda" else f"{torch.get_num_threads()} threads",
            "version": f"torch {torch.__version__}",
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
        },
        "value": value,
        "run": run,
        "memory": lambda: memory(network, optimizer, (images, masks), run),
    }


def _wait(value: Tensor) -> float:
    torch.cuda.synchronize()
    return value.item()


def memory(
    network: nn.Module, optimizer: torch.optim.Optimizer, inputs: tuple[Tensor, ...], run: Callable[[int], Any]
) -> dict[str, int]:
    """Bytes of a step: on a GPU the peak that was allocated, on a CPU what stays plus the profiler's peak of a step."""
    if device().type == "cuda":
        return {"bytes": torch.cuda.max_memory_allocated()}
    run(1)
    optimizer.zero_grad(set_to_none=True)  # gradients are allocated within the step
    state = [value for group in optimizer.state.values() for value in group.values() if isinstance(value, Tensor)]
    stays = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers(), *state, *inputs))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run(1)
    now = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return {"bytes": math.ceil(stays + peak), "stays": stays, "peak_of_a_step": peak}


class Slices(Dataset):
    """Pairs of image and mask files."""

    def __init__(self, files: Sequence[Sequence[str]]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns image `uint8[3, H, W]` and mask `uint8[1, H, W]` in {0, 1}."""
        image, mask = (np.array(Image.open(path)) for path in self.files[index])
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask // 255)[None]


def serve_loader(files: Sequence[Sequence[str]], batch: int, workers: int) -> dict[str, Callable[..., Any]]:
    """PyTorch's DataLoader on image files, as people write it: Pillow in worker processes, tensors of bytes."""
    loader = DataLoader(
        Slices(files),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
        pin_memory=torch.cuda.is_available(),
    )

    def endless() -> Iterator[Any]:
        while True:
            yield from loader

    batches = endless()

    def slices_per_second(seconds: float) -> float:
        for _ in range(2 * workers + 1):  # batches made while others worked
            next(batches)
        count, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            count += len(next(batches)[0])
        return count / elapsed

    return {"slices_per_second": slices_per_second}


def serve_peaks() -> dict[str, Callable[..., Any]]:
    """The machine's peaks through PyTorch."""
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs
    on = device()
    platform = "gpu" if on.type == "cuda" else "cpu"
    count = machine.COPY[platform] // 4

    def waiting(run: Callable[[], object]) -> Callable[[], object]:
        return (lambda: (run(), torch.cuda.synchronize())) if platform == "gpu" else run

    def multiply(side: int, dtype: str) -> Callable[[], object]:
        matrix = torch.from_numpy(machine.noise(side)).to(on, getattr(torch, dtype))
        out = torch.empty_like(matrix)
        return waiting(lambda: [torch.matmul(matrix, matrix, out=out) for _ in range(machine.CHAIN[platform])])

    def matmul(dtype: str, seconds: float) -> float:
        return machine.matmul_rate(platform, partial(multiply, dtype=dtype), seconds)

    def copy(seconds: float) -> float:
        source, target = torch.zeros(count, device=on), torch.ones(count, device=on)
        return machine.rate(waiting(lambda: target.copy_(source)), 2 * 4 * count, seconds)

    return {"matmul": matmul, "copy": copy}


def loss_functions(
    size: int, batch: int, one: Mapping[str, Loss], two: Mapping[str, Loss], numbered: Mapping[str, Loss]
) -> dict[str, Callable[..., Any]]:
    """What a worker serves for the losses of any library in PyTorch.

    Masks are float32 `[B, 1, H, W]` on the device; other forms are made outside the measured time.

    Args:
      size: height and width.
      batch: images.
      one: losses of one channel.
      two: losses of two channels, whose masks have two channels as well.
      numbered: losses of two channels, whose masks are class numbers.
    """
    on = device()
    masks = torch.from_numpy(images_and_masks(Workload(size=size, batch=batch))[1]).permute(0, 3, 1, 2)
    masks = masks.float().contiguous().to(on)
    logits = torch.randn(masks.shape, generator=torch.Generator().manual_seed(0)).to(on)
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
        if on.type == "cuda":
            torch.cuda.synchronize()

    return {
        "names": lambda: {name: type(fn).__name__ for name, fn in losses.items()},
        "describe": lambda: {
            "device": torch.cuda.get_device_name() if on.type == "cuda" else f"{torch.get_num_threads()} threads",
            "version": f"torch {torch.__version__}",
        },
        "value": lambda loss: float(losses[loss](leaves[loss], inputs[loss][1]).detach()),
        "run": run,
        "temporary_bytes": lambda loss: None,
    }
