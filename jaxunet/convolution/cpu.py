"""The 3x3 convolution on CPUs: part for part, and as matrix products where XLA's own routine is slow.

Each part has a convolution of its own, unless the kernel is larger than they are, so that no concatenation is written
and kept. The gradient of a kernel of 16 channels or more, both gradients on tiny images, and all three on images of
four pixels or fewer are matrix products: XLA hands those to a routine made for large images and small kernels, at a
half to a tenth of what the processor can do. Images of 32 channels and more are convolved with half of the
multiplications. Where the batch is divided among several CPU devices, the sums over it are exchanged strip by strip.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from jaxunet.convolution.plain import Parts, convolve, kernel_gradient, one_kernel_a_pixel, split, varying_as

IMAGE = 4
"""Channels up to which two pixels are convolved at once."""

FEW = 16
"""Channels of the input from which the gradient of a kernel is three matrix products, one for each of its rows."""

MANY = 32
"""Channels of both sides from which four rows of an image are computed at once, unless it is tiny."""

WIDE = 64
"""Channels of the input from which the gradients on tiny images are matrix products."""

STRIP = 8
"""Rows of an image that are worked on at once; an image that cannot be cut into strips of 2 to 8 is done whole."""

TINY = 8 * 8
"""Pixels up to which images are tiny: a matrix product beats XLA's CPU convolution for the input's gradient too."""

MOTE = 2 * 2
"""Pixels up to which it does so forward, too: a step on images of 64x64 takes half the time."""

NEAR, FAR = 0.75, 1.5
"""Where polynomials are evaluated, with 0 and infinity, to compute four rows at once; both signs of each."""


def forward(parts: Parts, kernel: Array, bias: Array) -> Array:
    """`[B, H, W, D]`."""
    if _is_large(kernel, parts):
        parts = (jnp.concatenate(parts, axis=-1),)
    kernels = split(kernel, parts, axis=2)
    if all(map(_saves_by_fours, parts, kernels)):
        return _convolve_rows_by_fours(parts, kernels) + bias
    first, *others = map(_forward_of_part, parts, kernels)
    return sum(others, start=first) + bias


def gradients(parts: Parts, kernel: Array, g: Array) -> tuple[Parts, Array]:
    """Those of the parts and of the kernel, from that of the result, `[B, H, W, D]`."""
    if _is_large(kernel, parts):
        x = jnp.concatenate(parts, axis=-1)
        slopes = split(_input_gradient(x, kernel, g), parts, axis=3)
        return tuple(slopes), _kernel_gradient(x, g)
    slopes = [_input_gradient(x, rows, g) for x, rows in zip(parts, split(kernel, parts, axis=2), strict=True)]
    return tuple(slopes), jnp.concatenate([_kernel_gradient(x, g) for x in parts], axis=2)


def _is_large(kernel: Array, parts: Sequence[Array]) -> bool:
    """Whether it takes longer to copy the kernel in parts than the images as one."""
    return kernel.size > sum(part.size for part in parts)


def _forward_of_part(x: Array, kernel: Array) -> Array:
    if x.shape[-1] <= IMAGE and x.shape[2] % 2 == 0:
        return _forward_of_pairs(x, kernel)
    if x.shape[1] * x.shape[2] > MOTE or x.shape[3] < WIDE:
        return convolve(x, kernel)
    return jnp.tensordot(_neighbours(_neighbours(x, 2), 1), kernel, 3)  # patches [B, H, W, 3, 3, C]


def _forward_of_pairs(x: Array, kernel: Array) -> Array:
    """Two neighbours of a row at once, from the four pixels of a row that they see: a wider product of few channels."""
    pairs = one_kernel_a_pixel(kernel, 2, 0, 1).reshape(3, 4, x.shape[-1], -1)
    numbers = ("NHWC", "HWIO", "NHWC")
    both = lax.conv_general_dilated(x, pairs, (1, 2), ((1, 1), (1, 1)), dimension_numbers=numbers)
    return both.reshape(*x.shape[:3], -1)


def _saves_by_fours(x: Array, kernel: Array) -> bool:
    # On tiny images the transformed kernel is as large as they are; bfloat16 would round the sums before the products.
    h, w = x.shape[1:3]
    return h * w > TINY and h % 4 == 0 and min(kernel.shape[2:]) >= MANY and x.dtype.itemsize >= 4


def _convolve_rows_by_fours(parts: Sequence[Array], kernels: Sequence[Array]) -> Array:
    """Four rows of the sum of convolutions from six products of rows in place of twelve, by minimal filtering F(4, 3).

    Across rows only: in two dimensions it would save half again, for more to read and write (not tried). The error
    in float32 is 1.3 to 1.5 times that of the twelve products with 32 to 256 channels, and 2.1 times with 512: a half
    to 2 millionths of the result's standard deviation. At the paper's points, 1 and 2, it would be 2 to 3 times.

    Source: Lavin, Gray 2016, arXiv 1509.09308, section 4.3, in one dimension; Toom-Cook at other points.
    """
    products = zip(*map(_six_products, map(_every_fourth_row, parts), kernels), strict=True)
    return _four_rows([sum(others, start=first) for first, *others in products])


def _every_fourth_row(x: Array) -> list[Array]:
    """Rows -1, 3, 7 and so on, rows 0, 4, 8, and so forth to rows 4, 8, 12: six arrays `[B, H / 4, W, C]`."""
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
    """Combinations of rows of images, every fourth, convolved with combinations of rows of the kernel.

    The first belongs to the point 0, then two each to plus and minus `NEAR` and `FAR`, the last to infinity.
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
    if x.shape[-1] < FEW:
        return convolve(g, kernel)
    # JAX's own transpose is as fast, but takes five times as long in a loop, as of `accumulate`
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(_with_rows_around(g), kernel, (1, 1), ((0, 0), (1, 1)), dimension_numbers=numbers)


def _with_rows_around(g: Array) -> Array:
    """A row of zeros before and after `g`, which both gradients read.

    Behind the barrier it is one array that both read as it lies: a training step takes 2 to 6 % less time.
    """
    return lax.optimization_barrier(jnp.pad(g, ((0, 0), (1, 1), (0, 0), (0, 0))))


def _input_gradient_of_tiny(kernel: Array, g: Array) -> Array:
    h, w = g.shape[1:3]
    # The kernel first: as it lies, it is the left side of a product, and as the right side it would be transposed.
    parts = lax.dot_general(kernel, g, (((3,), (3,)), ((), ()))).transpose(3, 4, 5, 0, 1, 2)
    parts = jnp.pad(parts, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0), (0, 0)))
    first, *others = (parts[:, 2 - i : 2 - i + h, 2 - j : 2 - j + w, i, j] for i in range(3) for j in range(3))
    return sum(others, start=first)


def _kernel_gradient(x: Array, g: Array) -> Array:
    if _is_tiny(x):  # no other form leaves the large result in its order
        return jnp.einsum("bhwijc,bhwd->ijcd", _neighbours(_neighbours(x, 2), 1), g)
    if x.shape[-1] < FEW:
        return kernel_gradient(x, g)
    height, g = x.shape[1], _with_rows_around(g)
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
    return lax.scan(add_strip, varying_as(x, zeros), jnp.arange(0, height, rows))[0].astype(x.dtype)


def _kernel_gradient_of_strip(x: Array, g: Array) -> Array:
    """What rows `x` `[B, R, W, C]` add to the kernel's gradient, summed in float32 at least.

    `g` `[B, R + 2, W, D]` has a row more on each side. `x` is shifted along the rows, `g` across them, the other way.
    """
    # A product wants the channels of its left side first: `x` is turned once, before it is shifted, not three times.
    turned = lax.optimization_barrier(jnp.pad(x.transpose(3, 0, 1, 2), ((0, 0), (0, 0), (0, 0), (1, 1))))
    shifted = jnp.stack([turned[..., j : j + x.shape[2]] for j in range(3)])
    sums = jnp.promote_types(x.dtype, jnp.float32)
    product = functools.partial(jnp.einsum, "jcbhw,bhwd->jcd", shifted, preferred_element_type=sums)
    return jnp.stack([product(g[:, 2 - i : 2 - i + x.shape[1]]) for i in range(3)])


def _is_tiny(x: Array) -> bool:
    return x.shape[1] * x.shape[2] <= TINY and x.shape[3] >= WIDE


def _neighbours(x: Array, axis: int) -> Array:
    """Each pixel beside the one before and after it along `axis`, zero outside: a new axis of 3 after the third."""
    size = x.shape[axis]
    padded = jnp.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(x.ndim)])
    return jnp.stack([lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3)], axis=3)
