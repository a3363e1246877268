"""Scores equal scikit-learn and exact rational arithmetic, at any number of pixels; 0/0 is what the table says."""

import decimal
import math
import re
from fractions import Fraction
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunet import metrics
from jaxunet.metrics import SCORES, PixelSums, add, pixel_sums
from tests.goldens import score_rules

FOLDER = Path(__file__).parents[2] / "goldens"
PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"
NAN = math.nan

WHOLE = {"dice", "jaccard", "f2", "mcc", "kappa", "jaccard_coef"}
"""Scores that compare mask and prediction as wholes, and are therefore always defined."""

EMPTY = {
    "mask empty, prediction empty": {"tn": 100},
    "mask empty, prediction some": {"fp": 20, "tn": 80},
    "mask some, prediction empty": {"fn": 20, "tn": 80},
    "mask full, prediction full": {"tp": 100},
}
"""The columns of the table, as counts."""


def of(**sums: float) -> PixelSums:
    """Sums in which the prediction is certain: probabilities are 0 and 1."""
    counts = dict.fromkeys(("tp", "fp", "fn", "tn"), 0) | sums
    soft = {
        "overlap": counts["tp"],
        "predicted": counts["tp"] + counts["fp"],
        "actual": counts["tp"] + counts["fn"],
    }
    return PixelSums(**(soft | counts))


@pytest.fixture(scope="module")
def goldens() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "sklearn.npz") as file:
        return dict(file)


ALL = SCORES | {"f0.5": partial(metrics.f_beta_score, beta=0.5)}

OURS = {
    # scikit-learn's mean of the recalls leaves out a class that does not occur, and so calls one recall balanced
    **{(case, "balanced_accuracy"): NAN for case in score_rules.DEGENERATE if not case.startswith("some")},
    # and its MCC of 0/0 is 0 even where no pixel is wrong, its kappa undefined
    **{(case, name): 1.0 for case in ("empty_empty", "full_full") for name in ("mcc", "kappa")},
}
"""Where scores differ from scikit-learn's."""


@pytest.mark.parametrize("case", [*score_rules.CASES, *score_rules.DEGENERATE])
def test_scores_equal_those_of_scikit_learn(goldens, case):
    probability, mask = score_rules.case(case)
    with np.errstate(divide="ignore"):
        logits = np.log(probability / (1 - probability)) if case not in score_rules.DEGENERATE else None
    if logits is None:
        logits = np.where(probability > 0.5, 50.0, -50.0)
    sums = add(jax.device_get(PIXEL_SUMS(logits[..., None].astype(np.float32), mask[..., None])))
    for name, expected in zip(goldens["scores"].tolist(), goldens[f"{case}.scores"], strict=True):
        value = float(ALL[name](sums))
        assert value == pytest.approx(OURS.get((case, name), expected), abs=1e-12, rel=0, nan_ok=True), name
        if (case, name) in OURS:
            assert not (value == expected or (math.isnan(value) and math.isnan(expected)))


PIXEL_SUMS = jax.jit(pixel_sums)


@pytest.mark.parametrize("case", score_rules.COUNTS)
def test_scores_of_billions_of_pixels_equal_those_of_scikit_learn(goldens, case):
    sums = of(**dict(zip(("tp", "fp", "fn", "tn"), score_rules.COUNTS[case], strict=True)))
    for name, expected in zip(goldens["scores"].tolist(), goldens[f"{case}.scores"], strict=True):
        value = float(ALL[name](sums))
        if (case, name) == ("one_in_a_billion", "mcc"):  # where scikit-learn's floats cancel, and integers do not
            assert abs(value - expected) > 1e-12
            expected = float(exact(name, *score_rules.COUNTS[case]))
        assert value == pytest.approx(expected, abs=1e-12, rel=0), name


def exact(name: str, tp: int, fp: int, fn: int, tn: int) -> Fraction | decimal.Decimal | float:
    """The definition in rational numbers (roots: 60 digits), NaN where it is 0/0."""

    def share(part: int, whole: int) -> Fraction | float:
        return Fraction(part, whole) if whole else NAN

    n = tp + fp + fn + tn
    sensitivity, specificity = share(tp, tp + fn), share(tn, tn + fp)
    if name == "mcc":
        with decimal.localcontext(prec=60):
            root = decimal.Decimal((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)).sqrt()
            return decimal.Decimal(tp * tn - fp * fn) / root if root else NAN
    if name == "kappa":  # from its definition: agreement, and agreement by chance
        observed = Fraction(tp + tn, n)
        chance = Fraction((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn), n * n)
        return (observed - chance) / (1 - chance) if chance != 1 else NAN
    if name == "f2":  # from its definition: a weighted harmonic mean
        precision = share(tp, tp + fp)
        if not tp:
            return share(0, fp + fn)
        return 5 * precision * sensitivity / (4 * precision + sensitivity)
    return {
        "accuracy": lambda: share(tp + tn, n),
        "balanced_accuracy": lambda: (sensitivity + specificity) / 2,
        "dice": lambda: share(2 * tp, (tp + fp) + (tp + fn)),
        "jaccard": lambda: share(tp, n - tn),
        "sensitivity": lambda: sensitivity,
        "specificity": lambda: specificity,
        "precision": lambda: share(tp, tp + fp),
        "npv": lambda: share(tn, tn + fn),
        "volume_difference": lambda: share((tp + fp) - (tp + fn), tp + fn),
        "volume_error": lambda: share(abs(fp - fn), tp + fn),
        "dice_coef": lambda: Fraction(2 * tp + 1, 2 * tp + fp + fn + 1),
        "jaccard_coef": lambda: share(tp, n - tn),
    }[name]()


counts = st.one_of(st.integers(0, 5), st.integers(0, 10**4), st.integers(0, 10**12))


@settings(max_examples=300)
@given(tp=counts, fp=counts, fn=counts, tn=counts)
def test_scores_equal_their_definitions_in_rational_numbers(tp, fp, fn, tn):
    if tp + fp + fn + tn == 0:
        return
    sums = of(tp=tp, fp=fp, fn=fn, tn=tn)
    for name, score in SCORES.items():
        expected = float(exact(name, tp, fp, fn, tn))
        if math.isnan(expected) and name in WHOLE:
            expected = 1.0 if fp + fn == 0 else 0.0
        # one part in 10^15, and where a difference cancels (TP TN against FP FN) still of the result
        assert float(score(sums)) == pytest.approx(expected, rel=2e-15, abs=0, nan_ok=True), name


@settings(max_examples=100)
@given(tp=counts, fp=counts, fn=counts, tn=counts)
def test_identities_between_scores(tp, fp, fn, tn):
    sums, mirrored = of(tp=tp, fp=fp, fn=fn, tn=tn), of(tp=tp, fp=fn, fn=fp, tn=tn)
    inverted = of(tp=tn, fp=fn, fn=fp, tn=tp)  # background taken for the lesion
    score = {name: float(f(sums)) for name, f in SCORES.items()}
    same = partial(pytest.approx, rel=1e-12, abs=1e-15, nan_ok=True)
    assert score["dice"] == same(2 * score["jaccard"] / (1 + score["jaccard"]))
    assert score["dice"] == same(float(metrics.f_beta_score(sums, beta=1)))
    assert score["dice"] >= score["jaccard"] or math.isnan(score["dice"])
    for name in ("accuracy", "dice", "jaccard", "mcc", "kappa"):  # symmetric in mask and prediction
        assert float(SCORES[name](mirrored)) == same(score[name])
    for name in ("accuracy", "balanced_accuracy", "mcc", "kappa"):  # symmetric in tumour and background
        assert float(SCORES[name](inverted)) == same(score[name])
    assert float(metrics.sensitivity_score(mirrored)) == same(score["precision"])
    assert float(metrics.sensitivity_score(inverted)) == same(score["specificity"])
    assert float(metrics.precision_score(inverted)) == same(score["npv"])
    assert score["volume_error"] == same(abs(score["volume_difference"]))
    if tp and tn:  # MCC^2 is the product of the four slopes; informedness times markedness
        informed, marked = score["sensitivity"] + score["specificity"] - 1, score["precision"] + score["npv"] - 1
        assert score["mcc"] ** 2 == pytest.approx(informed * marked, rel=1e-9, abs=1e-12)


def test_every_score_is_in_its_documented_range_and_at_its_best_where_nothing_is_wrong():
    rng = np.random.default_rng(0)
    rows = of(**{name: rng.integers(0, 9, 3000) for name in ("tp", "fp", "fn", "tn")})
    for name, score in SCORES.items():
        low = -1 if name in ("mcc", "kappa", "volume_difference") else 0
        high = math.inf if name.startswith("volume") else 1
        values = np.asarray(score(rows))
        assert low <= np.nanmin(values), name
        assert np.nanmax(values) <= high, name
        assert float(score(of(tp=7, tn=9))) == (0 if name.startswith("volume") else 1), name


# ------------------------------------------------------------------------------------------------ empty masks


def cell(name: str, counts: dict[str, int], **option: str) -> str:
    value = float(SCORES[name](of(**counts), **option))
    return "undefined" if math.isnan(value) else f"{value:g}"


def test_the_page_lists_every_score_with_its_formula():
    section = PAGE.read_text(encoding="utf-8").split("\n## ")[1]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(SCORES)


def test_the_table_of_the_documentation_is_what_the_code_gives():
    """`some` is 20 pixels of 100; what changes with that number is written as `depends`."""
    section = PAGE.read_text(encoding="utf-8").split("\n## ")[2]
    assert section.startswith("Empty masks")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.MULTILINE)
    assert [name for name, _ in rows] == list(SCORES)
    for name, line in rows:
        for claim, counts in zip(line.split(" | "), EMPTY.values(), strict=True):
            value, other = cell(name, counts), cell(name, {key: 60 if key == "tn" else 40 for key in counts})
            if claim == "depends":
                assert len({value, other, "undefined"}) == 3, name
            else:
                assert claim == value == other, name
            skipped = cell(name, counts, empty="skip")
            assert skipped == (value if {"tp", "fn"} & counts.keys() else "undefined"), name


def test_scores_that_compare_wholes_are_always_defined_and_a_missed_tumour_is_zero():
    rng = np.random.default_rng(5)
    rows = of(**{name: rng.integers(0, 3, 500) * rng.integers(0, 2, 500) for name in ("tp", "fp", "fn", "tn")})
    some = rows.tp + rows.fp + rows.fn + rows.tn > 0
    for name in WHOLE:
        np.testing.assert_array_equal(np.isnan(SCORES[name](rows)), ~some)
        for rule in ("perfect", "skip"):
            assert float(SCORES[name](of(fn=20, tn=80), empty=rule)) == 0


@pytest.mark.parametrize("empty", ["perfect", "skip"])
def test_a_group_without_pixels_is_undefined_under_both_rules(empty):
    for name, score in SCORES.items():
        assert math.isnan(score(of(), empty=empty)), name


def test_skip_takes_out_the_groups_without_a_true_pixel_and_changes_no_other():
    rng = np.random.default_rng(6)
    rows = of(**{name: rng.integers(0, 3, 200) for name in ("tp", "fp", "fn", "tn")})
    tumour = rows.tp + rows.fn > 0
    for score in SCORES.values():
        np.testing.assert_array_equal(score(rows, empty="skip"), np.where(tumour, score(rows), np.nan))


def test_an_unknown_rule_and_a_beta_of_zero_are_refused():
    with pytest.raises(ValueError, match="empty='one'; expected one of 'perfect', 'skip'"):
        metrics.dice_score(of(tp=1), empty="one")
    with pytest.raises(ValueError, match="beta=0"):
        metrics.f_beta_score(of(tp=1), beta=0)


# ------------------------------------------------------------------------------------------------ rows and devices


def test_scores_of_rows_are_rows():
    rows = of(tp=np.array([3, 0, 0]), fp=np.array([1, 0, 0]), fn=np.array([0, 0, 0]), tn=np.array([0, 4, 0]))
    for name, score in SCORES.items():
        values = score(rows)
        assert values.shape == (3,), name
        singles = [float(score(PixelSums(*(column[i] for column in rows)))) for i in range(3)]
        np.testing.assert_array_equal(values, singles, err_msg=name)


def test_scores_on_the_device_are_those_of_the_host_in_float32():
    rng = np.random.default_rng(1)
    columns = {name: rng.integers(0, 2**30, 50) >> rng.integers(0, 28, 50) for name in ("tp", "fp", "fn", "tn")}
    columns["tp"][:5] = columns["fn"][3:8] = columns["fp"][4:7] = 0
    for values in columns.values():
        values[-1] = 2**30  # each fits int32, their sum does not
    rows = of(**columns)
    device = jax.tree.map(lambda column: jnp.asarray(column.astype(np.int32)), rows)
    soft = {name: getattr(rows, name).astype(np.float32) for name in ("overlap", "predicted", "actual")}
    device = device._replace(**{name: jnp.asarray(values) for name, values in soft.items()})
    found = jax.jit(lambda sums: {name: score(sums) for name, score in SCORES.items()})(device)
    for name, values in found.items():
        assert values.dtype == jnp.float32
        # absolute where counts cancel: MCC, kappa
        np.testing.assert_allclose(values, SCORES[name](rows), rtol=2e-6, atol=2e-6, err_msg=name)
