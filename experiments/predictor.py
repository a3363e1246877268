"""A trained network as a function from images to probabilities."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from PIL import Image

from data_pipeline.images import resize_image
from experiments.build import Run, image_shape, load_run
from jaxunet.sharding import global_batch, make_mesh, replicate
from jaxunet.step import compile_predict_step


class Predictor:
    """Probabilities of images of any size, on all devices of this process.

    All batches have the same shape (the last one is padded), so the network is compiled once for bytes and once for
    floats, and the result of an image does not depend on the others.

    Args:
      model: the network.
      params: its parameters.
      image_shape: `(H, W, C)` the network was trained on; images of another size are resized to it (bilinear) and the
        probabilities back.
      batch_size: images predicted at once; rounded up to a multiple of the number of devices.
    """

    def __init__(
        self, model: nn.Module, params: Any, *, image_shape: tuple[int, int, int], batch_size: int = 8
    ) -> None:
        self._mesh = make_mesh(jax.local_devices())
        self._params = replicate(jax.device_get(params), self._mesh)
        self._step = compile_predict_step(self._mesh, apply_fn=model.apply)
        self._size = image_shape[:2]
        self.channels = image_shape[2]
        self.batch_size = -(-batch_size // self._mesh.size) * self._mesh.size

    def __call__(self, images: np.ndarray | jax.Array | Sequence[np.ndarray]) -> np.ndarray | list[np.ndarray]:
        """Computes probabilities.

        Args:
          images: `[H, W, C]`, `[B, H, W, C]`, or a list of `[H, W, C]` of any sizes; values 0..255, integer or float.

        Returns:
          float32 `[H, W, K]`, `[B, H, W, K]`, or a list of `[H, W, K]`, in [0, 1].

        Raises:
          ValueError: a wrong number of dimensions or channels, or values that are not finite or not in 0..255.
        """
        if isinstance(images, jax.Array):
            images = np.asarray(images)
        stacked = isinstance(images, np.ndarray)
        if isinstance(images, np.ndarray) and (images.ndim not in (3, 4) or 0 in images.shape):
            raise ValueError(f"images have shape {images.shape}; expected [H, W, C] or [B, H, W, C]")
        single = isinstance(images, np.ndarray) and images.ndim == 3
        inputs = [self._checked(np.asarray(image)) for image in ([images] if single else images)]
        results: list[np.ndarray] = []
        for start in range(0, len(inputs), self.batch_size):
            chunk = inputs[start : start + self.batch_size]
            for image, output in zip(chunk, np.asarray(self.start(chunk)), strict=False):
                results.append(self.resize_back(output, image.shape[:2]))
        if single:
            return results[0]
        return np.stack(results) if stacked else results

    def start(self, images: Sequence[np.ndarray]) -> jax.Array:
        """Starts a batch of at most `batch_size` images `[H, W, C]`, uint8 or float32, without waiting for it.

        Returns `[batch_size, H, W, K]` at the size of the network; the rows after the images are padding.
        """
        dtype = np.uint8 if all(image.dtype == np.uint8 for image in images) else np.float32
        batch = np.zeros((self.batch_size, *self._size, self.channels), dtype)
        for row, image in zip(batch, images, strict=False):
            row[:] = _resize(image, self._size)
        return self._step(self._params, global_batch({"image": batch}, self._mesh)["image"])

    def resize_back(self, probabilities: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Resizes probabilities `[h, w, K]` to `size` = (height, width), float32 in [0, 1]; NaN stays NaN."""
        return np.clip(_resize(np.asarray(probabilities, np.float32), size), 0, 1)

    def _checked(self, image: np.ndarray) -> np.ndarray:
        if image.ndim != 3 or image.shape[2] != self.channels or 0 in image.shape:
            raise ValueError(f"image of shape {image.shape}; expected [H, W, {self.channels}], as in training")
        if image.dtype == np.uint8:
            return image
        image = image.astype(np.float32)
        low, high = image.min(), image.max()
        if not (low >= 0 and high <= 255):  # also refuses NaN
            raise ValueError(f"image with values from {low} to {high}; expected 0 to 255")
        if 0 < high <= 1:
            warnings.warn("an image has no value above 1; values are 0..255, so it is almost black", stacklevel=3)
        return image


def load_predictor(run_dir: str | Path, *, batch_size: int | None = None) -> Predictor:
    """Loads the best checkpoint of a run; see `experiments.predict.load`."""
    return predictor_of_run(load_run(run_dir), batch_size=batch_size)


def predictor_of_run(run: Run, *, batch_size: int | None = None) -> Predictor:
    """Returns the predictor of a loaded run; `batch_size` defaults to its `infer.batch_size`."""
    batch_size = batch_size or run.config.infer.batch_size
    return Predictor(run.model, run.params, image_shape=image_shape(run.config), batch_size=batch_size)


def _resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes `[h, w, channels]`, bilinear, antialiased if it shrinks."""
    if values.shape[:2] == tuple(size):
        return values
    if values.dtype == np.uint8:
        return resize_image(values, size)
    planes = map(Image.fromarray, np.moveaxis(values, -1, 0))
    return np.stack([np.asarray(plane.resize(size[::-1], Image.Resampling.BILINEAR)) for plane in planes], axis=-1)
