"""Losses that compare local structure."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxunet.losses.entry import register
from jaxunet.losses.morphology import skeleton
from jaxunet.losses.reduction import Empty, Reduce, prepare, ratio
from jaxunet.losses.region.overlap import smooth_where_empty

__all__ = ["cl_dice_loss", "ms_ssim_loss", "ssim_loss"]

SCALE_POWERS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the scales of MS-SSIM, from fine to coarse (Wang et al. 2003, section 3.2)."""

_LEAST_SIMILARITY = 1e-3  # below it a similarity is replaced, see `ms_ssim_loss`


@register("structural", range=(0, 2), symmetric=True, positional=True)
def ssim_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    window: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Array:
    """One minus the structural similarity, in [0, 2]; above 1 where prediction and mask are anticorrelated.

    Defined per image, with dynamic range 1 and windows that are inside the image. A window has the smallest weight in
    it, so a pixel of weight zero removes every window that contains it.

    Formula: `1 - mean((2 mu_p mu_g + k1^2)(2 cov_pg + k2^2) / ((mu_p^2 + mu_g^2 + k1^2)(var_p + var_g + k2^2)))`

    Options:
      window: side of the Gaussian window in pixels; a smaller image is a ValueError.
      sigma: standard deviation of the window in pixels.
      k1: stabilises the luminance term.
      k2: stabilises the contrast term.

    Source: Wang et al. 2004, Image Quality Assessment: From Error Visibility to Structural Similarity, eq. 13.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    _check_size(x.logits.shape, window)
    luminance, contrast = _similarity_maps(x.probs, x.masks, window, sigma, k1**2, k2**2)
    similarity = luminance * contrast
    per_window = jnp.broadcast_to(_window_weight(x.weight, window), similarity.shape)
    total = jnp.sum(per_window, (1, 2, 3))
    per_image = 1 - jnp.sum(per_window * similarity, (1, 2, 3)) / jnp.where(total > 0, total, 1)
    return x.mean_of_images(per_image, total / per_window[0].size)


@register("structural", range=(0, 1), symmetric=True, positional=True)
def ms_ssim_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    powers: Sequence[float] = SCALE_POWERS,
    window: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Array:
    """One minus the multi-scale structural similarity, in [0, 1]. Defined per image and channel.

    Each scale halves the previous one by 2x2 means (an odd last row or column is dropped). `CS` is the mean of SSIM's
    contrast and structure terms; the coarsest scale uses all of SSIM. Scales smaller than the window are dropped and
    the remaining powers divided by their sum: five scales need 176 pixels, and below 22 only SSIM is left.

    A similarity `s` below 0.001 may be negative and have no power. It is replaced by `0.001^2 / (0.002 - s)`, which is
    positive and has a gradient; other programs use zero, which has none.

    Formula: `1 - SSIM_M^w_M product(CS_j^w_j, j < M), of the M scales that fit the window`

    Options:
      powers: `w`, the exponent of each scale from fine to coarse; their number is the maximum of scales.
      window: as in `ssim_loss`, at every scale.
      sigma: as in `ssim_loss`.
      k1: as in `ssim_loss`.
      k2: as in `ssim_loss`.

    Source: Wang et al. 2003, Multi-Scale Structural Similarity for Image Quality Assessment (Asilomar), eq. 7.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    _check_size(x.logits.shape, window)
    size = min(x.logits.shape[1:3])
    fitting = [power for scale, power in enumerate(powers) if size >> scale >= window]
    probs, masks, pixel_weight = x.probs, x.masks, x.weight
    image_weight = jnp.mean(_window_weight(pixel_weight, window), (1, 2, 3))
    product = jnp.ones(())
    for scale, power in enumerate(fitting):
        if scale > 0:
            probs, masks = jnp.mean(_blocks(probs), (2, 4)), jnp.mean(_blocks(masks), (2, 4))
            if pixel_weight.shape[1:] != (1, 1, 1):
                pixel_weight = jnp.min(_blocks(pixel_weight), (2, 4))
        luminance, contrast = _similarity_maps(probs, masks, window, sigma, k1**2, k2**2)
        maps = luminance * contrast if scale == len(fitting) - 1 else contrast
        per_window = jnp.broadcast_to(_window_weight(pixel_weight, window), maps.shape)
        total = jnp.sum(per_window, (1, 2))
        similarity = jnp.where(total > 0, ratio(jnp.sum(per_window * maps, (1, 2)), total), 1)
        product = product * _positive(similarity) ** (power / sum(fitting))
    return x.mean_of_images(1 - jnp.mean(product, -1), image_weight)


@register(
    "structural",
    range=(0, 1),
    on_empty="0 for every prediction without a skeleton: no gradient where it is flat or its regions are wide",
    symmetric=True,
    positional=True,
    piecewise=True,
    learns_from_empty=False,
)
def cl_dice_loss(
    logits: Array,
    masks: Array,
    *,
    weight: Array | None = None,
    reduce: Reduce = "batch",
    patient: Array | None = None,
    empty: Empty = "perfect",
    iterations: int = 3,
    smooth: float | Array = 1.0,
) -> Array:
    """Soft centreline Dice, in [0, 1]: whether each skeleton lies within the other region.

    Made for thin and branching structures. Regions wider than twice `iterations` have no skeleton in their middle, and
    a flat prediction has none at all, so it is meant to be combined with a region loss, as in `dice_cl_dice_loss`.
    Pixels without weight are background for their neighbours.

    Formula: `1 - 2 T_p T_s / (T_p + T_s), T_p = (sum(S(p) g) + smooth) / (sum(S(p)) + smooth), T_s the
    same of S(g) p; S: skeleton`

    Options:
      iterations: at least 0, erosions of the skeleton; about half the width of the widest structure.
      smooth: raised to at least 1 where the masks of a group have no skeleton.

    Source: Shit et al. 2021, arXiv 2003.07311, eq. 1 and algorithm 2.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    probs = jnp.where(x.weight != 0, x.probs, 0)
    predicted, true = skeleton(probs, iterations=iterations), skeleton(x.masks, iterations=iterations)
    length = x.total(x.weight * true)
    smoothing = smooth_where_empty(length, smooth)
    precision = ratio(x.total(x.weight * predicted * x.masks) + smoothing, x.total(x.weight * predicted) + smoothing)
    sensitivity = (x.total(x.weight * true * probs) + smoothing) / (length + smoothing)
    return 1 - ratio(2 * precision * sensitivity, precision + sensitivity)


def _check_size(shape: tuple[int, ...], window: int) -> None:
    height, width = shape[1:3]
    if min(height, width) < window:
        raise ValueError(f"SSIM needs images of at least {window}x{window} pixels, got {height}x{width}")


def _similarity_maps(x: Array, y: Array, window: int, sigma: float, c1: float, c2: float) -> tuple[Array, Array]:
    """Luminance, and contrast times structure, of each window: both `[B, H - window + 1, W - window + 1, K]`.

    Products are written with the difference, `2xy = x^2 + y^2 - (x - y)^2`, so each factor is one minus a share that
    vanishes where prediction and mask agree. The plain form loses four digits in float32.
    """
    difference = x - y
    mean_x, mean_y, mean_difference_squares, mean_squares = _blur(
        jnp.stack([x, y, difference**2, x**2 + y**2]), window, sigma
    )
    gap, squares = (mean_x - mean_y) ** 2, mean_x**2 + mean_y**2
    luminance = 1 - gap / (squares + c1)
    contrast = 1 - (mean_difference_squares - gap) / (mean_squares - squares + c2)
    return luminance, contrast


def _positive(similarity: Array) -> Array:
    """Replaces what is below the least similarity by a positive function with the same value and slope there."""
    small = similarity < _LEAST_SIMILARITY
    bounded = jnp.where(small, similarity, 0)
    return jnp.where(small, _LEAST_SIMILARITY**2 / (2 * _LEAST_SIMILARITY - bounded), similarity)


def _blocks(images: Array) -> Array:
    """Blocks of 2x2 pixels, `[B, H // 2, 2, W // 2, 2, K]`; an odd last row or column is dropped."""
    b, h, w, k = images.shape
    even = images[:, : h // 2 * 2, : w // 2 * 2]
    return even.reshape(b, h // 2, 2, w // 2, 2, k)


def _blur(maps: Array, window: int, sigma: float) -> Array:
    """Gaussian blur of `[N, B, H, W, K]` over windows inside the image.

    A separable blur is a product with a band matrix on each side: the fastest form on every backend at these image
    sizes, and its gradient is again two matrix products. TF32 would lose three digits of a difference of nearly equal
    numbers, hence the highest precision.
    """
    rows = jnp.asarray(_band_matrix(maps.shape[2], window, sigma), maps.dtype)
    columns = jnp.asarray(_band_matrix(maps.shape[3], window, sigma), maps.dtype)
    maps = jnp.einsum("ih,nbhwk->nbiwk", rows, maps, precision=lax.Precision.HIGHEST)
    return jnp.einsum("jw,nbiwk->nbijk", columns, maps, precision=lax.Precision.HIGHEST)


def _band_matrix(size: int, window: int, sigma: float) -> np.ndarray:
    """`[size - window + 1, size]`, each row the normalised Gaussian window at its place."""
    offsets = np.arange(window) - (window - 1) / 2
    gaussian = np.exp(-(offsets**2) / (2 * sigma**2))
    matrix = np.zeros((size - window + 1, size))
    for row in range(len(matrix)):
        matrix[row, row : row + window] = gaussian / gaussian.sum()
    return matrix


def _window_weight(weight: Array, window: int) -> Array:
    """Smallest weight in each window: `[B, 1, 1, 1]` stays, `[B, H, W, 1]` shrinks to the windows' grid."""
    if weight.shape[1:] == (1, 1, 1):
        return weight
    return lax.reduce_window(weight, jnp.inf, lax.min, (1, window, window, 1), (1, 1, 1, 1), "VALID")
