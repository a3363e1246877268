"""Probabilities do not depend on how images are passed, nor on devices; what is not an image is refused."""

import warnings

import jax
import numpy as np
import pytest

from experiments.build import load_run
from experiments.predictor import load_predictor
from tests.helpers.red_network import SIZE, predictor, red


def test_a_predictor_takes_one_image_a_batch_or_a_list():
    predict_ = predictor()
    image = red()
    single = predict_(image)
    assert single.shape == (*SIZE, 1) and single.dtype == np.float32
    expected = 1 / (1 + np.exp(-(image[..., :1].astype(np.float64) - 128) / 8))
    np.testing.assert_allclose(single, expected, atol=1e-6)
    batch = predict_(np.stack([image] * 11))
    assert batch.shape == (11, *SIZE, 1)
    np.testing.assert_array_equal(batch[10], single)
    results = predict_([image, red((40, 9)), red((3, 5))])
    assert [result.shape for result in results] == [(*SIZE, 1), (40, 9, 1), (3, 5, 1)]
    np.testing.assert_array_equal(predict_(jax.numpy.asarray(image)), single)
    assert predict_([]) == []


def test_bytes_and_floats_give_the_same():
    predict_ = predictor()
    np.testing.assert_array_equal(predict_(red()), predict_(red().astype(np.float64)))
    np.testing.assert_array_equal(predict_(red()), predict_(red().astype(np.int32)))
    large = red((40, 90))
    assert np.abs(predict_(large) - predict_(large.astype(np.float32))).max() < 0.05  # bytes are resized to bytes


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.uint8), "expected"),
        (np.zeros((4, 4, 1), np.uint8), r"expected \[H, W, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), "expected"),
        (np.full((4, 4, 3), 256.0), "0 to 255"),
        (np.full((4, 4, 3), -1), "0 to 255"),
        (np.full((4, 4, 3), np.nan), "0 to 255"),
    ],
)
def test_a_predictor_refuses_what_is_no_image(image, message):
    with pytest.raises(ValueError, match=message):
        predictor()(image)


def test_values_up_to_one_are_warned_about():
    with pytest.warns(UserWarning, match=r"0\.\.255"):
        predictor()(np.full((4, 4, 3), 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor()(np.zeros((4, 4, 3)))


def test_the_batch_size_is_rounded_up_to_the_devices():
    devices = len(jax.local_devices())
    assert predictor(batch_size=1).batch_size == devices
    assert predictor(batch_size=devices + 1).batch_size == 2 * devices


def test_probabilities_do_not_depend_on_batch_size_company_or_devices(run_dir):
    run = load_run(run_dir)
    images = np.random.default_rng(2).integers(0, 256, (19, 16, 16, 3), np.uint8)
    predict_ = load_predictor(run_dir, batch_size=8)
    together = predict_(images)
    np.testing.assert_array_equal(np.stack([predict_(image) for image in images[:3]]), together[:3])
    np.testing.assert_allclose(load_predictor(run_dir, batch_size=16)(images), together, atol=1e-6)
    alone = jax.jit(run.model.apply)({"params": jax.device_get(run.params)}, images[:1])  # one device, batch 1
    np.testing.assert_allclose(jax.nn.sigmoid(alone)[0], together[0], atol=1e-6)
