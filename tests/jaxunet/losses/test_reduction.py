"""Averages over groups count the groups with weight; test_entry.py tests the contract of every loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunet.losses import averaged, dice_loss
from jaxunet.losses.reduction import power, prepare, ratio
from tests.helpers.loss_cases import CASES


def test_an_average_counts_the_groups_that_count():
    z, g = (np.concatenate([a, a[:1] * 0.5, a[:1] * 0.25]) for a in CASES["blob"])
    g[1] = 0
    images = np.asarray(dice_loss(z, g, reduce="image"))
    mean = averaged(dice_loss, "image")
    assert float(mean(z, g)) == pytest.approx(images.mean(), rel=1e-6)
    assert float(mean(z, g, empty="skip")) == pytest.approx(np.delete(images, 1).mean(), rel=1e-6)
    assert float(mean(z, g, weight=np.array([1, 1, 1, 0]))) == pytest.approx(images[:3].mean(), rel=1e-6)
    assert float(mean(z, g, weight=np.zeros(4))) == 0
    patients = [float(dice_loss(z[rows], g[rows], smooth=2.0)) for rows in ([0, 3], [1, 2])]
    found = averaged(dice_loss, "patient")(z, g, patient=np.array([9, 4, 4, 9]), smooth=2.0)
    assert float(found) == pytest.approx(np.mean(patients), rel=1e-6)
    assert averaged(dice_loss, "batch") is dice_loss


def test_total_and_mean_are_those_of_float64_in_each_group():
    z, g = (np.concatenate([a, a[:1]]) for a in CASES["random"])
    weight = np.random.default_rng(0).random((3, *z.shape[1:3], 1)).astype(np.float32)
    sums = (weight.astype(np.float64) * g).sum((1, 2, 3))
    weights = z.shape[3] * weight.astype(np.float64).sum((1, 2, 3))
    for reduce, groups in (("batch", [[0, 1, 2]]), ("image", [[0], [1], [2]]), ("patient", [[0, 2], [1]])):
        x = prepare(z, g, weight, reduce, patient=np.array([4, 9, 4]))
        totals, means = np.zeros(3), np.zeros(3)
        for rows in groups:
            totals[rows[0]], means[rows[0]] = sums[rows].sum(), sums[rows].sum() / weights[rows].sum()
        kept = 0 if reduce == "batch" else slice(None)
        np.testing.assert_allclose(x.total(weight * x.masks), totals[kept], rtol=1e-6)
        np.testing.assert_allclose(x.mean(x.masks), means[kept], rtol=1e-6)


def test_a_ratio_by_zero_and_a_root_of_zero_have_no_gradient():
    assert float(ratio(jnp.float32(3), jnp.float32(0))) == 0
    assert float(jax.grad(lambda d: ratio(jnp.float32(3), d))(0.0)) == 0
    assert float(jax.grad(lambda s: power(s, 0.5))(0.0)) == 0
    assert float(jax.grad(lambda s: power(s, 0.5))(0.25)) == 1
    assert float(power(jnp.float32(3), 2)) == 9
