"""Rankings and calibration equal scikit-learn; histograms count and add up exactly and err no more than they say."""

import itertools
import math
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunet.metrics import (
    Histogram,
    Probabilities,
    add_histograms,
    auroc_bounds,
    auroc_score,
    average_precision_bounds,
    average_precision_score,
    brier_score,
    distinct,
    expected_calibration_error,
    from_histogram,
    pixel_sums,
    probability_histogram,
    reliability,
)
from jaxunet.metrics.probability import BINS, REACH
from jaxunet.sharding import global_batch, make_mesh, replicated, split_rows
from tests.goldens import score_rules

GOLDENS = Path(__file__).parents[2] / "goldens" / "sklearn.npz"
SHAPE = (8, 8, 6, 1)
count = jax.jit(probability_histogram, static_argnames="bins")


def example(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    g = np.asarray(rng.random(SHAPE) < 0.2, np.uint8)
    return (rng.normal(scale=3, size=SHAPE) + 3 * g - 2).astype(np.float32), g


@pytest.fixture(scope="module")
def goldens() -> dict[str, np.ndarray]:
    with np.load(GOLDENS) as file:
        return dict(file)


def equal_goldens(goldens: dict[str, np.ndarray], case: str, found: Probabilities) -> None:
    scores = {"auroc": auroc_score, "average_precision": average_precision_score, "brier": brier_score}
    assert goldens["rankings"].tolist() == list(scores)
    for (name, score), expected in zip(scores.items(), goldens[f"{case}.rankings"], strict=True):
        assert score(found) == pytest.approx(expected, abs=1e-12, rel=0), name
    curve = reliability(found, bins=15)
    held = curve.pixels > 0  # scikit-learn leaves empty bins out
    np.testing.assert_allclose(curve.observed[held], goldens[f"{case}.observed"], atol=1e-12, rtol=0)
    np.testing.assert_allclose(curve.predicted[held], goldens[f"{case}.predicted"], atol=1e-12, rtol=0)


@pytest.mark.parametrize("case", score_rules.CASES)
def test_exact_counts_with_many_ties_equal_scikit_learn(goldens, case):
    probability, mask = score_rules.case(case)
    equal_goldens(goldens, case, distinct(probability, mask))


def test_exact_counts_without_ties_equal_scikit_learn(goldens):
    found = distinct(*score_rules.fine())
    assert len(found.value) == 5000
    equal_goldens(goldens, "fine", found)


def test_a_histogram_of_logits_in_the_middle_of_bins_equals_scikit_learn(goldens):
    logits, mask = score_rules.binned()
    histogram = jax.device_get(count(logits.astype(np.float32), mask))
    equal_goldens(goldens, "binned", from_histogram(histogram))


# ------------------------------------------------------------------------------------------------ definitions

ROWS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=8)


def of(rows: list[tuple[int, int, int]]) -> Probabilities:
    """From (twentieths, tumour pixels, healthy pixels)."""
    columns = np.array(sorted({value: (value, p, n) for value, p, n in rows}.values())).T
    return Probabilities(columns[0] / 20, columns[1], columns[2])


def pixels(found: Probabilities) -> tuple[list[float], list[float]]:
    """The probabilities of tumour and of healthy pixels, one by one."""
    return tuple(np.repeat(found.value, counts).tolist() for counts in found[1:])


@settings(max_examples=200)
@given(rows=ROWS)
def test_scores_equal_their_definitions_pixel_by_pixel(rows):
    found = of(rows)
    tumour, healthy = pixels(found)
    nan = pytest.approx(math.nan, nan_ok=True)
    if tumour and healthy:
        wins = sum(Fraction((p > q) + (p >= q), 2) for p, q in itertools.product(tumour, healthy))
        assert auroc_score(found) == float(wins / (len(tumour) * len(healthy)))
    else:
        assert auroc_score(found) == nan
    if tumour:
        above = [(sum(p >= t for p in tumour), sum(q >= t for q in healthy)) for t in tumour]
        precision = sum(Fraction(tp, tp + fp) for tp, fp in above) / len(tumour)
        assert average_precision_score(found) == pytest.approx(float(precision), rel=1e-14)
    else:
        assert average_precision_score(found) == nan
    if tumour or healthy:
        squares = math.fsum([(1 - p) ** 2 for p in tumour] + [q**2 for q in healthy])
        assert brier_score(found) == pytest.approx(squares / len(tumour + healthy), rel=1e-14, abs=1e-16)
    else:
        assert brier_score(found) == nan


@settings(max_examples=100)
@given(rows=ROWS, bins=st.integers(1, 20))
def test_calibration_equals_its_definition_bin_by_bin(rows, bins):
    found = of(rows)
    tumour, healthy = pixels(found)
    curve = reliability(found, bins=bins)
    gaps = 0.0
    for i in range(bins):
        low, high = curve.edges[i], curve.edges[i + 1]
        inside = [[p for p in side if (low < p <= high) or (i == 0 and p == 0)] for side in (tumour, healthy)]
        total = len(inside[0]) + len(inside[1])
        assert curve.pixels[i] == total
        if not total:
            assert np.isnan(curve.predicted[i])
            assert np.isnan(curve.observed[i])
            continue
        assert curve.predicted[i] == pytest.approx(math.fsum(inside[0] + inside[1]) / total, rel=1e-14)
        assert curve.observed[i] == len(inside[0]) / total
        gaps += abs(math.fsum(inside[0] + inside[1]) - len(inside[0]))
    everything = len(tumour + healthy)
    expected = gaps / everything if everything else math.nan
    assert expected_calibration_error(curve) == pytest.approx(expected, rel=1e-12, abs=1e-15, nan_ok=True)


def test_probabilities_that_come_true_as_often_as_they_say_are_calibrated():
    value = np.array([0.1, 0.5, 0.9])
    found = Probabilities(value, np.array([10, 50, 90]), np.array([90, 50, 10]))
    assert expected_calibration_error(reliability(found)) == pytest.approx(0, abs=1e-15)
    always = Probabilities(np.array([1.0]), np.array([3]), np.array([7]))
    assert expected_calibration_error(reliability(always)) == pytest.approx(0.7)


@settings(max_examples=60)
@given(rows=ROWS)
def test_rankings_do_not_change_under_monotone_maps_and_turn_around_with_the_masks(rows):
    found = of(rows)
    bent = found._replace(value=found.value**3)
    for score in (auroc_score, average_precision_score):
        assert score(bent) == pytest.approx(score(found), nan_ok=True)
    turned = Probabilities(1 - found.value[::-1], found.negative[::-1], found.positive[::-1])
    assert auroc_score(turned) == pytest.approx(auroc_score(found), nan_ok=True)
    assert brier_score(turned) == pytest.approx(brier_score(found), abs=1e-15, nan_ok=True)


@pytest.mark.parametrize("scale", [10**6, 10**9])
def test_pixels_beyond_64_bits_of_pairs_are_exact(scale):
    positive, negative = np.array([1, 0, 2, 3]) * scale, np.array([5, 3, 1, 1]) * scale
    found = Probabilities(np.array([0.1, 0.2, 0.3, 0.4]), positive, negative)
    wins = Fraction(1 * 5 + 2 * (2 * 8 + 1) + 3 * (2 * 9 + 1), 2)
    assert auroc_score(found) == float(wins / (6 * 10))
    assert (2 * 6 * 10 * scale**2 >= 2**63) == (scale == 10**9)


def test_what_has_one_kind_of_pixels_or_none_is_undefined():
    value = np.array([0.25, 0.5])
    healthy = Probabilities(value, np.array([0, 0]), np.array([3, 4]))
    tumour = Probabilities(value, np.array([3, 4]), np.array([0, 0]))
    nothing = distinct(np.zeros((0, 4)), np.zeros((0, 4)))
    for found in (healthy, tumour, nothing):
        assert math.isnan(auroc_score(found))
        assert all(map(math.isnan, auroc_bounds(found)))
    assert math.isnan(average_precision_score(healthy))
    assert all(map(math.isnan, average_precision_bounds(healthy)))
    assert average_precision_score(tumour) == 1
    for value in (average_precision_score, brier_score, lambda p: expected_calibration_error(reliability(p))):
        assert math.isnan(value(nothing))


def test_what_are_no_probabilities_is_refused():
    with pytest.raises(ValueError, match="are these logits"):
        distinct(np.array([-1.0, 2.0]), np.zeros(2))
    with pytest.raises(ValueError, match="expected 0 to 1"):
        distinct(np.array([np.nan]), np.zeros(1))
    with pytest.raises(ValueError, match="same shape"):
        distinct(np.zeros((2, 3)), np.zeros((2, 3, 1)))
    with pytest.raises(ValueError, match="bins=0"):
        reliability(of([(1, 1, 1)]), bins=0)


# ------------------------------------------------------------------------------------------------ histograms


def plain_count(z: np.ndarray, g: np.ndarray, bins: int) -> Histogram:
    """Each logit looked up among the edges in float64: a bin holds its upper edge."""
    edges = (np.arange(bins + 1) - bins // 2) * (REACH / (bins // 2))
    index = np.clip(np.searchsorted(edges, z.astype(np.float64).ravel(), side="left") - 1, 0, bins - 1)
    return Histogram(*(np.bincount(index[g.ravel() == label], minlength=bins) for label in (1, 0)))


def same(found: Histogram, expected: Histogram) -> None:
    for counts, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(counts, wanted)


@pytest.mark.parametrize("bins", [2, 64, BINS])
def test_a_histogram_equals_a_plain_count(bins):
    z, g = example()
    z.ravel()[:12] = [0, -0.0, 32, -32, 33, -33, np.inf, -np.inf, 1e-30, -1e-30, 2.0**-10, 5.5]
    histogram = jax.device_get(count(z, g, bins=bins))
    assert histogram.positive.dtype == np.int32
    same(histogram, plain_count(z, g, bins))


def test_the_upper_half_of_the_bins_is_what_the_threshold_calls_positive():
    z, g = example(1)
    z.ravel()[:40] = np.resize([0, 1e-20, -1e-20, -0.0], 40)  # ties at one half are negative
    histogram, sums = count(z, g), pixel_sums(z, g)
    for side, above, below in ((histogram.positive, sums.tp, sums.fn), (histogram.negative, sums.fp, sums.tn)):
        assert int(side[BINS // 2 :].sum()) == int(above.sum())
        assert int(side[: BINS // 2].sum()) == int(below.sum())


def test_no_number_counts_as_the_lowest():
    histogram = count(jnp.full((1, 2, 2, 1), jnp.nan), jnp.ones((1, 2, 2, 1)))
    assert int(histogram.positive[0]) == 4


@pytest.mark.parametrize("shape", [(8,), (8, 8, 6, 1)])
def test_padding_changes_nothing_whatever_lies_there(shape):
    z, g = example(2)
    weight = np.asarray(np.random.default_rng(3).random(shape) < 0.6, np.float32)
    kept = np.broadcast_to(weight.reshape(8, *shape[1:] or (1, 1, 1)), SHAPE) > 0
    found = count(np.where(kept, z, np.nan).astype(np.float32), g, weight=2 * weight)
    same(found, plain_count(z[kept], g[kept], BINS))


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(0, 40), max_size=8), order=st.permutations(range(40)))
def test_streamed_histograms_equal_one_shot_for_every_partition(cuts, order):
    rng = np.random.default_rng(4)
    rows = [Histogram(*rng.integers(0, 5, (2, 16)).astype(np.int32)) for _ in range(40)]
    whole = Histogram(*(np.sum([row[i] for row in rows], 0) for i in (0, 1)))
    edges = [0, *sorted(cuts), 40]
    parts = [[rows[i] for i in order[a:b]] for a, b in itertools.pairwise(edges) if a < b]
    same(add_histograms([add_histograms(part) for part in parts]), whole)


@settings(max_examples=20)
@given(cut=st.integers(1, 7))
def test_batches_of_any_size_give_the_same_histogram(cut):
    z, g = example(5)
    weight = np.arange(8) < cut
    parts = [count(z, g, weight=side.astype(np.float32)) for side in (weight, ~weight)]
    same(add_histograms(parts), jax.device_get(count(z, g)))


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_a_sharded_batch_gives_the_histogram_of_the_global_batch(devices):
    z, g = example(6)
    mesh = make_mesh(jax.devices()[:devices])
    sharded = jax.jit(
        lambda batch: probability_histogram(batch["z"], batch["g"]),
        in_shardings=split_rows(mesh),
        out_shardings=replicated(mesh),
    )
    same(jax.device_get(sharded(global_batch({"z": z, "g": g}, mesh))), plain_count(z, g, BINS))


def test_histograms_beyond_32_bits_and_one_bin_beyond_float32_are_exact():
    part = Histogram(np.full(4, 2**30 + 1, np.int32), np.full(4, 2**30 + 3, np.int32))
    total = add_histograms([part] * 5)
    assert total.positive.tolist() == [5 * (2**30 + 1)] * 4
    assert total.negative.dtype == np.int64
    z = jnp.zeros((1, 1, 2**24 + 3, 1), jnp.bfloat16)
    assert int(count(z, jnp.ones_like(z, jnp.uint8), bins=2).positive[0]) == 2**24 + 3


def test_histograms_that_do_not_fit_are_refused():
    z, g = example()
    for bins in (0, 3, -2):
        with pytest.raises(ValueError, match=f"bins={bins}; expected an even number"):
            probability_histogram(z, g, bins=bins)
    with pytest.raises(ValueError, match="of 4 and of 6 bins"):
        add_histograms([Histogram(np.zeros(4, int), np.zeros(4, int)), Histogram(np.zeros(6, int), np.zeros(6, int))])
    with pytest.raises(ValueError, match="no histogram"):
        add_histograms([])
    with pytest.raises(ValueError, match="same shape"):
        probability_histogram(z, g[..., 0])


@pytest.mark.parametrize("bins", [16, 256, BINS])
def test_binning_errs_within_its_bounds_and_more_bins_err_less(bins):
    rng = np.random.default_rng(7)
    shape = (4, 32, 32, 1)
    g = np.asarray(rng.random(shape) < 0.05, np.uint8)
    z = (rng.normal(scale=2, size=shape) + 3 * g - 4).astype(np.float32)
    true = distinct(1 / (1 + np.exp(-z.astype(np.float64))), g)
    found = from_histogram(jax.device_get(count(z, g, bins=bins)))
    for score, bounds in ((auroc_score, auroc_bounds), (average_precision_score, average_precision_bounds)):
        low, high = bounds(found)
        assert low <= score(true) <= high
        assert low <= score(found) <= high
        if bins == BINS:
            assert score(found) == pytest.approx(score(true), abs=1e-3)
            assert high - low < 2e-3
    width = 2 * REACH / bins
    assert brier_score(found) == pytest.approx(brier_score(true), abs=2 * width / 8)
    if bins == 16:
        assert high - low > 0.05  # the bounds are not idle


@settings(max_examples=200)
@given(rows=ROWS, data=st.data())
def test_bounds_hold_for_every_way_to_resolve_the_ties(rows, data):
    """Each value is replaced by several close ones, among which its pixels are dealt at random."""
    found = of(rows)
    split: list[tuple[float, int, int]] = []
    for value, positive, negative in zip(*found, strict=True):
        ways = data.draw(st.integers(1, 4))
        dealt = [[0] * ways, [0] * ways]
        for side, total in zip(dealt, (positive, negative), strict=True):
            for _ in range(total):
                side[data.draw(st.integers(0, ways - 1))] += 1
        split += [(value + i / 100, p, n) for i, (p, n) in enumerate(zip(*dealt, strict=True))]
    finer = Probabilities(*map(np.array, zip(*split, strict=True)))
    for score, bounds in ((auroc_score, auroc_bounds), (average_precision_score, average_precision_bounds)):
        low, high = bounds(found)
        if not math.isnan(low):
            assert low - 1e-12 <= score(finer) <= high + 1e-12
