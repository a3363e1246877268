"""Augmentation inside the training step, on the device: a function of (seed, step, sample) only.

An augmentation is a pure function `(key, image, mask, **options) -> (image, mask)` of ONE sample: `image` float32
`[H, W, C]` with values 0..255, `mask` `[H, W, K]`. It keeps shapes and dtypes, and raises ValueError for an option out
of range. `register` adds it to `AUGMENTATIONS`; `compose` makes a step's `augment` argument from names and options.

The functions below move whole pixels or change intensities, so their order does not affect the quality of the
image. Rotation, scaling and elastic deformation interpolate, so they belong in one function that resamples once.
"""

import dataclasses
import inspect
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Augment = Callable[[Array, Array, Array], tuple[Array, Array]]
"""`(key, image, mask) -> (image, mask)` of one sample."""

Function = TypeVar("Function", bound=Callable[..., tuple[Array, Array]])

STREAM = np.uint32(2**32 - 1)
"""Separates the random numbers of augmentation from those of dropout, whose keys are those of the steps 0 to 2^31."""


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """An augmentation of one sample.

    Attributes:
      fn: the function, `(key, image, mask, **options)`.
    """

    fn: Callable[..., tuple[Array, Array]]

    @property
    def options(self) -> dict[str, Any]:
        """Keyword options and their defaults."""
        parameters = inspect.signature(self.fn).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


AUGMENTATIONS: dict[str, Augmentation] = {}
"""Every augmentation by the name of its function."""


def register(fn: Function) -> Function:
    """Enters a function into `AUGMENTATIONS` and returns it unchanged.

    Raises:
      ValueError: there is another augmentation of this name.
    """
    if fn.__name__ in AUGMENTATIONS:
        raise ValueError(f"there is an augmentation {fn.__name__!r} already")
    AUGMENTATIONS[fn.__name__] = Augmentation(fn)
    return fn


@register
def flip(
    key: Array, image: Array, mask: Array, *, probability: float = 0.5, vertical: bool = False
) -> tuple[Array, Array]:
    """Mirrors image and mask left to right.

    Options:
      probability: of the flip, in [0, 1].
      vertical: also mirrors top to bottom, independently and with the same probability.
    """
    _check_probability(probability)
    flips = jax.random.bernoulli(key, probability, (2,))

    def mirror(pixels: Array) -> Array:
        pixels = jnp.where(flips[0], pixels[:, ::-1], pixels)
        return jnp.where(flips[1], pixels[::-1], pixels) if vertical else pixels

    return mirror(image), mirror(mask)


@register
def gamma(
    key: Array, image: Array, mask: Array, *, probability: float = 0.5, low: float = 0.7, high: float = 1.5
) -> tuple[Array, Array]:
    """Brightens or darkens the image by a power, `255 (image / 255)^g`; black and white stay.

    Options:
      probability: of the change, in [0, 1].
      low: smallest exponent, above 0; exponents below 1 brighten.
      high: largest exponent, at least `low`. The logarithm of the exponent is drawn uniformly.

    Source: Isensee et al. 2021, nnU-Net, Nature Methods 18, supplementary note 4 (its range).
    """
    _check_probability(probability)
    if not 0 < low <= high < np.inf:
        raise ValueError(f"low={low}, high={high}; expected 0 < low <= high")
    of_change, of_exponent = jax.random.split(key)
    exponent = jnp.exp(jax.random.uniform(of_exponent, minval=np.log(low), maxval=np.log(high)))
    changed = 255 * (image / 255) ** exponent
    return jnp.where(jax.random.bernoulli(of_change, probability), changed, image), mask


def compose(augmentations: Mapping[str, Mapping[str, Any]]) -> Augment | None:
    """Builds the `augment` argument of a training step.

    Args:
      augmentations: options by the name of each augmentation, applied in this order:
        `{"flip": {"vertical": True}, "gamma": {}}`.

    Returns:
      A function of one sample; None if there is no augmentation.

    Raises:
      ValueError: an unknown name or option, or a value out of range.
    """
    for name, options in augmentations.items():
        if name not in AUGMENTATIONS:
            raise ValueError(f"unknown augmentation {name!r}; expected one of {', '.join(AUGMENTATIONS)}")
        known = AUGMENTATIONS[name].options
        if unknown := sorted(options.keys() - known.keys()):
            raise ValueError(f"{name} has no option {', '.join(unknown)}; expected one of {', '.join(known)}")
    # The key of each depends on its name, so adding one does not change the random numbers of the others.
    steps = [
        (zlib.crc32(name.encode()), partial(AUGMENTATIONS[name].fn, **options))
        for name, options in augmentations.items()
    ]

    def augment(key: Array, image: Array, mask: Array) -> tuple[Array, Array]:
        for number, function in steps:
            image, mask = function(jax.random.fold_in(key, np.uint32(number)), image, mask)
        return image, mask

    # Values are checked now, on shapes alone, rather than when the first step compiles.
    sample = jax.ShapeDtypeStruct((8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((8, 8, 1), jnp.uint8)
    jax.eval_shape(lambda *sample: augment(jax.random.key(0), *sample), *sample)
    return augment if steps else None


def augment_batch(augment: Augment, batch: Mapping[str, Any], *, seed: int, step: Array) -> dict[str, Any]:
    """Augments every sample of a global batch.

    A sample's random numbers depend on its index in the global batch, so they are the same on any number of devices.

    Args:
      augment: as from `compose`.
      batch: `"image"` `[B, H, W, C]`, values 0..255 of any dtype, `"mask"` `[B, H, W, K]`, and others, unchanged.
      seed: of the training run.
      step: int32 scalar, finished training steps.

    Returns:
      The batch, with float32 images.

    Raises:
      ValueError: an augmentation changes a shape or dtype.
    """
    image, mask = batch["image"].astype(jnp.float32), jnp.asarray(batch["mask"])
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), STREAM), step)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(image), dtype=jnp.uint32))
    images, masks = jax.vmap(augment)(keys, image, mask)
    for name, before, after in (("image", image, images), ("mask", mask, masks)):
        if (after.shape, after.dtype) != (before.shape, before.dtype):
            raise ValueError(
                f"augmented {name}s are {after.dtype} {after.shape}; expected {before.dtype} {before.shape}"
            )
    return {**batch, "image": images, "mask": masks}


def _check_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f"probability={probability}; expected a number in [0, 1]")
