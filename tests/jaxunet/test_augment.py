"""Augmentations move image and mask together, depend on (seed, step, sample) only, and change nothing when off."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunet import augment, train_step
from jaxunet.augment import AUGMENTATIONS, augment_batch, compose, flip, gamma, register
from jaxunet.losses import bce_loss
from jaxunet.sharding import global_batch, make_mesh, replicate
from jaxunet.step import compile_train_step
from tests.helpers import tiny

SHAPE = (7, 9)
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (*SHAPE, 3)).astype(np.float32)
MASK = RNG.integers(0, 2, (*SHAPE, 2)).astype(np.uint8)
KEYS = jax.random.split(jax.random.key(0), 2000)


def samples(fn, **options):
    """One image and mask augmented with every key."""
    return jax.device_get(
        jax.jit(jax.vmap(lambda key: fn(key, jnp.asarray(IMAGE), jnp.asarray(MASK), **options)))(KEYS)
    )


def share(images, expected) -> float:
    return float(np.mean([np.array_equal(image, expected) for image in images]))


def test_a_flip_moves_image_and_mask_together_with_its_probability():
    images, masks = samples(flip)
    assert (images.dtype, masks.dtype) == (np.float32, np.uint8)
    assert share(images, IMAGE) == pytest.approx(0.5, abs=0.05)
    assert share(images, IMAGE[:, ::-1]) == pytest.approx(0.5, abs=0.05)
    mirrored = np.array([np.array_equal(image, IMAGE[:, ::-1]) for image in images])
    np.testing.assert_array_equal(masks[mirrored], np.broadcast_to(MASK[:, ::-1], masks[mirrored].shape))
    np.testing.assert_array_equal(masks[~mirrored], np.broadcast_to(MASK, masks[~mirrored].shape))


def test_a_vertical_flip_is_drawn_independently():
    images, masks = samples(flip, vertical=True, probability=0.25)
    for rows, columns, expected in ((1, 1, 9 / 16), (1, -1, 3 / 16), (-1, 1, 3 / 16), (-1, -1, 1 / 16)):
        assert share(images, IMAGE[::rows, ::columns]) == pytest.approx(expected, abs=0.04)
        assert share(images, IMAGE[::rows, ::columns]) == share(masks, MASK[::rows, ::columns])


@pytest.mark.parametrize(("probability", "mirrored"), [(0.0, False), (1.0, True)])
def test_a_probability_of_zero_or_one_is_certain(probability, mirrored):
    assert share(samples(flip, probability=probability)[0], IMAGE[:, ::-1] if mirrored else IMAGE) == 1


def test_gamma_changes_intensities_alone_within_its_range():
    images, masks = samples(gamma, probability=0.3, low=0.5, high=2.0)
    np.testing.assert_array_equal(masks, np.broadcast_to(MASK, masks.shape))
    changed = np.array([not np.array_equal(image, IMAGE) for image in images])
    assert changed.mean() == pytest.approx(0.3, abs=0.05)
    inside = (IMAGE > 0) & (IMAGE < 255)
    exponents = np.log(images[changed][:, inside] / 255) / np.log(IMAGE[inside] / 255)
    np.testing.assert_allclose(exponents.std(axis=1), 0, atol=1e-3)  # one exponent for the whole image
    assert exponents.min() >= 0.5 - 1e-3
    assert exponents.max() <= 2 + 1e-3
    assert np.mean(exponents[:, 0] < 1) == pytest.approx(0.5, abs=0.08)  # as often brighter as darker
    for value in (0, 255):
        np.testing.assert_allclose(np.where(value == IMAGE, images, value), value, rtol=1e-6)


def test_composed_augmentations_are_applied_in_order_with_keys_of_their_own():
    both, single = compose({"flip": {}, "gamma": {"probability": 1.0}}), compose({"flip": {}})
    images, masks = samples(both)
    _, masks_alone = samples(single)
    np.testing.assert_array_equal(masks, masks_alone)  # gamma does not change the draws of flip
    assert share(images, IMAGE) + share(images, IMAGE[:, ::-1]) == 0
    assert compose({}) is None


@pytest.mark.parametrize(
    ("augmentations", "message"),
    [
        ({"flop": {}}, "unknown augmentation 'flop'; expected one of .*flip"),
        ({"flip": {"vertikal": True}}, "flip has no option vertikal; expected one of probability, vertical"),
        ({"flip": {"probability": 1.5}}, r"probability=1.5; expected a number in \[0, 1\]"),
        ({"gamma": {"probability": float("nan")}}, "probability=nan"),
        ({"gamma": {"low": 0.0}}, "low=0.0, high=1.5; expected 0 < low <= high"),
        ({"gamma": {"low": 2.0}}, "low=2.0, high=1.5; expected 0 < low <= high"),
    ],
)
def test_unknown_names_options_and_values_are_refused(augmentations, message):
    with pytest.raises(ValueError, match=message):
        compose(augmentations)


def test_a_new_augmentation_is_its_function(monkeypatch):
    monkeypatch.setattr(augment, "AUGMENTATIONS", dict(AUGMENTATIONS))

    @register
    def invert(key, image, mask, *, top: float = 255.0):
        """Negative image."""
        return top - image, mask

    assert augment.AUGMENTATIONS["invert"].options == {"top": 255.0}
    image, _ = compose({"invert": {}})(KEYS[0], IMAGE, MASK)
    np.testing.assert_array_equal(image, 255 - IMAGE)
    with pytest.raises(ValueError, match="there is an augmentation 'invert' already"):
        register(invert)


def test_an_augmentation_that_changes_a_shape_or_dtype_is_refused():
    for change, message in (
        (lambda key, image, mask: (image[:3], mask), "augmented images are float32"),
        (lambda key, image, mask: (image, mask / 2), "augmented masks are float32"),
    ):
        with pytest.raises(ValueError, match=message):
            augment_batch(change, tiny.batch(), seed=0, step=jnp.int32(0))


def test_a_sample_depends_on_seed_step_and_its_index_only():
    run = jax.jit(lambda batch, seed, step: augment_batch(compose({"gamma": {}}), batch, seed=seed, step=step)["image"])
    same = {**tiny.batch(), "image": np.repeat(tiny.batch()["image"][:1], 4, axis=0)}
    images = run(same, 0, jnp.int32(3))
    assert images.dtype == jnp.float32
    np.testing.assert_array_equal(images, run(same, 0, jnp.int32(3)))
    first_two = run({name: rows[:2] for name, rows in same.items()}, 0, jnp.int32(3))
    np.testing.assert_array_equal(images[:2], first_two)
    assert (np.asarray(images) != np.asarray(run(same, 0, jnp.int32(4)))).any()
    assert (np.asarray(images) != np.asarray(run(same, 1, jnp.int32(3)))).any()
    assert any((np.asarray(images[0]) != np.asarray(image)).any() for image in images[1:])


NETWORK = tiny.Pixelwise(dropout_rate=0.4)
BATCH = tiny.batch(16)


@functools.cache
def one_step(devices: int, augmented: bool, accumulate: int = 1):
    mesh = make_mesh(jax.devices()[:devices])
    chosen = compose({"flip": {"vertical": True}, "gamma": {}}) if augmented else None
    state = replicate(tiny.state(NETWORK, optax.sgd(0.1)), mesh)
    batch = global_batch(BATCH, mesh)
    compiled = compile_train_step(mesh, loss=bce_loss, seed=3, accumulate=accumulate, augment=chosen)
    step = compiled.lower(state, batch).compile()
    state, result = jax.device_get(step(state, batch))
    return state.params, result, step.as_text()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_is_the_same_on_many_devices_and_no_image_travels(accumulate):
    (params, result, text), (expected_params, expected, _) = (one_step(n, True, accumulate) for n in (8, 1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, expected_params)
    assert float(result["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-6)
    for name in ("tp", "fp", "fn", "tn"):
        np.testing.assert_array_equal(getattr(result["sums"], name), getattr(expected["sums"], name))
    np.testing.assert_array_equal(result["sums"].tp + result["sums"].fn, BATCH["mask"].sum((1, 2, 3)))
    assert tiny.travelling(text) <= 16  # one number per image, for the metrics


def test_a_step_learns_from_augmented_samples_with_the_same_dropout():
    params, result, _ = one_step(1, True)
    plain_params, plain, _ = one_step(1, False)
    assert float(result["loss"]) != float(plain["loss"])
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(plain_params), strict=True))

    def unchanged(key, image, mask):
        return image, mask

    state = tiny.state(NETWORK, optax.sgd(0.1))
    _, same = jax.jit(functools.partial(train_step, loss=bce_loss, seed=3, augment=unchanged))(state, BATCH)
    assert float(same["loss"]) == pytest.approx(float(plain["loss"]), rel=1e-6)


def test_without_augmentation_the_program_is_the_one_without_the_argument():
    state = tiny.state(NETWORK, optax.sgd(0.1))
    with_none, without = (
        jax.jit(functools.partial(train_step, loss=bce_loss, seed=3, **options)).lower(state, BATCH).as_text()
        for options in ({"augment": None}, {})
    )
    assert with_none == without
