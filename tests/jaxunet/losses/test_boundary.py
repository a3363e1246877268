"""Losses of distances: closed forms, maps that are given, and how far an error lies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunet.distance import signed_distance
from jaxunet.losses import LOSSES, boundary_loss, hausdorff_er_loss
from jaxunet.losses.boundary import distance_field, level_set, proximity
from tests.oracles import boundary as oracle_boundary

SHAPE = (2, 32, 40, 1)
MAPS = {
    "boundary": level_set,
    "distance_bce": proximity,
    "distance_dice": proximity,
    "hausdorff_dt": distance_field,
    "log_hausdorff_dt": distance_field,
}


@functools.cache
def compiled(name: str):
    return jax.jit(LOSSES[name].fn)


@functools.cache
def slope_of(name: str):
    return jax.jit(jax.value_and_grad(LOSSES[name].fn))


def disc(radius: float, *, row: float = 16, column: float = 14) -> np.ndarray:
    rows, columns = np.mgrid[: SHAPE[1], : SHAPE[2]]
    mask = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    return np.broadcast_to(mask[None, :, :, None], SHAPE).astype(np.float32)


def certain(mask: np.ndarray) -> np.ndarray:
    return (1e4 * (2 * mask - 1)).astype(np.float32)


def noisy(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32) + 3 * disc(8) - 1.5, disc(7)


@pytest.mark.parametrize(
    ("ours", "plain"), [(m, getattr(oracle_boundary, m.__name__)) for m in dict.fromkeys(MAPS.values())]
)
def test_maps_equal_those_of_scipy(ours, plain):
    masks = np.concatenate([disc(6), disc(0), 0 * disc(1), 1 + 0 * disc(1)])
    masks[-1, 3, 5] = 0.4
    expected = oracle_boundary.of_each_image(plain, masks)
    np.testing.assert_allclose(jax.jit(ours)(masks), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", MAPS)
def test_a_map_may_be_given(name):
    z, g = noisy()
    distances = np.asarray(MAPS[name](g))
    assert float(compiled(name)(z, g, distances=distances)) == pytest.approx(float(compiled(name)(z, g)), rel=1e-6)
    assert float(compiled(name)(z, g, distances=2 * distances)) != pytest.approx(float(compiled(name)(z, g)), rel=0.002)
    weight = np.ones((*SHAPE[:3], 1), np.float32)
    weight[:, :4] = 0
    junk = np.where(weight == 0, np.nan, distances)
    assert np.isfinite(compiled(name)(z, g, weight=weight, distances=junk))
    with pytest.raises(ValueError, match=r"distances \(2, 32, 40\) must be \[B, H, W, K\] = \(2, 32, 40, 1\)"):
        LOSSES[name].fn(z, g, distances=distances[..., 0])


@pytest.mark.parametrize("name", ["boundary", "hausdorff_dt", "log_hausdorff_dt", "hausdorff_er", "boundary_dou"])
def test_a_farther_error_costs_more(name):
    """A disc that is moved or grown: what these losses are for. Dice is the same wherever nothing overlaps."""
    g = disc(4, column=8)
    moved = [float(compiled(name)(certain(disc(4, column=8 + shift)), g)) for shift in (0, 3, 6)]
    grown = [float(compiled(name)(certain(disc(4 + more, column=8)), g)) for more in (0, 3, 6)]
    assert moved == sorted(moved)
    assert grown == sorted(grown)
    assert moved[0] < moved[-1]
    assert grown[0] < grown[-1]
    apart = [float(compiled(name)(certain(disc(4, column=8 + shift)), g)) for shift in (12, 24)]
    if name not in ("hausdorff_er", "boundary_dou"):  # these count errors by their size
        assert apart[0] < 0.8 * apart[1]


def test_boundary_loss_of_a_half_plane_is_its_mean_distance():
    g = np.zeros(SHAPE, np.float32)
    g[:, :, :10] = 1
    phi = np.arange(40) - 9.0  # column 9 is the rim
    assert float(compiled("boundary")(certain(g), g)) == pytest.approx(phi[:10].sum() / 40, rel=1e-6)
    assert float(compiled("boundary")(certain(1 + 0 * g), g)) == pytest.approx(phi.mean(), rel=1e-6)
    assert float(compiled("boundary")(0 * g, g)) == pytest.approx(phi.mean() / 2, rel=1e-6)


def test_boundary_loss_of_an_empty_mask_teaches_unless_its_map_is_the_authors():
    z, empty = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    assert (slope_of("boundary")(z, empty)[1] > 0).all()
    of_authors = functools.partial(boundary_loss, distances=signed_distance(empty))
    assert not np.asarray(jax.jit(jax.grad(of_authors))(z, empty)).any()


def test_the_penalty_is_applied_to_cross_entropy():
    """Elsewhere the weights are computed and dropped."""
    z, g = noisy()
    factor = 1 + oracle_boundary.of_each_image(oracle_boundary.proximity, g)
    expected = float(compiled("bce")(z, g, weight=factor.astype(np.float32))) * factor.mean()
    assert float(compiled("distance_bce")(z, g)) == pytest.approx(expected, rel=1e-5)
    assert expected > 1.2 * float(compiled("bce")(z, g))


@pytest.mark.parametrize("name", ["bce", "dice"])
def test_without_a_boundary_there_is_no_penalty(name):
    z = noisy()[0]
    for masks in (np.zeros_like(z), np.ones_like(z)):
        found, plain = (float(compiled(loss)(z, masks)) for loss in (f"distance_{name}", name))
        assert found == pytest.approx(plain, rel=1e-6)


def test_weighted_dice_stays_in_its_range_where_weighting_the_overlap_alone_does_not():
    g = disc(3)
    factor = 1 + oracle_boundary.of_each_image(oracle_boundary.proximity, g)
    elsewhere = 1 - 2 * (factor * g).sum() / (2 * g.sum())
    assert elsewhere < -0.5
    assert float(compiled("distance_dice")(certain(g), g)) == 0
    assert 0.99 < float(compiled("distance_dice")(certain(1 - g), g)) <= 1


def test_hausdorff_by_distances_has_the_written_value():
    """One false pixel k columns from a single true one: it is d_g away from the mask, and next to its own outside."""
    g, predicted = np.zeros((2, 1, 16, 24, 1), np.float32)
    g[0, 8, 4, 0] = predicted[0, 8, 4, 0] = predicted[0, 8, 14, 0] = 1
    for alpha, expected in ((2.0, 1**2 + 10**2), (1.0, 1 + 10)):
        loss = float(compiled("hausdorff_dt")(certain(predicted), g, alpha=alpha))
        assert loss == pytest.approx(expected / g.size, rel=1e-6)
    assert float(compiled("log_hausdorff_dt")(certain(predicted), g)) == pytest.approx(np.log1p(101 / g.size), rel=1e-6)


def test_hausdorff_by_distances_of_an_empty_mask_teaches():
    """Elsewhere the distances of an image without boundary are zero, and with them the loss of any prediction."""
    empty = np.zeros(SHAPE, np.float32)
    for z in (empty - 2, empty + 2):
        value, slope = slope_of("hausdorff_dt")(z, empty)
        assert float(value) == pytest.approx(2 * float(jax.nn.sigmoid(z[0, 0, 0, 0])) ** 2, rel=1e-6)
        assert (slope > 0).all()


def test_hausdorff_by_erosion_counts_the_depth_of_hard_errors():
    g = np.zeros(SHAPE, np.float32)
    for depth in (0, 1, 3):
        wrong = g.copy()
        wrong[:, 16 - depth : 17 + depth, 20 - depth : 21 + depth] = 1
        # A square of side 2d + 1 is one of side 2(d - k) + 1 after k erosions.
        expected = sum(k**2 * (2 * (depth - k) + 1) ** 2 for k in range(1, depth + 1)) / (SHAPE[1] * SHAPE[2])
        assert float(compiled("hausdorff_er")(certain(wrong), g)) == pytest.approx(expected, rel=1e-6)
    once = jax.jit(functools.partial(hausdorff_er_loss, erosions=1))
    assert float(once(certain(wrong), g, alpha=5.0)) == pytest.approx(25 / 1280, rel=1e-6)


def test_hausdorff_by_erosion_moves_an_even_prediction():
    """Elsewhere nothing that is less than half wrong has a value or a gradient."""
    slope = slope_of("hausdorff_er")(np.zeros(SHAPE, np.float32), disc(6))[1]
    assert slope[0, 16, 14, 0] < 0  # inside
    assert slope[0, 16, 34, 0] > 0  # far outside


@pytest.mark.parametrize(("radius", "capped"), [(3, False), (15, True)])
def test_boundary_dou_has_the_written_value(radius, capped):
    g, predicted = disc(radius), disc(radius, column=17)
    mask = g[0, :, :, 0]
    inner = mask[1:-1, 1:-1] * mask[:-2, 1:-1] * mask[2:, 1:-1] * mask[1:-1, :-2] * mask[1:-1, 2:]
    size, length = mask.sum(), mask.sum() - inner.sum()
    alpha = 1 - 2 * length / size
    assert (alpha > 0.7) == capped
    union, common = np.maximum(g, predicted).sum(), (g * predicted).sum()
    found = float(compiled("boundary_dou")(certain(predicted), g, alpha_max=0.7))
    assert found == pytest.approx((union - common) / (union - min(alpha, 0.7) * common), rel=1e-5)
    assert float(compiled("boundary_dou")(certain(g), g, alpha_max=0.7)) == 0


def test_exponents_may_be_traced():
    z, g = noisy()
    for name in ("hausdorff_dt", "hausdorff_er"):
        loss = compiled(name)
        values = {alpha: float(loss(z, g, alpha=jnp.asarray(alpha))) for alpha in (1.0, 2.0)}
        assert values[1.0] < 0.7 * values[2.0]
        assert values[2.0] == pytest.approx(float(loss(z, g)), rel=1e-6)
