"""Losses that compare local structure."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxunet.losses.entry import Loss
from jaxunet.losses.reduction import Empty, Reduce, prepare


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
    """One minus the structural similarity of probabilities and masks (dynamic range 1, windows inside the image only).

    A pixel of weight zero takes every window that contains it out: a window counts by the smallest weight in it. SSIM
    is per image by nature; "batch" and "patient" are means over images. Other arguments and errors: see
    `jaxunet.losses`.

    Options:
      window: side of the Gaussian window in pixels; H and W are at least this.
      sigma: standard deviation of the window in pixels.
      k1: stabilises the luminance term.
      k2: stabilises the contrast term.

    Returns:
      The loss, in [0, 2]: above 1 where prediction and mask are anticorrelated.

    Raises:
      ValueError: the image is smaller than the window.

    Source: Wang et al. 2004, Image Quality Assessment: From Error Visibility to Structural Similarity, eq. 13.
    """
    x = prepare(logits, masks, weight, reduce, patient, empty)
    height, width = x.logits.shape[1:3]
    if min(height, width) < window:
        raise ValueError(f"SSIM needs images of at least {window}x{window} pixels, got {height}x{width}")
    similarity = _ssim_map(x.probs, x.masks, window, sigma, k1**2, k2**2)
    per_window = jnp.broadcast_to(_window_weight(x.weight, window), similarity.shape)
    total = jnp.sum(per_window, (1, 2, 3))
    per_image = 1 - jnp.sum(per_window * similarity, (1, 2, 3)) / jnp.where(total > 0, total, 1)
    return x.mean_of_images(per_image, total / per_window[0].size)


def _ssim_map(x: Array, y: Array, window: int, sigma: float, c1: float, c2: float) -> Array:
    """Similarity of each window, `[B, H - window + 1, W - window + 1, K]`.

    Products are written by the difference, `2xy = x^2 + y^2 - (x - y)^2`: each factor is then one minus a share that
    vanishes where prediction and mask agree. The plain form loses four digits of it in float32.
    """
    difference = x - y
    mean_x, mean_y, mean_difference_squares, mean_squares = _blur(
        jnp.stack([x, y, difference**2, x**2 + y**2]), window, sigma
    )
    gap, squares = (mean_x - mean_y) ** 2, mean_x**2 + mean_y**2
    luminance = 1 - gap / (squares + c1)
    contrast = 1 - (mean_difference_squares - gap) / (mean_squares - squares + c2)
    return luminance * contrast


def _blur(maps: Array, window: int, sigma: float) -> Array:
    """Gaussian blur of `[N, B, H, W, K]` over windows that lie inside the image.

    A separable blur is a product with a band matrix on each side: the fastest form on every backend for the image sizes
    at hand, and its gradient is again two matrix products. Highest precision, because TF32 would cost three digits of a
    difference of nearly equal numbers.
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


ENTRIES = {
    "ssim": Loss(
        ssim_loss,
        "structural",
        "1 - SSIM(p, g), 11x11 Gaussian window",
        "Wang et al. 2004, Image Quality Assessment, eq. 13",
        range=(0, 2),
        on_empty="0 for the empty prediction; every pixel is pushed down",
        symmetric=True,
        positional=True,
    ),
}
