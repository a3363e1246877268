"""Distances equal SciPy's exactly, in every shape, under every transformation, on any number of devices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from jaxunet.distance import (
    axis_spacing,
    boundary_distance,
    distance_transform,
    signed_distance,
    squared_distance_transform,
)
from jaxunet.sharding import make_mesh, split_rows

SHAPES = [(3, 7, 13, 2), (2, 5, 6, 7, 1)]
TRANSFORMS = {
    "squared": squared_distance_transform,
    "distance": distance_transform,
    "boundary": boundary_distance,
    "signed": signed_distance,
}


@functools.partial(jax.jit, static_argnames="spacing")
def fields(masks, spacing=None):
    """All of them at once: what they share is compiled and computed once."""
    return {name: transform(masks, spacing=spacing) for name, transform in TRANSFORMS.items()}


def each_image(transform):
    """Applies a function of one NumPy image `[H, W]` or `[D, H, W]` to every image and channel."""

    def apply(masks: np.ndarray, **options) -> np.ndarray:
        channels_first = np.moveaxis(masks, -1, 1)
        rows = [[transform(image, **options) for image in images] for images in channels_first]
        return np.moveaxis(np.array(rows), 1, -1)

    return apply


@each_image
def scipy_squared(mask: np.ndarray) -> np.ndarray:
    """Whole numbers: from SciPy's nearest pixels, not from its square roots."""
    if mask.all():
        return np.full(mask.shape, np.inf)
    nearest = ndimage.distance_transform_edt(mask, return_distances=False, return_indices=True)
    return np.sum((nearest - np.indices(mask.shape)) ** 2, 0).astype(np.float64)


@each_image
def scipy_distance(mask: np.ndarray, spacing) -> np.ndarray:
    return np.full(mask.shape, np.inf) if mask.all() else ndimage.distance_transform_edt(mask, sampling=spacing)


@each_image
def published_signed(mask: np.ndarray, spacing, unit: float) -> np.ndarray:
    """The boundary loss's map: zero where the mask is empty, and, for want of a boundary, where it is full."""
    if not mask.any() or mask.all():
        return np.zeros(mask.shape)
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
    inside = ndimage.distance_transform_edt(mask, sampling=spacing)
    return outside - np.where(mask, inside - unit, 0)


@st.composite
def mask_batches(draw) -> np.ndarray:
    """Masks of any density, among them empty and full ones, and ones with a single pixel of the other kind."""
    shape = draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    masks = rng.random(shape) < draw(st.sampled_from([0.02, 0.3, 0.5, 0.9, 0.98]))
    for image in range(shape[0]):
        kind = draw(st.sampled_from(["random", "random", "random", "empty", "full", "one", "hole"]))
        if kind != "random":
            masks[image] = kind in ("full", "hole")
            pixel = tuple(rng.integers(0, shape[1:]))
            masks[(image, *pixel)] ^= kind in ("one", "hole")
    return masks


def blobs(count: int, height: int, width: int) -> np.ndarray:
    """Discs, and their complements in every other image: short distances and long ones."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:height, :width]
    masks = np.zeros((count, height, width, 1), bool)
    for image in range(count):
        for _ in range(3):
            cy, cx, radius = rng.integers(height), rng.integers(width), rng.integers(3, height // 5)
            masks[image, :, :, 0] |= (y - cy) ** 2 + (x - cx) ** 2 < radius**2
    masks[::2] ^= True
    return masks


@given(mask_batches())
@settings(max_examples=150)
def test_every_distance_is_scipys(masks):
    found, exact = fields(masks), scipy_squared(masks)
    assert all(field.dtype == jnp.float32 for field in found.values())
    np.testing.assert_array_equal(found["squared"], exact)
    np.testing.assert_array_equal(found["distance"], np.sqrt(exact).astype(np.float32))
    both = np.sqrt(exact) + np.sqrt(scipy_squared(~masks))
    np.testing.assert_array_equal(found["boundary"], np.where(np.isinf(both), 0, both).astype(np.float32))
    np.testing.assert_allclose(found["signed"], published_signed(masks, spacing=1, unit=1), rtol=3e-7)


@pytest.mark.parametrize("shape", [(2, 256, 256, 1), (1, 75, 101, 1)])
def test_large_images_are_exact(shape):
    masks = blobs(*shape[:3])
    np.testing.assert_array_equal(squared_distance_transform(masks), scipy_squared(masks))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 9, 1), (2, 9, 1, 3), (2, 8, 8, 1), (0, 4, 4, 1)])
def test_thin_images_and_whole_passes_are_exact(shape):
    masks = np.random.default_rng(0).random(shape) < 0.7
    expected = scipy_squared(masks) if len(masks) else masks
    np.testing.assert_array_equal(squared_distance_transform(masks), expected)


def test_an_image_without_false_pixels_is_infinitely_far_and_one_without_true_pixels_is_zero():
    masks = np.stack([np.ones((4, 5, 1)), np.zeros((4, 5, 1))])
    for spacing in (None, (1.0, 3.0)):
        found = fields(masks, spacing=spacing)
        assert np.isposinf(found["squared"][0]).all()
        assert np.isposinf(found["distance"][0]).all()
        assert not np.any(found["distance"][1])
        assert not np.any(found["boundary"])
        assert not np.any(found["signed"])


def test_the_squares_of_long_distances_are_rounded_to_the_nearest_float32():
    masks = np.ones((1, 2, 6000, 1), bool)
    masks[0, 0, 0] = False
    exact = np.arange(2, dtype=np.int64)[:, None] ** 2 + np.arange(6000, dtype=np.int64) ** 2
    assert exact.max() > 2**25  # beyond every whole number that float32 has
    np.testing.assert_array_equal(squared_distance_transform(masks)[0, :, :, 0], exact.astype(np.float32))


@pytest.mark.parametrize("spacing", [0.25, (0.7,), (2.5, 0.4), (1e-3, 1e3)])
def test_spacing_in_a_slice(spacing):
    masks = np.random.default_rng(1).random((3, 7, 13, 2)) < 0.9
    sampling = np.broadcast_to(spacing, 2)
    found, far = fields(masks, spacing=spacing), scipy_distance(masks, spacing=sampling)
    np.testing.assert_allclose(found["distance"], far, rtol=3e-7)
    np.testing.assert_allclose(found["squared"], far**2, rtol=6e-7)
    np.testing.assert_allclose(found["boundary"], far + scipy_distance(~masks, spacing=sampling), rtol=3e-7)
    expected = published_signed(masks, spacing=sampling, unit=min(sampling))
    np.testing.assert_allclose(found["signed"], expected, rtol=1e-6, atol=3e-7 * max(sampling))


@pytest.mark.parametrize("spacing", [2.0, (5.0, 0.9, 0.7)])
def test_spacing_in_a_volume(spacing):
    masks = np.random.default_rng(2).random((2, 5, 6, 7, 1)) < 0.95
    found = distance_transform(masks, spacing=spacing)
    np.testing.assert_allclose(found, scipy_distance(masks, spacing=spacing), rtol=3e-7)


def test_whole_spacings_are_exact():
    masks = np.random.default_rng(3).random((3, 7, 13, 2)) < 0.95
    far = scipy_distance(masks, spacing=(3, 2)) ** 2
    np.testing.assert_array_equal(squared_distance_transform(masks, spacing=(3, 2)), np.round(far))


def test_masks_of_numbers_are_true_above_a_half():
    masks = np.random.default_rng(4).random((3, 7, 13, 2)) < 0.6
    expected = distance_transform(masks)
    for dtype in (np.uint8, np.int32, np.float32, jnp.bfloat16):
        np.testing.assert_array_equal(distance_transform(jnp.asarray(masks, dtype)), expected)
    np.testing.assert_array_equal(distance_transform(jnp.where(masks, 0.51, 0.5)), expected)


def test_the_signed_distance_is_zero_on_the_rim_negative_within_and_at_least_a_spacing_outside():
    masks = blobs(3, 30, 40)
    for spacing, unit in ((None, 1), ((0.5, 2.0), 0.5)):
        signed = np.asarray(signed_distance(masks, spacing=spacing))
        assert (signed[masks] <= 0).all()
        assert (signed[~masks] >= unit).all()
        assert ((signed == 0) & masks).any((1, 2, 3)).all()
        assert (signed < 0).any((1, 2, 3)).all()


@pytest.mark.parametrize("spacing", [None, (1.5, 0.5)])
def test_eager_compiled_and_mapped_give_the_same_bits(spacing):
    masks = np.random.default_rng(5).random((2, 3, 7, 13, 2)) < 0.8
    mapped = jax.jit(jax.vmap(functools.partial(fields, spacing=spacing)))(masks)
    for index, batch in enumerate(masks):
        compiled = fields(batch, spacing=spacing)
        for name, transform in TRANSFORMS.items():
            np.testing.assert_array_equal(compiled[name], transform(batch, spacing=spacing))
            np.testing.assert_array_equal(mapped[name][index], compiled[name])


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_devices_share_the_batch_without_a_word(devices):
    masks = blobs(8, 24, 17)
    sharding = split_rows(make_mesh(jax.devices()[:devices]))
    compiled = jax.jit(signed_distance).lower(jax.device_put(masks, sharding)).compile()
    result = compiled(jax.device_put(masks, sharding))
    np.testing.assert_array_equal(result, fields(masks)["signed"])
    assert result.sharding.is_equivalent_to(sharding, 4)
    text = compiled.as_text()
    assert "while" in text
    assert not any(word in text for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute"))


def test_the_gradient_of_a_loss_is_its_weight_map_and_none_flows_through_masks():
    masks = blobs(2, 24, 17)
    logits = np.random.default_rng(6).normal(size=masks.shape).astype(np.float32)

    def loss(logits, masks):
        return jnp.mean(jax.nn.sigmoid(logits) * signed_distance(masks))

    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    gradient, through_masks = jax.jit(jax.grad(loss, (0, 1)))(logits, masks.astype(np.float32))
    np.testing.assert_allclose(
        gradient, np.asarray(signed_distance(masks)) * p * (1 - p) / masks.size, rtol=1e-5, atol=1e-9
    )
    assert not np.any(through_masks)

    def hausdorff(logits):  # both maps, that of the prediction too
        p = jax.nn.sigmoid(logits)
        return jnp.mean((p - masks) ** 2 * (boundary_distance(p > 0.5) ** 2 + boundary_distance(masks) ** 2))

    weight = sum(np.asarray(boundary_distance(side), np.float64) ** 2 for side in (logits > 0, masks))
    expected = 2 * (p - masks) * p * (1 - p) * weight / masks.size
    np.testing.assert_allclose(jax.jit(jax.grad(hausdorff))(logits), expected, rtol=1e-4, atol=1e-7)
    value, tangent = jax.jvp(signed_distance, (logits,), (np.ones_like(logits),))
    np.testing.assert_array_equal(value, signed_distance(logits > 0.5))
    assert not np.any(tangent)


def test_no_callback_to_the_host_and_one_compilation():
    masks = blobs(2, 24, 17)
    assert "callback" not in str(jax.make_jaxpr(signed_distance)(masks))
    traces = []
    count = jax.jit(lambda masks: traces.append(0) or distance_transform(masks))
    for batch in (masks, ~masks, np.zeros_like(masks), np.ones_like(masks)):
        count(batch)
    assert len(traces) == 1


@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8), (1, 2, 3, 4, 5, 1)])
def test_other_ranks_are_refused(shape):
    for transform in TRANSFORMS.values():
        with pytest.raises(ValueError, match=r"must be \[B, H, W, K\] or \[B, D, H, W, K\]"):
            transform(np.zeros(shape))


@pytest.mark.parametrize("spacing", [0, -1.0, math.nan, math.inf, (1, 2, 3), (1, 0), ()])
def test_spacings_that_do_not_fit_are_refused(spacing):
    for transform in TRANSFORMS.values():
        with pytest.raises(ValueError, match="expected one positive number, or one for each of 2 axes"):
            transform(np.zeros((1, 4, 4, 1)), spacing=spacing)


def test_images_whose_distances_cannot_be_squared_are_refused():
    with pytest.raises(ValueError, match="32768 pixels or more"):
        jax.eval_shape(distance_transform, jax.ShapeDtypeStruct((1, 30000, 20000, 1), bool))
    jax.eval_shape(distance_transform, jax.ShapeDtypeStruct((1, 20000, 20000, 1), bool))


def test_a_spacing_is_written_for_every_axis():
    assert axis_spacing(None, (4, 5)) == (1.0, 1.0)
    assert axis_spacing(2, (4, 5, 6)) == (2.0, 2.0, 2.0)
    assert axis_spacing(np.float32([0.5, 2]), (4, 5)) == (0.5, 2.0)
