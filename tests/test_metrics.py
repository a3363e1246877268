"""Counts equal a plain count, scores equal their definitions, sums add up exactly however the data are divided."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunet import metrics
from jaxunet.metrics import SCORES, PixelSums, add, pixel_sums

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


def of(**sums: float) -> PixelSums:
    return PixelSums(**(dict.fromkeys(PixelSums._fields, 0) | sums))


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


def test_scores_equal_their_definitions():
    sums = of(tp=6, fp=2, fn=3, tn=9, overlap=5.5, predicted=8.25, actual=9.0)
    expected = {
        "accuracy": 15 / 20,
        "dice": 12 / 17,
        "jaccard": 6 / 11,
        "sensitivity": 6 / 9,
        "specificity": 9 / 11,
        "precision": 6 / 8,
        "dice_coef": (11 + 1) / (17.25 + 1),
        "jaccard_coef": 5.5 / 11.75,
    }
    assert {name: float(score(sums)) for name, score in SCORES.items()} == pytest.approx(expected, rel=1e-15)
    on_device = {name: score(jax.tree.map(jnp.asarray, sums)) for name, score in SCORES.items()}
    assert all(isinstance(value, jax.Array) for value in on_device.values())
    assert {name: float(value) for name, value in on_device.items()} == pytest.approx(expected, rel=1e-6)


def test_undefined_scores_are_nan_and_right_empty_predictions_are_perfect():
    empty = of(tn=20)  # nothing there, nothing predicted
    scores = {name: float(score(empty)) for name, score in SCORES.items()}
    assert scores == pytest.approx(
        {
            "accuracy": 1,
            "dice": 1,
            "jaccard": 1,
            "sensitivity": math.nan,
            "specificity": 1,
            "precision": math.nan,
            "dice_coef": 1,
            "jaccard_coef": 1,
        },
        nan_ok=True,
    )
    missed, invented, full = of(fn=5, tn=15, actual=5.0), of(fp=5, tn=15, predicted=5.0), of(tp=20)
    assert (metrics.dice_score(missed), metrics.sensitivity_score(missed)) == (0, 0)
    assert (metrics.dice_score(invented), metrics.precision_score(invented)) == (0, 0)
    assert np.isnan(metrics.precision_score(missed))
    assert np.isnan(metrics.sensitivity_score(invented))
    assert np.isnan(metrics.specificity_score(full))
    nothing = of()
    assert np.isnan(metrics.accuracy_score(nothing))


def test_scores_of_rows_are_rows():
    rows = PixelSums(*(np.array(column) for column in ([3, 0], [1, 0], [0, 0], [0, 4], [3.0, 0], [4.0, 0], [3.0, 0])))
    np.testing.assert_array_equal(metrics.dice_score(rows), [6 / 7, 1])
    np.testing.assert_array_equal(metrics.sensitivity_score(rows), [1, np.nan])


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


def test_documented_dice_depends_on_the_size_of_the_batch():
    z, g = example()
    g[0] = 0
    halves = [float(metrics.dice_coef(z[i : i + 2], g[i : i + 2])) for i in (0, 2)]
    assert abs(np.mean(halves) - float(metrics.dice_coef(z, g))) > 1e-3
