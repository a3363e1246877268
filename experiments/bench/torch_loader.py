"""PyTorch's DataLoader on image files, as people write it: Pillow in worker processes, tensors of bytes."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


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


def program(files: Sequence[Sequence[str]], batch: int, workers: int) -> dict[str, Callable[..., Any]]:
    """What the worker serves; the arguments are those of `Slices` and `DataLoader`."""
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
        for _ in range(2 * workers + 1):  # what was made ahead while others worked
            next(batches)
        count, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            count += len(next(batches)[0])
        return count / elapsed

    return {"slices_per_second": slices_per_second}
