"""Every level averages over what its name says; undefined groups are counted, padding is no group."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunet.metrics import SCORES, PixelSums, TableRow, add, score_table

# Four slices of 100 pixels: a good one, a missed one, a clean empty one, an empty one with false alarms.
SUMS = PixelSums(
    tp=np.array([8, 0, 0, 0]),
    fp=np.array([2, 0, 0, 5]),
    fn=np.array([2, 10, 0, 0]),
    tn=np.array([88, 90, 100, 95]),
    overlap=np.array([7.5, 0.5, 0.0, 0.0]),
    predicted=np.array([10.0, 1.0, 0.5, 5.0]),
    actual=np.array([10.0, 10.0, 0.0, 0.0]),
)
GROUPS = {"patient": ["a", "a", "b", "b"], "site": [7, 7, 7, 7]}


def table(*args, **options) -> dict[tuple[str, str], TableRow]:
    return {(row.level, row.score): row for row in score_table(*args, **options)}


def test_every_level_has_every_score_once():
    rows = score_table(SUMS, GROUPS)
    levels = ["slice", "tumour_slice", "patient", "site", "overall"]
    assert [(row.level, row.score) for row in rows] == [(level, name) for level in levels for name in SCORES]


def test_dice_by_hand_at_every_level():
    rows, pooled = table(SUMS, GROUPS), 16 / 35
    expected = {
        "slice": (pooled, (0.8 + 0 + 1 + 0) / 4, 0.4, 4),
        "tumour_slice": (16 / 30, 0.4, 0.4, 2),
        "patient": (pooled, (16 / 30 + 0) / 2, 16 / 60, 2),
        "site": (pooled, pooled, pooled, 1),
        "overall": (pooled, pooled, pooled, 1),
    }
    for level, (micro, macro, median, groups) in expected.items():
        row = rows[level, "dice"]
        assert (row.micro, row.macro, row.median) == pytest.approx((micro, macro, median), rel=1e-15), level
        assert (row.groups, row.undefined) == (groups, 0)
    assert rows["slice", "dice"].std == pytest.approx(np.std([0.8, 0, 1, 0]))


def test_undefined_groups_are_left_out_and_counted():
    rows = table(SUMS, GROUPS)
    assert rows["slice", "sensitivity"][3:] == pytest.approx((0.4, 0.4, 0.4, 4, 2))
    assert rows["patient", "sensitivity"][3:] == pytest.approx((0.4, 0.4, 0, 2, 1))
    assert rows["slice", "precision"].undefined == 2


def test_groups_without_a_true_pixel_that_are_skipped_are_in_no_mean_and_counted():
    skip, perfect = table(SUMS, GROUPS, empty="skip"), table(SUMS, GROUPS)
    for name in SCORES:
        row, tumour = skip["slice", name], perfect["tumour_slice", name]
        assert row[2:6] == pytest.approx(tumour[2:6], nan_ok=True)
        assert (row.groups, row.undefined) == (4, 2 + tumour.undefined)
    assert skip["patient", "dice"][2:] == pytest.approx((16 / 30, 16 / 30, 16 / 30, 0, 2, 1))


def test_tumour_slices_and_patients_with_tumour_do_not_depend_on_the_rule():
    both = [table(SUMS, {"patient": ["a", "b", "a", "b"]}, empty=rule) for rule in ("perfect", "skip")]
    for key, row in both[0].items():
        if key[0] in ("tumour_slice", "patient", "overall"):
            assert row[2:] == pytest.approx(both[1][key][2:], nan_ok=True)


def test_what_nothing_defines_is_nan_with_its_count():
    empty = PixelSums(*(values[2:3] for values in SUMS))
    rows = table(empty, {})
    assert rows["slice", "sensitivity"].undefined == 1
    assert all(math.isnan(value) for value in rows["slice", "sensitivity"][2:6])
    assert rows["tumour_slice", "dice"].groups == 0
    assert all(math.isnan(value) for value in rows["tumour_slice", "dice"][2:6])


def test_scores_of_ones_own_are_tabled():
    rows = score_table(SUMS, {}, scores={"found": lambda sums: sums.tp / 10})
    assert [(row.level, row.score, row.macro) for row in rows] == [
        ("slice", "found", 0.2),
        ("tumour_slice", "found", 0.4),
        ("overall", "found", 0.8),
    ]


@settings(max_examples=25)
@given(data=st.data())
def test_padding_and_the_order_of_rows_change_nothing(data):
    order = data.draw(st.permutations(range(7)))
    padded = PixelSums(*(np.concatenate([values, np.zeros(3, values.dtype)])[order] for values in SUMS))
    groups = {level: np.array([*labels, *labels[:3]])[order] for level, labels in GROUPS.items()}
    expected = table(SUMS, GROUPS)
    for key, row in table(padded, groups).items():
        assert row[2:] == pytest.approx(expected[key][2:], rel=1e-14, nan_ok=True), key


def test_micro_is_the_score_of_the_sum_and_exact_beyond_32_bits():
    rows = PixelSums(*([np.full(5, 2**30 + 7, np.int32)] * 4), *([np.ones(5, np.float32)] * 3))
    found = table(rows, {"patient": [0, 0, 0, 1, 1]})
    for name, score in SCORES.items():
        assert found["slice", name].micro == float(score(add(rows)))
        assert found["overall", name].micro == found["overall", name].macro == found["slice", name].micro


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"groups\['site'\] has shape \(3,\), the sums \(4,\)"):
        score_table(SUMS, {"patient": GROUPS["patient"], "site": [1, 2, 3]})
    with pytest.raises(ValueError, match=r"groups\['slice'\]: this level exists already"):
        score_table(SUMS, {"slice": [1, 2, 3, 4]})
    with pytest.raises(ValueError, match="empty='none'"):
        score_table(SUMS, {}, empty="none")
