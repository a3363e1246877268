"""Counts equal a plain count and add up exactly, however the data are divided; scores are in test_scores.py."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunet import metrics
from jaxunet.metrics import SCORES, PixelSums, add, group, pixel_sums
from jaxunet.sharding import global_batch, make_mesh, replicated, split_rows

SHAPE = (4, 6, 8, 2)


def example() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(scale=2, size=SHAPE).astype(np.float32), np.asarray(rng.random(SHAPE) < 0.3, np.uint8)


def count(logits: np.ndarray, masks: np.ndarray, weight: np.ndarray, threshold: float = 0.5) -> list[dict[str, float]]:
    """Pixel by pixel in plain Python."""
    rows = []
    for z, g, w in zip(logits, masks, np.broadcast_to(weight, logits.shape), strict=True):
        row = dict.fromkeys(PixelSums._fields, 0.0)
        for score, label, counted in zip(z.flat, g.flat, w.flat, strict=True):
            if not counted:
                continue
            p = 1 / (1 + math.exp(-float(score)))
            row[("t" if (p > threshold) == bool(label) else "f") + ("p" if p > threshold else "n")] += 1
            row["overlap"] += p * int(label)
            row["predicted"] += p
            row["actual"] += int(label)
        rows.append(row)
    return rows


def check(sums: PixelSums, rows: list[dict[str, float]]) -> None:
    for field, values in sums._asdict().items():
        expected = [row[field] for row in rows]
        if field in ("tp", "fp", "fn", "tn"):
            assert values.dtype == jnp.int32
            assert values.tolist() == expected
        else:
            np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_sums_equal_a_plain_count(threshold):
    z, g = example()
    check(jax.jit(pixel_sums)(z, g, threshold=threshold), count(z, g, np.ones(SHAPE), threshold))


@pytest.mark.parametrize("shape", [(4,), (4, 6, 8, 1)])
def test_weight_zero_takes_samples_and_pixels_out_of_every_sum(shape):
    z, g = example()
    weight = np.asarray(np.random.default_rng(1).random(shape) < 0.5, np.float32)
    z = np.where((weight == 0).reshape(4, *shape[1:] or (1, 1, 1)), np.nan, z)
    sums = pixel_sums(z, g, weight=3 * weight)  # a weight counts once, however large
    check(sums, count(z, g, weight.reshape(4, *shape[1:] or (1, 1, 1))))


def test_probability_at_the_threshold_is_negative():
    z, g = jnp.zeros((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1))
    for sums in (pixel_sums(z, g), jax.jit(pixel_sums)(z, g), jax.jit(pixel_sums)(z, g, threshold=0.5)):
        assert (int(sums.tp[0]), int(sums.fn[0])) == (0, 4)
    assert int(pixel_sums(z + 1e-6, g).tp[0]) == 4


@pytest.mark.parametrize(("threshold", "positive"), [(0.0, 4), (1.0, 0)])
def test_thresholds_of_zero_and_one_are_everything_and_nothing(threshold, positive):
    z = jnp.array([-80.0, -5.0, 5.0, 80.0]).reshape(1, 2, 2, 1)
    assert int(pixel_sums(z, jnp.ones_like(z), threshold=threshold).tp[0]) == positive


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="same shape"):
        pixel_sums(jnp.zeros((2, 4, 4, 1)), jnp.zeros((2, 4, 4)))


@pytest.fixture(scope="module")
def many_rows() -> PixelSums:
    """Of 40 images, as they come from the device."""
    rng = np.random.default_rng(0)
    z = rng.normal(scale=3, size=(40, 6, 8, 1)).astype(np.float32)
    g = rng.random(z.shape) < rng.random((40, 1, 1, 1)) * rng.integers(0, 2, (40, 1, 1, 1))
    return jax.device_get(jax.jit(pixel_sums)(z, g))


def concatenate(rows: list[PixelSums]) -> PixelSums:
    return PixelSums(*map(np.array, zip(*rows, strict=True)))


@settings(max_examples=100)
@given(cuts=st.lists(st.integers(0, 40), max_size=12), data=st.randoms(use_true_random=False))
def test_streamed_sums_equal_one_shot_sums_for_every_partition(many_rows, cuts, data):
    order = list(range(40))
    data.shuffle(order)
    edges = [0, *sorted(cuts), 40]
    parts = [order[a:b] for a, b in itertools.pairwise(edges)]
    streamed = add(concatenate([add(PixelSums(*(column[part] for column in many_rows))) for part in parts]))
    whole = add(many_rows)
    for name in ("tp", "fp", "fn", "tn"):
        assert getattr(streamed, name) == getattr(whole, name)
    for name in ("overlap", "predicted", "actual"):  # float64 of float32 addends: exact but for the last bits
        assert float(getattr(streamed, name)) == pytest.approx(float(getattr(whole, name)), rel=1e-14)
    for name, score in SCORES.items():
        tolerance = 1e-14 if name.endswith("_coef") else 0
        assert float(score(streamed)) == pytest.approx(float(score(whole)), rel=tolerance, abs=0)


def test_sums_beyond_32_bits_are_exact():
    rows = PixelSums(*([np.full(3, 2**30 + 1, np.int32)] * 4), *([np.full(3, 2**24 + 2, np.float32)] * 3))
    total = add(rows)
    assert int(total.tp) == 3 * (2**30 + 1) > 2**31
    assert float(total.overlap) == 3 * (2**24 + 2)
    assert total.tp.dtype == np.int64
    assert total.overlap.dtype == np.float64
    assert float(metrics.dice_score(total)) == 0.5  # 2 TP does not overflow either


def test_more_pixels_than_float32_can_count_are_counted_on_the_device():
    """2^25 + 1 of a kind in one image: float32 would stop at 2^24."""
    z, g = jnp.ones((1, 1, 2**25 + 3, 1), jnp.bfloat16), jnp.ones((1, 1, 2**25 + 3, 1), jnp.uint8)
    g = g.at[0, 0, :2].set(0)
    sums = jax.jit(pixel_sums)(z, g)
    assert (int(sums.tp[0]), int(sums.fp[0]), int(sums.fn[0]), int(sums.tn[0])) == (2**25 + 1, 2, 0, 0)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_counts_on_many_devices_are_those_on_one(devices):
    rng = np.random.default_rng(2)
    batch = {"z": rng.normal(size=(16, 6, 8, 1)).astype(np.float32), "g": np.asarray(rng.random((16, 6, 8, 1)) < 0.3)}
    batch["weight"] = np.asarray(rng.random(16) < 0.8, np.float32)
    expected = jax.device_get(pixel_sums(batch["z"], batch["g"], weight=batch["weight"]))
    mesh = make_mesh(jax.devices()[:devices])
    count_pixels = jax.jit(
        lambda b: pixel_sums(b["z"], b["g"], weight=b["weight"]),
        in_shardings=split_rows(mesh),
        out_shardings=replicated(mesh),
    )
    sums = jax.device_get(count_pixels(global_batch(batch, mesh)))
    for name in ("tp", "fp", "fn", "tn"):
        np.testing.assert_array_equal(getattr(sums, name), getattr(expected, name))


def test_counts_do_not_depend_on_the_order_of_pixels_and_rows():
    z, g = example()
    whole = jax.device_get(pixel_sums(z, g))
    order = np.random.default_rng(3).permutation(4)
    for turn in (lambda x: x[:, ::-1], lambda x: x[:, :, ::-1], lambda x: np.swapaxes(x, 1, 2), lambda x: x[order]):
        turned = jax.device_get(pixel_sums(turn(z), turn(g)))
        rows = order if turn(z).shape == z.shape and (turn(z) == z[order]).all() else slice(None)
        for name in ("tp", "fp", "fn", "tn"):
            np.testing.assert_array_equal(getattr(turned, name), getattr(whole, name)[rows])


def test_groups_are_the_sums_of_their_rows(many_rows):
    labels = np.random.default_rng(4).choice(["b", "a", "c"], 40)
    names, groups = group(many_rows, labels)
    assert names.tolist() == ["a", "b", "c"]
    for i, name in enumerate(names):
        expected = add(PixelSums(*(column[labels == name] for column in many_rows)))
        for found, whole in zip(groups, expected, strict=True):
            assert found.dtype == whole.dtype
            assert float(found[i]) == pytest.approx(float(whole), rel=1e-14)
    assert group(many_rows, np.arange(40))[1].tp.tolist() == many_rows.tp.tolist()
    with pytest.raises(ValueError, match="one label per row"):
        group(many_rows, labels[1:])


def test_groups_beyond_32_bits_are_exact():
    rows = PixelSums(*([np.full(6, 2**30 + 1, np.int32)] * 4), *([np.full(6, 2**24 + 2, np.float32)] * 3))
    _, groups = group(rows, [0, 1, 0, 1, 0, 1])
    assert groups.fn.tolist() == [3 * (2**30 + 1)] * 2
    assert groups.actual.tolist() == [3 * (2**24 + 2)] * 2


@pytest.mark.parametrize(
    ("function", "score"),
    [
        (metrics.accuracy, "accuracy"),
        (metrics.dice, "dice"),
        (metrics.dice_coef, "dice_coef"),
        (metrics.jaccard, "jaccard"),
        (metrics.jaccard_coef, "jaccard_coef"),
        (metrics.sensitivity, "sensitivity"),
        (metrics.specificity, "specificity"),
        (metrics.precision, "precision"),
    ],
)
def test_batch_scores_are_those_of_the_whole_batch(function, score):
    z, g = example()
    for weight in (None, np.array([1, 1, 0, 1], np.float32)):
        kept = np.ones(4, bool) if weight is None else weight > 0
        rows = count(z[kept], g[kept], np.ones(1))
        whole = PixelSums(*(sum(row[field] for row in rows) for field in PixelSums._fields))
        value = function(z, g, weight=weight)
        assert value.shape == ()
        assert float(value) == pytest.approx(float(SCORES[score](whole)), rel=1e-6)


def test_dice_of_the_reference_depends_on_the_size_of_the_batch():
    z, g = example()
    g[0] = 0
    halves = [float(metrics.dice_coef(z[i : i + 2], g[i : i + 2])) for i in (0, 2)]
    assert abs(np.mean(halves) - float(metrics.dice_coef(z, g))) > 1e-3
