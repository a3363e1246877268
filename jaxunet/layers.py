"""Convolution, ReLU with dropout, up-convolution and max-pooling with the documented values, written for XLA.

XLA's CPU backend does the gradients of `flax.linen.ConvTranspose` (strided) and of `flax.linen.max_pool`
(select-and-scatter) slowly, and select-and-scatter has no deterministic form on GPUs. Both layers are small enough to
be said in operations that every backend does well. ReLU and dropout are one function, for the sake of memory. The 3x3
convolution has forms of its own on CPUs and on NVIDIA GPUs. The tests compare value and gradient of each with the plain
forms.
"""

import functools
import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

TILE = 64
"""Channels that a convolution on a GPU computes at once, of one pixel or of up to `NEIGHBOURS`."""

NEIGHBOURS = 4
"""Pixels of a row that are one pixel to a GPU; the multiplications grow with their number, and four are worth it."""

IMAGE = 4
"""Channels up to which two pixels are convolved at once."""

FEW = 16
"""Channels of the input from which the gradient of a kernel is nine matrix products, one for each of its pixels."""

MANY = 32
"""Channels of both sides from which it is one large product."""

WIDE = 64
"""Channels of the input from which the gradients on tiny images are matrix products."""

STRIP = 8
"""Rows of an image that are worked on at once; an image that cannot be cut into strips of 2 to 8 is done whole."""

DRAWS = 2**16
"""Different numbers that dropout draws."""

TINY = 8 * 8
"""Pixels up to which images are tiny: a matrix product beats XLA's CPU convolution for the input's gradient too."""

MOTE = 2 * 2
"""Pixels up to which it does so forward, too: a step on images of 64x64 takes half the time."""


class Conv3x3(nn.Module):
    """Convolution 3x3 with zero padding: `[B, H, W, C]` to `[B, H, W, features]`; parameters as in `flax.linen.Conv`.

    Attributes:
      features: number of output channels.
      dtype: dtype of the computation; parameters are float32.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, *parts: Array) -> Array:
        """Returns `[B, H, W, features]` in `dtype`; the channels of several inputs are taken as concatenated."""
        channels = sum(part.shape[-1] for part in parts)
        kernel = self.param("kernel", nn.initializers.he_normal(), (3, 3, channels, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        kernel, bias, *images = nn.dtypes.promote_dtype(kernel, bias, *parts, dtype=self.dtype)
        return conv3x3(tuple(images), kernel, bias)


@jax.custom_vjp
def conv3x3(parts: tuple[Array, ...], kernel: Array, bias: Array) -> Array:
    """Images convolved with `kernel` `[3, 3, C, D]`, zero padding, plus `bias` `[D]`: `[B, H, W, D]`.

    `parts` are images `[B, H, W, C_i]` with C channels in all, in the order of the kernel's. On CPUs each part has a
    convolution of its own (unless the kernel is larger than they are), so that no concatenation is written and kept.
    The gradient of a kernel of 16 channels or more, both gradients on tiny images, and all three on images of four
    pixels or fewer are matrix products there: XLA hands those to a routine made for large images and small kernels, at
    a half to a tenth of what the processor can do. Where the batch is divided among several CPU devices, the sums over
    it are exchanged strip by strip. On NVIDIA GPUs neighbours in a row are taken as channels where there are few of
    those, see `_forward_cuda`. Elsewhere it is `lax.conv_general_dilated`. Differentiable in reverse mode, any number
    of times.
    """
    return lax.platform_dependent(parts, kernel, bias, cpu=_forward_cpu, cuda=_forward_cuda, default=_forward)


Parts = tuple[Array, ...]


def _conv3x3_fwd(parts: Parts, kernel: Array, bias: Array) -> tuple[Array, tuple[Parts, Array]]:
    return conv3x3(parts, kernel, bias), (parts, kernel)


def _conv3x3_bwd(residuals: tuple[Parts, Array], g: Array) -> tuple[Parts, Array, Array]:
    gradients = lax.platform_dependent(*residuals, g, cpu=_gradients_cpu, cuda=_gradients_cuda, default=_gradients)
    return *gradients, lax.reduce_sum(g, (0, 1, 2))


conv3x3.defvjp(_conv3x3_fwd, _conv3x3_bwd)


def _forward(parts: Parts, kernel: Array, bias: Array) -> Array:
    return _conv(jnp.concatenate(parts, axis=-1), kernel) + bias


def _gradients(parts: Parts, kernel: Array, g: Array) -> tuple[Parts, Array]:
    return jax.vjp(lambda parts, kernel: _conv(jnp.concatenate(parts, axis=-1), kernel), parts, kernel)[1](g)


def _forward_cuda(parts: Parts, kernel: Array, bias: Array) -> Array:
    """Where the result has few channels, several neighbours of a row are computed as one pixel of more channels.

    cuDNN's tiles are made for 64 channels and more: on an H200, 16 took three times as long as 4 x 16, though most of
    the kernel is zeros then. In memory, nothing moves.
    """
    pixels = _neighbours_at_once(parts, kernel)
    wide = _conv(_grouped(parts, pixels), _kernel_of_groups(kernel, parts, pixels)) + jnp.tile(bias, pixels)
    return wide.reshape(*parts[0].shape[:3], -1)


def _gradients_cuda(parts: Parts, kernel: Array, g: Array) -> tuple[Parts, Array]:
    pixels = _neighbours_at_once(parts, kernel)
    (g,) = _groups((g,), pixels)
    slopes = jax.vjp(lambda parts: _conv(_grouped(parts, pixels), _kernel_of_groups(kernel, parts, pixels)), parts)[1]
    # As if `g` were convolved, with the kernel turned. cuDNN's result then has the last axis where parameters have it,
    # and the optimizer reads it as it lies; otherwise it transposes 31 million numbers, in twice the time.
    turned = _kernel_gradient(g, _grouped(parts, pixels))
    narrow = jax.linear_transpose(lambda kernel: _kernel_of_groups(kernel, parts, pixels), kernel)
    return *slopes(g), *narrow(turned[::-1, ::-1].swapaxes(2, 3))


def _neighbours_at_once(parts: Parts, kernel: Array) -> int:
    pixels = max(1, min(NEIGHBOURS, TILE // kernel.shape[-1]))
    return pixels if parts[0].shape[2] % pixels == 0 else 1


def _groups(parts: Parts, pixels: int) -> list[Array]:
    """`[B, H, W, C_i]` as `[B, H, W / pixels, pixels * C_i]`."""
    return [part.reshape(*part.shape[:2], part.shape[2] // pixels, -1) for part in parts]


def _grouped(parts: Parts, pixels: int) -> Array:
    return jnp.concatenate(_groups(parts, pixels), axis=-1)


def _kernel_of_groups(kernel: Array, parts: Parts, pixels: int) -> Array:
    """`[3, 3, C, D]` to `[3, 3, pixels * C, pixels * D]`: the kernel once for each pixel of a group, zero elsewhere."""
    if pixels == 1:
        return kernel
    before = pixels - 1  # pixels of the group before, or of the one behind, that none of this group sees

    def widen(rows: Array) -> Array:
        ways = [jnp.pad(rows, ((0, 0), (before + j, 2 * before - j), (0, 0), (0, 0))) for j in range(pixels)]
        return jnp.stack(ways, axis=3).reshape(3, 3, pixels * rows.shape[2], -1)

    return jnp.concatenate([widen(rows) for rows in _split(kernel, parts, axis=2)], axis=2)


def _forward_cpu(parts: Parts, kernel: Array, bias: Array) -> Array:
    if _is_large(kernel, parts):
        return _part_cpu(jnp.concatenate(parts, axis=-1), kernel) + bias
    first, *others = (_part_cpu(x, rows) for x, rows in zip(parts, _split(kernel, parts, axis=2), strict=True))
    return sum(others, start=first) + bias


def _gradients_cpu(parts: Parts, kernel: Array, g: Array) -> tuple[Parts, Array]:
    if _is_large(kernel, parts):
        x = jnp.concatenate(parts, axis=-1)
        slopes = _split(_input_gradient_cpu(x, kernel, g), parts, axis=3)
        return tuple(slopes), _kernel_gradient_cpu(x, g)
    slopes = [_input_gradient_cpu(x, rows, g) for x, rows in zip(parts, _split(kernel, parts, axis=2), strict=True)]
    return tuple(slopes), jnp.concatenate([_kernel_gradient_cpu(x, g) for x in parts], axis=2)


def _is_large(kernel: Array, parts: Sequence[Array]) -> bool:
    """Whether it takes longer to copy the kernel in parts than the images as one."""
    return kernel.size > sum(part.size for part in parts)


def _split(joined: Array, parts: Sequence[Array], axis: int) -> list[Array]:
    """Cuts an axis of C channels into as many as each part has."""
    ends = itertools.accumulate(part.shape[-1] for part in parts)
    return jnp.split(joined, list(ends)[:-1], axis=axis)


def _conv(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _kernel_gradient(x: Array, g: Array) -> Array:
    kernel = jnp.zeros((3, 3, x.shape[-1], g.shape[-1]), x.dtype)
    return jax.vjp(lambda kernel: _conv(x, kernel), kernel)[1](g)[0]


def _part_cpu(x: Array, kernel: Array) -> Array:
    if x.shape[-1] <= IMAGE and x.shape[2] % 2 == 0:
        return _conv_of_pairs(x, kernel)
    if x.shape[1] * x.shape[2] > MOTE or x.shape[3] < WIDE:
        return _conv(x, kernel)
    return jnp.tensordot(_neighbours(_neighbours(x, 2), 1), kernel, 3)  # patches [B, H, W, 3, 3, C]


def _conv_of_pairs(x: Array, kernel: Array) -> Array:
    """Two neighbours of a row at once, from the four pixels of a row that they see: a wider product of few channels."""
    pairs = jnp.stack([jnp.pad(kernel, ((0, 0), (j, 1 - j), (0, 0), (0, 0))) for j in range(2)], axis=3)
    both = lax.conv_general_dilated(
        x, pairs.reshape(3, 4, x.shape[-1], -1), (1, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return both.reshape(*x.shape[:3], -1)


def _input_gradient_cpu(x: Array, kernel: Array, g: Array) -> Array:
    if not _is_tiny(x):  # JAX's own transpose is as fast, but takes five times as long in a loop, as of `accumulate`
        return _conv(g, kernel[::-1, ::-1].swapaxes(2, 3))
    h, w = x.shape[1:3]
    # The kernel first: as it lies, it is the left side of a product, and as the right side it would be transposed.
    parts = lax.dot_general(kernel, g, (((3,), (3,)), ((), ()))).transpose(3, 4, 5, 0, 1, 2)
    parts = jnp.pad(parts, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0), (0, 0)))
    return sum((parts[:, 2 - i : 2 - i + h, 2 - j : 2 - j + w, i, j] for i in range(3) for j in range(3)), start=0 * x)


def _kernel_gradient_cpu(x: Array, g: Array) -> Array:
    if _is_tiny(x):  # no other form leaves the large result in its order
        return jnp.einsum("bhwijc,bhwd->ijcd", _neighbours(_neighbours(x, 2), 1), g)
    if x.shape[-1] < FEW:
        return _kernel_gradient(x, g)
    height = x.shape[1]
    g = jnp.pad(g, ((0, 0), (1, 1), (0, 0), (0, 0)))
    rows = max((rows for rows in range(2, STRIP + 1) if height % rows == 0), default=height)
    if rows == height:
        return _kernel_gradient_of_strip(x, g).astype(x.dtype)

    # In a loop, the copies of `x` stay in the cache. They also come to be when `g` is there: outside of a loop XLA
    # makes them as soon as `x` is known, in the forward pass, and keeps all layers' until the backward pass is there.
    def add_strip(total: Array, top: Array) -> tuple[Array, None]:
        strip = lax.dynamic_slice_in_dim(x, top, rows, axis=1)
        slopes = lax.dynamic_slice_in_dim(g, top, rows + 2, axis=1)
        return total + _kernel_gradient_of_strip(strip, slopes), None

    zeros = jnp.zeros((3, 3, x.shape[-1], g.shape[-1]), jnp.promote_types(x.dtype, jnp.float32))
    return lax.scan(add_strip, zeros, jnp.arange(0, height, rows))[0].astype(x.dtype)


def _kernel_gradient_of_strip(x: Array, g: Array) -> Array:
    """What rows `x` `[B, R, W, C]` add to the kernel's gradient, summed in float32 at least.

    `g` `[B, R + 2, W, D]` has a row more on each side.
    """
    x = _neighbours(x, 2)  # shifted along the rows; `g` is shifted across them, the other way
    shifted = [g[:, 2 - i : 2 - i + x.shape[1]] for i in range(3)]
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))
    if min(x.shape[-1], g.shape[-1]) >= MANY:
        return product("bhwjc,bhwid->ijcd", x, jnp.stack(shifted, axis=3))
    # Nine products of few channels are faster than one and the copies it takes.
    return jnp.stack([jnp.stack([product("bhwc,bhwd->cd", x[..., j, :], g) for j in range(3)]) for g in shifted])


def _is_tiny(x: Array) -> bool:
    return x.shape[1] * x.shape[2] <= TINY and x.shape[3] >= WIDE


def _neighbours(x: Array, axis: int) -> Array:
    """Each pixel beside the one before and after it along `axis`, zero outside: a new axis of 3 after the third."""
    size = x.shape[axis]
    padded = jnp.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(x.ndim)])
    return jnp.stack([lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3)], axis=3)


class ReluDropout(nn.Module):
    """ReLU, then dropout: `[B, H, W, C]` to the same shape.

    A value is kept with the probability `1 - rate`, rounded to 16 bits, and divided by it. The numbers are drawn two
    from a word of 32 bits, along the channels; they depend on the key named `"dropout"` and the shape only.

    Attributes:
      rate: share of values that are set to zero, at least 0 and below 1.
      deterministic: leaves dropout out.
    """

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns an array of the shape and dtype of `x`."""
        dropped = min(round(self.rate * DRAWS), DRAWS - 1)
        if self.deterministic or not dropped:
            return relu(x)
        words = jax.random.bits(self.make_rng("dropout"), (*x.shape[:-1], -(-x.shape[-1] // 2)), jnp.uint32)
        draws = lax.bitcast_convert_type(words, jnp.uint16).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]
        return relu(x, draws >= dropped, scale=DRAWS / (DRAWS - dropped))


@functools.partial(jax.custom_vjp, nondiff_argnames=("scale",))
def relu(x: Array, keep: Array | None = None, scale: float = 1.0) -> Array:
    """`max(x, 0) * scale` where `keep`, 0 elsewhere. The gradient at `x = 0` is 0.

    Where the result is positive, the input was, and was kept: the backward pass needs nothing but the result, which the
    next convolution keeps anyway. `jax.nn.relu` and dropout on their own keep two inputs and a mask more.
    """
    # A convolution of cuDNN's can end with this maximum, and with no other form of it. On a CPU, XLA would compute a
    # maximum a second time in the backward pass, and keep `x` for it too.
    y = lax.platform_dependent(x, cuda=lambda x: jnp.maximum(x, 0), default=lambda x: jnp.where(x < 0, 0, x)) * scale
    return y if keep is None else jnp.where(keep, y, 0)


def _relu_fwd(x: Array, keep: Array | None, scale: float) -> tuple[Array, Array]:
    y = relu(x, keep, scale)
    return y, y


def _relu_bwd(scale: float, y: Array, g: Array) -> tuple[Array, None]:
    return jnp.where(y > 0, g * scale, 0), None


relu.defvjp(_relu_fwd, _relu_bwd)


class Conv1x1(nn.Module):
    """Convolution 1x1: `[B, H, W, C]` to `[B, H, W, features]`; parameters as in `flax.linen.Conv`.

    It is a matrix product, and said so: XLA's CPU backend computes the kernel's gradient of the convolution with a
    window as large as the image.

    Attributes:
      features: number of output channels.
      dtype: dtype of the computation; parameters are float32.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns `[B, H, W, features]` in `dtype`."""
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), (1, 1, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return x @ kernel[0, 0] + bias


class UpConv(nn.Module):
    """Transposed convolution, kernel 2x2, stride 2: `[B, H, W, C]` to `[B, 2H, 2W, features]`.

    Kernel and stride are equal, so no two windows overlap and the layer is one matrix product followed by a reshape.

    The kernel is `[2, 2, C, features]` in unflipped order, `out[2i+a, 2j+b] = x[i, j] @ kernel[a, b] + bias`. Keras
    stores the same numbers as `[2, 2, features, C]`; `flax.linen.ConvTranspose` flips the two spatial axes.

    Attributes:
      features: number of output channels.
      dtype: dtype of the computation; parameters are float32.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns `[B, 2H, 2W, features]` in `dtype`."""
        b, h, w, c = x.shape
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), (2, 2, c, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        matrix = kernel.transpose(2, 0, 1, 3).reshape(c, 4 * self.features)
        blocks = (x.reshape(-1, c) @ matrix).reshape(b, h, w, 2, 2, self.features)
        return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, self.features) + bias


def max_pool(x: Array) -> Array:
    """Maximum over 2x2 windows, stride 2: `[B, H, W, C]` to `[B, H/2, W/2, C]`, H and W even.

    Where values tie, the whole gradient goes to the first pixel of the window in row-major order, as in TensorFlow and
    `flax.linen.max_pool`. Ties are the common case, because the background of an MRI slice is constant.
    """
    return lax.platform_dependent(x, cuda=_max_pool_cuda, default=_max_pool)


def _max_pool(x: Array) -> Array:
    return _max_and_place(x)[0]


def _max_and_place(x: Array) -> tuple[Array, Array]:
    """The maximum and which of the four pixels it is, 0 to 3."""
    rows = [[x[:, i::2, j::2] for j in range(2)] for i in range(2)]
    (top, right), (bottom, low_right) = (_first_max(*row) for row in rows)
    largest, low = _first_max(top, bottom)
    return largest, jnp.where(low, 2 + low_right.astype(jnp.uint8), right.astype(jnp.uint8))


def _first_max(a: Array, b: Array) -> tuple[Array, Array]:
    # jnp.maximum would split the gradient of a tie; a comparison alone would lose a NaN in `a`.
    first = (a >= b) | jnp.isnan(a)
    return jnp.where(first, a, b), ~first


@jax.custom_vjp
def _max_pool_cuda(x: Array) -> Array:
    """Its gradient is written at once, at the place that the forward pass keeps in a byte for each window.

    XLA's sum of four arrays with gaps, one for each pixel of a window, takes twice as long.
    """
    return _max_pool(x)


def _max_pool_cuda_bwd(place: Array, g: Array) -> tuple[Array]:
    b, h, w, c = g.shape
    places = jnp.arange(4, dtype=jnp.uint8).reshape(2, 1, 2, 1)
    spread = jnp.where(place[:, :, None, :, None] == places, g[:, :, None, :, None], 0)
    return (spread.reshape(b, 2 * h, 2 * w, c),)


_max_pool_cuda.defvjp(_max_and_place, _max_pool_cuda_bwd)
