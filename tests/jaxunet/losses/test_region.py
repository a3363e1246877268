"""Dice and Jaccard of sets that can be counted by hand, their relation, and their values for empty masks."""

import functools

import jax
import numpy as np
import pytest

from jaxunet.losses import dice_loss, jaccard_loss
from tests.helpers.float64 import sigmoid
from tests.helpers.loss_cases import CASES, SHAPE, compiled


def test_overlap_of_identical_and_disjoint_sets():
    g = np.zeros(SHAPE, np.float32)
    g[:, :4] = 1
    identical, disjoint = 1e4 * (2 * g - 1), -1e4 * (2 * g - 1)
    size, both = g.sum(), g.size
    assert float(compiled("dice")(identical, g)) == 0
    assert float(compiled("jaccard")(identical, g)) == 0
    assert float(compiled("dice")(disjoint, g)) == pytest.approx(1 - 1 / (both + 1), rel=1e-6)
    assert float(compiled("jaccard")(disjoint, g)) == 1
    half = 1e4 * (2 * np.roll(g, 2, axis=1) - 1)  # half of each set is common
    assert float(compiled("jaccard")(half, g)) == pytest.approx(2 / 3, rel=1e-6)
    assert float(dice_loss(half, g, smooth=0.0)) == pytest.approx(1 / 2, rel=1e-6)
    assert float(dice_loss(half, g)) == pytest.approx(1 - (size + 1) / (2 * size + 1), rel=1e-6)


def test_dice_and_jaccard_are_one_function_of_each_other():
    for case in ("random", "blob", "one pixel", "soft mask"):
        z, g = CASES[case]
        dice, jaccard = 1 - dice_loss(z, g, smooth=1.0), 1 - jaccard_loss(z, g, smooth=0.5)
        assert float(dice) == pytest.approx(float(2 * jaccard / (1 + jaccard)), abs=1e-6)
        assert 1 - jaccard_loss(z, g) <= 1 - dice_loss(z, g, smooth=0.0) + 1e-6


@pytest.mark.parametrize("name", ["dice", "jaccard"])
def test_batch_loss_is_not_the_mean_of_its_parts(name):
    # Nobody may "simplify" a loss over the global batch to a mean over devices.
    g = np.zeros((2, 8, 8, 1), np.float32)
    g[0, :4] = 1
    z = np.stack([4 * g[0] - 2, np.full((8, 8, 1), -1)]).astype(np.float32)
    per_image = compiled(name)(z, g, reduce="image")
    assert abs(float(compiled(name)(z, g)) - float(per_image.mean())) > 0.05


def test_unsmoothed_dice_of_nothing_at_all_is_defined():
    loss = functools.partial(dice_loss, smooth=0.0)
    with jax.debug_nans(True):
        value, slope = jax.jit(jax.value_and_grad(loss))(np.full(SHAPE, -1e4, np.float32), np.zeros(SHAPE, np.float32))
    assert float(value) == 1
    assert not np.asarray(slope).any()


def test_jaccard_of_an_image_without_tumour_is_smoothed_by_one():
    z, g = CASES["one pixel"]
    p = sigmoid(z)
    expected = [1 - p[0, 5, 7, 0] / (p[0].sum() + 1 - p[0, 5, 7, 0]), p[1].sum() / (p[1].sum() + 1)]
    np.testing.assert_allclose(compiled("jaccard")(z, g, reduce="image"), expected, rtol=2e-6)


def test_jaccard_treats_a_batch_whose_only_tumour_has_no_weight_as_empty():
    z, g = CASES["one pixel"]
    p = sigmoid(z[1]).sum()
    np.testing.assert_allclose(compiled("jaccard")(z, g, weight=np.array([0.0, 1.0])), p / (p + 1), rtol=2e-6)
