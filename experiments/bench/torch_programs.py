"""PyTorch as a contender: eager or compiled, float32 or bf16 autocast, channels_last, fused Adam."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from experiments.bench import torch_unet
from experiments.bench.workload import ADAM, LEARNING_RATE, Workload, images_and_masks, weights


def pytorch(**arguments: Any) -> dict[str, Callable[..., Any]]:
    """PyTorch; the arguments are those of `Workload`."""
    work = Workload(**arguments)
    network = torch_unet.UNet(work)
    network.fill(weights(work))
    return functions(work, network, torch_unet.loss(work.loss, device()))


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def functions(
    work: Workload, network: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Callable[..., Any]]:
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
        """Compiles; cuDNN's choice of algorithms, which times them, is left to the first step, and so is the update."""
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
    """Bytes of a step: on a GPU the most that was allocated, on a CPU what stays and the profiler's peak of a step."""
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
