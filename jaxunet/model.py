"""The reference's U-Net as one loop down and one loop up."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxunet.layers import Conv1x1, Conv3x3, ReluDropout, UpConv, max_pool, relu


class UNet(nn.Module):
    """U-Net with `num_layers` poolings and `num_layers + 1` resolutions; 31 110 001 parameters at the defaults.

    Level i has `base_filters * 2**i` filters: convolution 3x3 + ReLU, dropout, convolution 3x3 + ReLU. The dropout rate
    grows with depth, `dropout_rate * i`. The decoder mirrors the encoder: up-convolution 2x2, concatenation
    `[up, skip]`, the same two convolutions. The head is a 1x1 convolution; the sigmoid belongs to losses and inference.

    Parameters are named `encoder{i}_conv1`, `encoder{i}_conv2`, `decoder{i}_up`, `decoder{i}_conv1`, `decoder{i}_conv2`
    and `head`, each with `kernel` and `bias`; the deepest level is `encoder{num_layers}`.

    Attributes:
      base_filters: filters at full resolution.
      num_layers: number of 2x2 poolings.
      num_classes: output channels, each an independent sigmoid.
      dropout_rate: dropout rate per level of depth; `dropout_rate * num_layers` must stay below 1.
      dtype: dtype of the computation (float32 or bfloat16). Parameters and logits are float32.
      remat: computes the convolutions of each level again in the backward pass instead of keeping their results: the
        same values in less memory and more time.

    Source: Ronneberger et al. 2015, arXiv 1505.04597, with 'same' padding and dropout.
    """

    base_filters: int = 16
    num_layers: int = 6
    num_classes: int = 1
    dropout_rate: float = 0.08
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> Array:
        """Computes logits.

        Args:
          images: `[B, H, W, C]`, values 0..255 of any dtype; H and W are multiples of `2**num_layers`.
          train: applies dropout, which needs an rng named `"dropout"`.

        Returns:
          Logits, float32 `[B, H, W, num_classes]`.

        Raises:
          ValueError: the images are not 4-D, or H or W cannot be halved `num_layers` times.
        """
        self._check(images)
        convolve = nn.remat(UNet._convolutions, static_argnums=(2, 3, 4)) if self.remat else UNet._convolutions
        x = (images.astype(jnp.float32) / 255).astype(self.dtype)
        skips = []
        for level in range(self.num_layers):
            x = convolve(self, (x,), level, "encoder", train)
            skips.append(x)
            x = max_pool(x)
        x = convolve(self, (x,), self.num_layers, "encoder", train)
        for level in reversed(range(self.num_layers)):
            x = UpConv(self._filters(level), dtype=self.dtype, name=f"decoder{level}_up")(x)
            x = convolve(self, (x, skips[level]), level, "decoder", train)
        return Conv1x1(self.num_classes, dtype=self.dtype, name="head")(x).astype(jnp.float32)

    def _filters(self, level: int) -> int:
        return self.base_filters * 2**level

    def _convolutions(self, inputs: tuple[Array, ...], level: int, path: str, train: bool) -> Array:
        def conv(number: int) -> Conv3x3:
            return Conv3x3(self._filters(level), dtype=self.dtype, name=f"{path}{level}_conv{number}")

        dropout = ReluDropout(self.dropout_rate * level, deterministic=not train, name=f"{path}{level}_dropout")
        return relu(conv(2)(dropout(conv(1)(*inputs))))

    def _check(self, images: Array) -> None:
        factor = 2**self.num_layers
        if images.ndim != 4 or images.shape[1] % factor or images.shape[2] % factor:
            raise ValueError(
                f"images have shape {images.shape}; expected [B, H, W, C] with H and W multiples of {factor} "
                f"(they are halved num_layers={self.num_layers} times)"
            )
