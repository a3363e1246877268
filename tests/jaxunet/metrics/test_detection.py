"""Lesions are connected as said and found as said; false alarms are counted where there is no tumour."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunet.metrics import (
    LesionCounts,
    PixelSums,
    false_positive_slices,
    lesion_counts,
    lesion_precision_score,
    lesion_sensitivity_score,
)

NEIGHBOURS = {4: (2, 1), 8: (2, 2), 6: (3, 1), 18: (3, 2), 26: (3, 3)}


def components(mask: np.ndarray, connectivity: int) -> list[set[tuple[int, ...]]]:
    """By flooding, neighbour by neighbour: an offset belongs if it moves along at most so many axes."""
    dimensions, axes = NEIGHBOURS[connectivity]
    offsets = [o for o in itertools.product((-1, 0, 1), repeat=dimensions) if 0 < np.count_nonzero(o) <= axes]
    assert len(offsets) == connectivity
    left, found = set(map(tuple, np.argwhere(mask).tolist())), []
    while left:
        lesion, todo = set(), [left.pop()]
        while todo:
            pixel = todo.pop()
            lesion.add(pixel)
            near = {tuple(p + d for p, d in zip(pixel, o, strict=True)) for o in offsets} & left
            left -= near
            todo += near
        found.append(lesion)
    return found


def oracle(prediction: np.ndarray, mask: np.ndarray, connectivity: int, iou: float | None) -> LesionCounts:
    predicted, actual = components(prediction, connectivity), components(mask, connectivity)
    if iou is None:
        found = sum(any(a & p for p in predicted) for a in actual)
        return LesionCounts(len(actual), found, len(predicted), sum(any(a & p for a in actual) for p in predicted))
    fewer, more = sorted((actual, predicted), key=len)
    fits = [[len(a & b) / len(a | b) >= iou for b in more] for a in fewer]
    pairings = itertools.permutations(range(len(more)), len(fewer))
    best = max(sum(row[j] for row, j in zip(fits, pairing, strict=True)) for pairing in pairings)
    return LesionCounts(len(actual), best, len(predicted), best)


@pytest.mark.parametrize("connectivity", NEIGHBOURS)
@pytest.mark.parametrize("iou", [None, 0.1, 0.5, 1.0])
def test_lesions_equal_those_found_by_flooding_and_by_trying_every_pairing(connectivity, iou):
    rng = np.random.default_rng(connectivity)
    shape = (7, 8) if connectivity in (4, 8) else (3, 4, 5)
    compared = 0
    for _ in range(40):
        mask = rng.random(shape) < rng.choice([0.1, 0.2, 0.4])
        prediction = np.where(rng.random(shape) < 0.7, mask, rng.random(shape) < 0.2)
        if max(len(components(m, connectivity)) for m in (mask, prediction)) > 7:
            continue  # too many ways to pair
        compared += 1
        expected = oracle(prediction, mask, connectivity, iou)
        assert lesion_counts(prediction, mask, connectivity=connectivity, iou=iou) == expected
    assert compared >= 10


def test_connectivity_decides_how_many_lesions_there_are():
    diagonal = np.eye(3, dtype=bool)
    assert [lesion_counts(diagonal, diagonal, connectivity=c).actual for c in (4, 8, None)] == [3, 1, 1]
    cube = np.zeros((2, 2, 2), bool)
    cube[0, 0, 0] = cube[1, 1, 1] = True  # they touch at a corner
    assert [lesion_counts(cube, cube, connectivity=c).actual for c in (6, 18, 26, None)] == [2, 2, 1, 1]
    cube[1, 1, 1], cube[0, 1, 1] = False, True  # and now along an edge
    assert [lesion_counts(cube, cube, connectivity=c).actual for c in (6, 18, 26)] == [2, 1, 1]


def test_a_prediction_over_two_lesions_finds_both_by_overlap_and_one_by_intersection_over_union():
    mask = np.zeros((5, 12), bool)
    mask[1:4, 1:4] = mask[1:4, 6:11] = True  # 9 and 15 pixels
    prediction = np.zeros_like(mask)
    prediction[1:4, 1:11] = True  # 30 pixels
    assert lesion_counts(prediction, mask) == LesionCounts(2, 2, 1, 1)
    assert lesion_counts(prediction, mask, iou=0.5) == LesionCounts(2, 1, 1, 1)
    assert lesion_counts(prediction, mask, iou=0.51) == LesionCounts(2, 0, 1, 0)


def test_intersection_over_union_at_the_threshold_is_found():
    mask, prediction = np.ones((1, 10), bool), np.arange(10).reshape(1, 10) < 3  # 3 of 10
    assert lesion_counts(prediction, mask, iou=0.3).found == 1
    assert lesion_counts(prediction, mask, iou=math.nextafter(0.3, 1)).found == 0


def test_pairs_are_one_to_one_and_as_many_as_can_be():
    mask, prediction = np.zeros((4, 9), bool), np.zeros((4, 9), bool)
    mask[1, 0:3] = mask[1, 4:8] = True
    prediction[1, 2:6] = True  # touches both
    prediction[1, 7] = True  # touches the second only
    # greedily, the large one might take the second lesion and leave the small one without a partner
    assert lesion_counts(prediction, mask, iou=0.01) == LesionCounts(2, 2, 2, 2)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), iou=st.sampled_from([None, 0.2, 0.5]))
def test_turning_the_picture_changes_nothing_and_swapping_the_masks_swaps_the_two_scores(seed, iou):
    rng = np.random.default_rng(seed)
    mask, prediction = rng.random((2, 9, 11)) < 0.25
    counts = lesion_counts(prediction, mask, iou=iou)
    for turn in (np.flipud, np.fliplr, np.transpose):
        assert lesion_counts(turn(prediction), turn(mask), iou=iou) == counts
    swapped = lesion_counts(mask, prediction, iou=iou)
    assert swapped == LesionCounts(counts.predicted, counts.right, counts.actual, counts.found)
    padded = lesion_counts(np.pad(prediction, 2), np.pad(mask, 2), iou=iou)
    assert padded == counts


@pytest.mark.parametrize(
    ("prediction", "mask", "expected"),
    [
        (0, 0, (math.nan, math.nan)),
        (1, 0, (math.nan, 0)),
        (0, 1, (0, math.nan)),
        (1, 1, (1, 1)),
    ],
)
@pytest.mark.parametrize("iou", [None, 0.5])
def test_undefined_is_nan_never_zero_or_one(prediction, mask, expected, iou):
    counts = lesion_counts(np.full((4, 4), prediction), np.full((4, 4), mask), iou=iou)
    found = float(lesion_sensitivity_score(counts)), float(lesion_precision_score(counts))
    assert found == pytest.approx(expected, nan_ok=True)


def test_scores_of_added_counts_are_ratios_of_sums():
    rows = [LesionCounts(3, 1, 2, 2), LesionCounts(0, 0, 4, 0), LesionCounts(2, 2, 1, 1)]
    total = LesionCounts(*map(sum, zip(*rows, strict=True)))
    assert (float(lesion_sensitivity_score(total)), float(lesion_precision_score(total))) == (3 / 5, 3 / 7)
    columns = LesionCounts(*map(np.array, zip(*rows, strict=True)))
    np.testing.assert_array_equal(lesion_sensitivity_score(columns), [1 / 3, np.nan, 1])


def test_what_is_no_slice_or_volume_and_other_connectivities_are_refused():
    square, cube = np.zeros((3, 3)), np.zeros((3, 3, 3))
    with pytest.raises(ValueError, match=r"\(3, 3\) and mask \(3, 3, 3\): expected the same shape"):
        lesion_counts(square, cube)
    with pytest.raises(ValueError, match="expected the same shape"):
        lesion_counts(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match=r"connectivity=26 in 2 dimensions; expected one of \[4, 8\]"):
        lesion_counts(square, square, connectivity=26)
    for iou in (0, -1, 1.1, math.nan):
        with pytest.raises(ValueError, match="iou="):
            lesion_counts(square, square, iou=iou)


def test_false_positive_slices_are_those_without_tumour_where_a_pixel_is_predicted():
    zero = np.zeros(7)
    sums = PixelSums(
        tp=np.array([3, 0, 0, 0, 0, 2, 0]),
        fp=np.array([4, 0, 1, 9, 0, 0, 0]),
        fn=np.array([0, 5, 0, 0, 0, 0, 0]),
        tn=np.array([3, 5, 9, 1, 10, 8, 0]),  # the last row is padding
        overlap=zero,
        predicted=zero,
        actual=zero,
    )
    found = false_positive_slices(sums, ["b", "b", "b", "a", "a", "c", "a"])
    assert found.patients.tolist() == ["a", "b", "c"]
    assert found.empty.tolist() == [2, 1, 0]
    assert found.false.tolist() == [1, 1, 0]
