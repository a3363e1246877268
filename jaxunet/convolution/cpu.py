"""The 3x3 convolution on CPUs: input by input, and as matrix products where XLA's convolution is slow.

Each input is convolved separately, unless the kernel is larger than the inputs, so that no concatenation is written and
kept. XLA's routine is made for large images and small kernels; elsewhere it reaches a half to a tenth of the
processor's speed. So these are computed as matrix products: the gradient of a kernel with at least 16 channels, both
gradients on tiny images, and everything on images of at most four pixels. Images with at least 32 channels are
convolved with half of the multiplications. If the batch is divided among several CPU devices, sums over it are
exchanged strip by strip.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from jaxunet.convolution.plain import Inputs, convolve, kernel_gradient, kernel_per_pixel, split, varying_as

MAX_CHANNELS_FOR_PAIRS = 4
"""With at most this many input channels, two pixels are convolved at once."""

MIN_CHANNELS_FOR_ROW_PRODUCTS = 16
"""From this many input channels on, the kernel's gradient is three matrix products, one for each of its rows."""

MIN_CHANNELS_FOR_FOUR_ROWS = 32
"""With at least this many channels on both sides, four rows of an image are computed at once, unless it is tiny."""

MIN_CHANNELS_FOR_TINY = 64
"""From this many input channels on, products replace convolutions of images that are small enough, see below."""

MAX_STRIP_ROWS = 8
"""Rows of an image processed at once; an image that cannot be cut into strips of 2 to 8 rows is processed whole."""

MAX_TINY_PIXELS = 8 * 8
"""Up to this many pixels, both gradients are matrix products, which beat XLA's CPU convolution there."""

MAX_FORWARD_PRODUCT_PIXELS = 2 * 2
"""Up to this many pixels, the forward pass is one too: a step on images of 64x64 takes half the time."""

NEAR, FAR = 0.75, 1.5
"""Points at which the polynomials for four rows are evaluated, with both signs, besides 0 and infinity."""


def forward(inputs: Inputs, kernel: Array, bias: Array) -> Array:
    """`[B, H, W, D]`."""
    if _is_large(kernel, inputs):
        inputs = (jnp.concatenate(inputs, axis=-1),)
    kernels = split(kernel, inputs, axis=2)
    if all(map(_saves_by_fours, inputs, kernels)):
        return _convolve_rows_by_fours(inputs, kernels) + bias
    first, *others = map(_forward_of_input, inputs, kernels)
    return sum(others, start=first) + bias


def gradients(inputs: Inputs, kernel: Array, g: Array) -> tuple[Inputs, Array]:
    """Gradients of inputs and kernel, from that of the result, `[B, H, W, D]`."""
    if _is_large(kernel, inputs):
        x = jnp.concatenate(inputs, axis=-1)
        input_gradients = split(_input_gradient(x, kernel, g), inputs, axis=3)
        return tuple(input_gradients), _kernel_gradient(x, g)
    input_gradients = [
        _input_gradient(x, rows, g) for x, rows in zip(inputs, split(kernel, inputs, axis=2), strict=True)
    ]
    return tuple(input_gradients), jnp.concatenate([_kernel_gradient(x, g) for x in inputs], axis=2)


def _is_large(kernel: Array, inputs: Sequence[Array]) -> bool:
    """Whether splitting the kernel copies more than concatenating the inputs."""
    return kernel.size > sum(x.size for x in inputs)


def _forward_of_input(x: Array, kernel: Array) -> Array:
    if x.shape[-1] <= MAX_CHANNELS_FOR_PAIRS and x.shape[2] % 2 == 0:
        return _forward_of_pairs(x, kernel)
    if x.shape[1] * x.shape[2] > MAX_FORWARD_PRODUCT_PIXELS or x.shape[3] < MIN_CHANNELS_FOR_TINY:
        return convolve(x, kernel)
    return jnp.tensordot(_neighbours(_neighbours(x, 2), 1), kernel, 3)  # patches [B, H, W, 3, 3, C]


def _forward_of_pairs(x: Array, kernel: Array) -> Array:
    """Two neighbours in a row at once, from the four pixels of a row that they see: a wider product of few channels."""
    pairs = kernel_per_pixel(kernel, 2, 0, 1).reshape(3, 4, x.shape[-1], -1)
    numbers = ("NHWC", "HWIO", "NHWC")
    both = lax.conv_general_dilated(x, pairs, (1, 2), ((1, 1), (1, 1)), dimension_numbers=numbers)
    return both.reshape(*x.shape[:3], -1)


def _saves_by_fours(x: Array, kernel: Array) -> bool:
    # On tiny images transforming the kernel costs as much as the images; bfloat16 would round the transformed rows.
    h, w = x.shape[1:3]
    return (
        h * w > MAX_TINY_PIXELS
        and h % 4 == 0
        and min(kernel.shape[2:]) >= MIN_CHANNELS_FOR_FOUR_ROWS
        and x.dtype.itemsize >= 4
    )


def _convolve_rows_by_fours(inputs: Sequence[Array], kernels: Sequence[Array]) -> Array:
    """Four rows of the sum of convolutions from six products of rows instead of twelve, by minimal filtering F(4, 3).

    Across rows only: in two dimensions it would save half again, with more memory traffic (not tried). In float32 the
    error is 1.3 to 1.5 times that of the twelve products with 32 to 256 channels, and 2.1 times with 512: 0.5e-6 to
    2e-6 of the result's standard deviation. With the paper's points, 1 and 2, it would be 2 to 3 times.

    Source: Lavin, Gray 2016, arXiv 1509.09308, section 4.3, in one dimension; Toom-Cook at other points.
    """
    products = zip(*map(_six_products, map(_every_fourth_row, inputs), kernels), strict=True)
    return _four_rows([sum(others, start=first) for first, *others in products])


def _every_fourth_row(x: Array) -> list[Array]:
    """Six arrays `[B, H / 4, W, C]`: rows -1, 3, 7, ..., rows 0, 4, 8, ..., up to rows 4, 8, 12, ..."""
    rows, zero, same = [x[:, i::4] for i in range(4)], jnp.zeros((), x.dtype), (0, 0, 0)
    before, after = (lax.pad(x, zero, (same, (n, -n, 0), same, same)) for x, n in ((rows[3], 1), (rows[0], -1)))
    return [before, *rows, after]


def _four_rows(products: Sequence[Array]) -> Array:
    m0, m1, m2, m3, m4, m5 = products
    near, near_odd, far, far_odd = m1 + m2, NEAR * (m1 - m2), m3 + m4, FAR * (m3 - m4)
    n2, f2 = NEAR**2, FAR**2
    rows = [m0 + near + far, near_odd + far_odd, n2 * near + f2 * far, n2 * near_odd + f2 * far_odd + m5]
    return jnp.stack(rows, axis=2).reshape(m0.shape[0], -1, *m0.shape[2:])


def _six_products(rows: Sequence[Array], kernel: Array) -> list[Array]:
    """Combinations of every fourth row of the images, convolved with combinations of rows of the kernel.

    In the order of their points: 0, plus and minus `NEAR`, plus and minus `FAR`, infinity.
    """
    d0, d1, d2, d3, d4, d5 = rows
    n2, f2 = NEAR**2, FAR**2
    near, near_odd, far, far_odd = d4 - f2 * d2, NEAR * (d3 - f2 * d1), d4 - n2 * d2, FAR * (d3 - n2 * d1)
    ends = [n2 * f2 * first - (n2 + f2) * third + fifth for first, third, fifth in ((d0, d2, d4), (d1, d3, d5))]
    images = ends[0], near + near_odd, near - near_odd, far + far_odd, far - far_odd, ends[1]
    g0, g1, g2 = kernel
    outer, inner = (g0 / n2 + g2) / (2 * (n2 - f2)), g1 / (2 * NEAR * (n2 - f2))
    outer2, inner2 = (g0 / f2 + g2) / (2 * (f2 - n2)), g1 / (2 * FAR * (f2 - n2))
    kernels = g0 / (n2 * f2), outer + inner, outer - inner, outer2 + inner2, outer2 - inner2, g2
    return [convolve(image, rows[None]) for image, rows in zip(images, kernels, strict=True)]


def _input_gradient(x: Array, kernel: Array, g: Array) -> Array:
    if _is_tiny(x):
        return _input_gradient_of_tiny(kernel, g)
    kernel = kernel[::-1, ::-1].swapaxes(2, 3)
    if _saves_by_fours(g, kernel):
        around = _with_rows_around(g)
        rows = [around[:, i : i + g.shape[1] : 4] for i in range(6)]
        return _four_rows(_six_products(rows, kernel))
    if x.shape[-1] < MIN_CHANNELS_FOR_ROW_PRODUCTS:
        return convolve(g, kernel)
    # JAX's own transpose is as fast, but five times slower inside a loop such as that of `accumulate`.
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(_with_rows_around(g), kernel, (1, 1), ((0, 0), (1, 1)), dimension_numbers=numbers)


def _with_rows_around(g: Array) -> Array:
    """`g` with a row of zeros before and after it."""
    # The barrier makes it one array in memory that both gradients read: a training step takes 2 to 6 % less time.
    return lax.optimization_barrier(jnp.pad(g, ((0, 0), (1, 1), (0, 0), (0, 0))))


def _input_gradient_of_tiny(kernel: Array, g: Array) -> Array:
    h, w = g.shape[1:3]
    # With the kernel on the left, the product reads it in its memory order; on the right it would be transposed.
    products = lax.dot_general(kernel, g, (((3,), (3,)), ((), ()))).transpose(3, 4, 5, 0, 1, 2)
    products = jnp.pad(products, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0), (0, 0)))
    first, *others = (products[:, 2 - i : 2 - i + h, 2 - j : 2 - j + w, i, j] for i in range(3) for j in range(3))
    return sum(others, start=first)


def _kernel_gradient(x: Array, g: Array) -> Array:
    if _is_tiny(x):  # this form alone writes the large result in its memory order
        return jnp.einsum("bhwijc,bhwd->ijcd", _neighbours(_neighbours(x, 2), 1), g)
    if x.shape[-1] < MIN_CHANNELS_FOR_ROW_PRODUCTS:
        return kernel_gradient(x, g)
    height, g = x.shape[1], _with_rows_around(g)
    rows = max((rows for rows in range(2, MAX_STRIP_ROWS + 1) if height % rows == 0), default=height)
    if rows == height:
        return _kernel_gradient_of_strip(x, g).astype(x.dtype)

    # In a loop, the copies of `x` fit into the cache. They are also made when `g` is known: outside a loop XLA makes
    # them in the forward pass, as soon as `x` is known, and keeps those of all layers until the backward pass.
    def add_strip(total: Array, top: Array) -> tuple[Array, None]:
        strip = lax.dynamic_slice_in_dim(x, top, rows, axis=1)
        slopes = lax.dynamic_slice_in_dim(g, top, rows + 2, axis=1)
        return total + _kernel_gradient_of_strip(strip, slopes), None

    zeros = jnp.zeros((3, 3, x.shape[-1], g.shape[-1]), jnp.promote_types(x.dtype, jnp.float32))
    return lax.scan(add_strip, varying_as(x, zeros), jnp.arange(0, height, rows))[0].astype(x.dtype)


def _kernel_gradient_of_strip(x: Array, g: Array) -> Array:
    """Contribution of the rows `x` `[B, R, W, C]` to the kernel's gradient, summed in at least float32.

    `g` `[B, R + 2, W, D]` has one more row on each side. `x` is shifted along the rows, `g` across them, the other way.
    """
    # The product needs the channels of its left side first. The barrier keeps XLA from transposing each shifted copy.
    turned = lax.optimization_barrier(jnp.pad(x.transpose(3, 0, 1, 2), ((0, 0), (0, 0), (0, 0), (1, 1))))
    shifted = jnp.stack([turned[..., j : j + x.shape[2]] for j in range(3)])
    sums = jnp.promote_types(x.dtype, jnp.float32)
    product = functools.partial(jnp.einsum, "jcbhw,bhwd->jcd", shifted, preferred_element_type=sums)
    return jnp.stack([product(g[:, 2 - i : 2 - i + x.shape[1]]) for i in range(3)])


def _is_tiny(x: Array) -> bool:
    return x.shape[1] * x.shape[2] <= MAX_TINY_PIXELS and x.shape[3] >= MIN_CHANNELS_FOR_TINY


def _neighbours(x: Array, axis: int) -> Array:
    """The pixel before, the pixel itself and the one after it along `axis`, zero outside, on a new axis 3."""
    size = x.shape[axis]
    padded = jnp.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(x.ndim)])
    return jnp.stack([lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3)], axis=3)
