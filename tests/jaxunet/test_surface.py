"""Surface scores equal their definitions and MONAI's, and a missed lesion always counts."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from jaxunet.surface import (
    SurfaceScores,
    average_surface_distance,
    boundary_iou_score,
    hausdorff_distance,
    summarise_surfaces,
    surface,
    surface_dice_score,
    surface_distances,
    surface_scores,
)
from tests.oracles import surface as oracle

FOLDER = Path(__file__).parents[1] / "goldens"
sys.path.insert(0, str(FOLDER))
import surface_rules  # noqa: E402

CASES = surface_rules.cases()
DISTANCES = ("hausdorff", "hd95", "assd")
SHAPES = [(6, 9), (11, 5), (3, 5, 4)]
EMPTY, LESION = np.zeros((6, 8), bool), np.pad(np.ones((2, 3), bool), ((2, 2), (1, 4)))
DIAGONAL = 10.0  # of 6x8 pixels


def scores(prediction, mask, **options) -> dict[str, float]:
    """The numbers of `surface_scores` by name."""
    found = surface_scores(prediction, mask, **({"tolerance": 1.0} | options))._asdict()
    del found["outcome"]
    return found


def square(size: int, top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


@st.composite
def pairs(draw) -> tuple[np.ndarray, np.ndarray]:
    """A prediction and a mask, not empty: of any density, full, or a single pixel; alike, the same, or unrelated."""
    shape = draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def one() -> np.ndarray:
        mask = rng.random(shape) < draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
        mask[tuple(rng.integers(0, shape))] = True
        return mask

    mask = one()
    alike = mask | (rng.random(shape) < draw(st.sampled_from([0.0, 0.1])))
    prediction = alike if draw(st.booleans()) else one()
    return (prediction, mask) if draw(st.booleans()) else (mask, prediction)


spacings = st.sampled_from([(1.0, 1.0, 1.0), (0.5, 2.0, 1.25), (3.0, 0.7, 0.9)])


@given(pairs(), spacings, st.sampled_from([0.0, 0.95, 1.05, 2.3]))
@settings(max_examples=150)
def test_scores_of_distances_equal_their_definitions(pair, spacing, tolerance):
    spacing = spacing[: pair[0].ndim]
    found = scores(*pair, spacing=spacing, tolerance=tolerance)
    for name, expected in oracle.scores(*pair, spacing, tolerance).items():
        assert found[name] == pytest.approx(expected, rel=1e-12, abs=0), name


@given(pairs(), spacings, st.sampled_from([1.0, 1.3, 2.3, 40.0]))
@settings(max_examples=60)
def test_boundary_iou_equals_its_definition(pair, spacing, factor):
    spacing = spacing[: pair[0].ndim]
    width = factor * min(spacing) + 1e-6  # beside the distances that occur, as the definition rounds them otherwise
    found = boundary_iou_score(*pair, width=width, spacing=spacing)
    assert found == oracle.boundary_iou(*pair, width, spacing)


@given(pairs())
@settings(max_examples=60)
def test_the_surface_is_what_an_erosion_takes_away(pair):
    for mask in pair:
        expected = np.zeros_like(mask)
        expected[tuple(np.array(oracle.surface(mask)).T)] = True
        np.testing.assert_array_equal(surface(mask), expected)


@given(pairs(), st.integers(1, 4))
@settings(max_examples=100)
def test_on_a_chessboard_boundary_iou_is_that_of_erosions_by_squares(pair, width):
    """As its authors compute it: pixels that `width` erosions by a square take away, with nothing around the image."""
    block = np.ones((3,) * pair[0].ndim)
    bands = [mask & ~ndimage.binary_erosion(mask, block, iterations=width) for mask in pair]
    expected = np.sum(bands[0] & bands[1]) / np.sum(bands[0] | bands[1])
    assert boundary_iou_score(*pair, width=width, norm="chessboard") == expected


@given(pairs(), spacings)
@settings(max_examples=60)
def test_prediction_and_mask_may_change_places(pair, spacing):
    spacing = spacing[: pair[0].ndim]
    expected = scores(*pair, spacing=spacing)
    assert scores(*pair[::-1], spacing=spacing) == pytest.approx(expected, rel=1e-14)
    one, other = surface_distances(*pair), surface_distances(*pair[::-1])
    np.testing.assert_array_equal(one.to_mask, other.to_prediction)
    np.testing.assert_array_equal(one.to_prediction, other.to_mask)


@given(pairs(), st.sampled_from([0.1, 0.3, 2.0, 7.0]))
@settings(max_examples=60)
def test_distances_are_in_units_of_the_spacing_and_shares_have_none(pair, unit):
    pixels, scaled = scores(*pair, tolerance=3), scores(*pair, tolerance=3 * unit, spacing=unit)
    for name in pixels:
        factor = unit if name in DISTANCES else 1
        assert scaled[name] == pytest.approx(factor * pixels[name], rel=1e-12), name


@given(pairs(), st.permutations([0, 1, 2]), st.lists(st.booleans(), min_size=3, max_size=3), st.integers(1, 5))
@settings(max_examples=60)
def test_turning_mirroring_and_moving_both_change_nothing(pair, order, flips, border):
    # With a border around, since the image's edge is an outline that does not move along.
    images = [np.pad(image, border) for image in pair]
    expected = scores(*images, width=2)
    order = [axis for axis in order if axis < images[0].ndim]
    turned = [np.transpose(image, order) for image in images]
    flipped = [np.flip(image, [axis for axis in range(image.ndim) if flips[axis]]) for image in turned]
    assert scores(*flipped, width=2) == pytest.approx(expected, rel=1e-14)
    moved = [np.roll(image, (border, -border), (0, 1)) for image in images]
    assert scores(*moved, width=2) == pytest.approx(expected, rel=1e-14)


def test_two_pixels_are_as_far_apart_as_their_centres():
    prediction, mask = square(9, 1, 2, 1), square(9, 4, 6, 1)
    assert scores(prediction, mask) == {"hausdorff": 5, "hd95": 5, "assd": 5, "surface_dice": 0, "boundary_iou": 0}
    distances = surface_distances(prediction, mask)
    assert surface_dice_score(distances, tolerance=4.999) == 0
    assert surface_dice_score(distances, tolerance=5) == 1
    assert hausdorff_distance(surface_distances(prediction, mask, spacing=(5, 2))) == 17  # 15 down, 8 to the right


def test_a_shifted_square():
    """Side 8, shifted by 3: of 28 surface pixels, the two sides that run along the shift overlap in 5 pixels each."""
    prediction, mask = square(20, 4, 4, 8), square(20, 4, 7, 8)
    found = scores(prediction, mask, tolerance=0)
    assert found["hausdorff"] == found["hd95"] == 3
    # 10 pixels shared; 1 and 2 off on both ends of the long sides; the far side 3 off; the inner side, 3 from its own
    # kind, is 1, 2 or 3 from the sides of the other square.
    expected = [0] * 10 + [1, 1, 2, 2] + [3] * 8 + [1, 1, 2, 2] + [3] * 2
    np.testing.assert_array_equal(np.sort(surface_distances(prediction, mask).to_mask), np.sort(expected))
    assert found["assd"] == pytest.approx(np.mean(expected), rel=1e-14)
    assert found["surface_dice"] == 10 / 28
    assert boundary_iou_score(prediction, mask, width=100) == 40 / 88  # bands that fill the squares: the Jaccard index


@pytest.mark.parametrize(("inner", "outer"), [(1, 2), (2, 7), (3, 10)])
def test_concentric_squares(inner, outer):
    """Half sides a < b: from within all are b - a; from outside so are 2a + 1 a side, and the corners are farther."""
    size, gap = 2 * outer + 5, outer - inner
    prediction, mask = (square(size, size // 2 - half, size // 2 - half, 2 * half + 1) for half in (inner, outer))
    from_outside = [math.hypot(gap, max(0, abs(t) - inner)) for t in range(-outer, outer) for _ in range(4)]
    found = scores(prediction, mask, tolerance=gap, width=1)
    assert found["hausdorff"] == pytest.approx(gap * math.sqrt(2), rel=1e-14)
    assert found["assd"] == pytest.approx((8 * inner * gap + sum(from_outside)) / (8 * inner + 8 * outer), rel=1e-12)
    assert found["surface_dice"] == (8 * inner + 4 * (2 * inner + 1)) / (8 * inner + 8 * outer)
    assert found["boundary_iou"] == 0
    assert boundary_iou_score(prediction, mask, width=2 * outer) == (2 * inner + 1) ** 2 / (2 * outer + 1) ** 2


def test_hd95_ignores_stray_pixels_in_the_direction_that_has_them():
    mask = square(64, 10, 10, 20)
    prediction = mask.copy()
    prediction[60, 60] = True  # one of 77 surface pixels
    distances = surface_distances(prediction, mask)
    assert hausdorff_distance(distances) == math.hypot(31, 31)
    assert hausdorff_distance(distances, percentile=95) == 0


def test_hd95_is_the_larger_of_two_percentiles_not_one_of_both_together():
    mask = square(64, 2, 2, 1)
    prediction = mask | square(64, 2, 30, 20)  # 77 pixels far from a mask of one pixel, which lies on the prediction
    distances = surface_distances(mask, prediction)
    assert distances.to_mask.tolist() == [0]
    assert hausdorff_distance(distances, percentile=95) == np.percentile(distances.to_prediction, 95) > 40
    together = np.percentile(np.concatenate([distances.to_mask, distances.to_prediction]), 95)
    assert hausdorff_distance(distances, percentile=95) > together


def test_percentiles_run_from_the_smallest_to_the_largest_distance():
    distances = surface_distances(square(20, 4, 4, 8), square(20, 4, 7, 8))
    values = [hausdorff_distance(distances, percentile=p) for p in (0, 10, 50, 90, 95, 99, 100)]
    assert values == sorted(values)
    assert (values[0], values[-1]) == (0, 3)  # 0 is the minimum: MONAI takes `percentile=0` for none, the maximum


def test_a_distance_of_exactly_the_tolerance_is_within_it_whatever_the_rounding():
    prediction, mask = square(9, 4, 1, 1), square(9, 4, 4, 1)
    assert 3 * 0.1 > 0.3
    assert surface_dice_score(surface_distances(prediction, mask, spacing=0.1), tolerance=0.3) == 1
    assert surface_dice_score(surface_distances(prediction, mask, spacing=0.1), tolerance=0.2999) == 0
    wide = square(30, 5, 5, 20)
    for pixels, width, unit in ((3, 0.3, 0.1), (3, 3 * 0.7, 0.7), (7, 0.7, 0.1)):
        expected = boundary_iou_score(wide, np.roll(wide, 1, 0), width=pixels)
        assert boundary_iou_score(wide, np.roll(wide, 1, 0), width=width, spacing=unit) == expected


def test_the_width_of_the_bands_is_two_percent_of_the_diagonal_and_at_least_a_pixel():
    wide, moved = square(256, 60, 60, 90), square(256, 66, 63, 90)
    assert boundary_iou_score(wide, moved) == boundary_iou_score(wide, moved, width=7)  # 7.24 rounded
    assert boundary_iou_score(wide, moved) != boundary_iou_score(wide, moved, width=6)
    assert boundary_iou_score(wide, moved, spacing=0.3) == boundary_iou_score(wide, moved)
    small, shifted = square(20, 5, 5, 8), square(20, 6, 5, 8)
    assert boundary_iou_score(small, shifted) == boundary_iou_score(small, shifted, width=1) < 1
    volume = np.pad(np.ones((4, 6, 6), bool), 2)
    case = {"prediction": np.roll(volume, 1, 1), "mask": volume, "spacing": (3, 1, 1)}
    assert boundary_iou_score(**case) == boundary_iou_score(**case, width=1) < 1


def test_the_edge_of_the_image_is_an_outline():
    full = np.ones((5, 6), bool)
    assert surface(full).sum() == 2 * (5 + 6) - 4
    assert scores(full, full) == {"hausdorff": 0, "hd95": 0, "assd": 0, "surface_dice": 1, "boundary_iou": 1}
    hole = full.copy()
    hole[2, 2] = False
    assert hausdorff_distance(surface_distances(hole, full)) == 2  # pixels around the hole, from the edge


TABLE = {
    "empty": (EMPTY, EMPTY, (0, 1), (math.nan, math.nan)),
    "false": (LESION, EMPTY, (DIAGONAL, 0), (math.nan, math.nan)),
    "missed": (EMPTY, LESION, (DIAGONAL, 0), (DIAGONAL, 0)),
    "both": (LESION, LESION, (0, 1), (0, 1)),
}


@pytest.mark.parametrize("outcome", TABLE)
def test_empty_masks_and_predictions_score_as_the_table_says(outcome):
    prediction, mask, perfect, skip = TABLE[outcome]
    for empty, (far, share) in (("perfect", perfect), ("skip", skip)):
        found = surface_scores(prediction, mask, tolerance=1, empty=empty)
        expected = SurfaceScores(far, far, far, share, share, outcome)
        np.testing.assert_equal(found._asdict(), expected._asdict())


@pytest.mark.parametrize(("spacing", "diagonal"), [(None, 10), (0.5, 5), ((4, 3), math.hypot(24, 24))])
def test_the_distance_of_a_missed_lesion_is_the_diagonal_in_units_of_the_spacing(spacing, diagonal):
    for prediction, mask in ((EMPTY, LESION), (LESION, EMPTY)):
        assert [scores(prediction, mask, spacing=spacing)[name] for name in DISTANCES] == [diagonal] * 3


@pytest.mark.parametrize("missed", [0.0, 374.0, math.inf])
def test_the_distance_of_a_missed_lesion_is_an_option(missed):
    for prediction, mask in ((EMPTY, LESION), (LESION, EMPTY)):
        found = scores(prediction, mask, missed=missed)
        assert found == {**dict.fromkeys(DISTANCES, missed), "surface_dice": 0, "boundary_iou": 0}
    assert scores(LESION, LESION, missed=missed)["hausdorff"] == 0
    assert scores(EMPTY, EMPTY, missed=missed)["hausdorff"] == 0


def test_missing_a_lesion_is_worse_than_the_worst_hit():
    corner, opposite = square(6, 0, 0, 1), square(6, 5, 5, 1)
    hit, miss = scores(corner, opposite), scores(EMPTY[:, :6], opposite)
    assert all(hit[name] < miss[name] for name in DISTANCES)


def test_a_summary_counts_what_was_missed_and_keeps_it_in_the_mean():
    pairs = [(LESION, LESION), (np.roll(LESION, 1, 0), LESION), (EMPTY, LESION), (LESION, EMPTY), (EMPTY, EMPTY)]
    perfect = summarise_surfaces([surface_scores(*pair, tolerance=1) for pair in pairs])
    assert (perfect.scored, perfect.missed, perfect.false, perfect.empty) == (5, 1, 1, 1)
    assert perfect.mean["hausdorff"] == pytest.approx((0 + 1 + 10 + 10 + 0) / 5)
    assert perfect.median["hausdorff"] == 1
    assert perfect.mean["surface_dice"] == pytest.approx((1 + 1 + 0 + 0 + 1) / 5)
    assert list(perfect.mean) == [*DISTANCES, "surface_dice", "boundary_iou"]
    skip = summarise_surfaces([surface_scores(*pair, tolerance=1, empty="skip") for pair in pairs])
    assert (skip.scored, skip.missed, skip.false, skip.empty) == (3, 1, 1, 1)
    assert skip.mean["hausdorff"] == pytest.approx((0 + 1 + 10) / 3)
    nothing = summarise_surfaces([surface_scores(EMPTY, EMPTY, tolerance=1, empty="skip")])
    assert (nothing.scored, nothing.empty) == (0, 1)
    assert all(math.isnan(value) for value in (*nothing.mean.values(), *nothing.median.values()))
    assert summarise_surfaces([]).scored == 0


def test_arrays_of_numbers_are_taken_and_not_changed():
    prediction, mask = np.roll(LESION, 1, 1).astype(np.uint8), LESION.astype(np.float32)
    before = prediction.copy(), mask.copy()
    assert scores(prediction, mask) == scores(prediction.astype(bool), LESION)
    np.testing.assert_array_equal(prediction, before[0])
    np.testing.assert_array_equal(mask, before[1])


# ------------------------------------------------------------------------------------------------------- MONAI


@pytest.fixture(scope="module")
def monai() -> dict:
    return json.loads((FOLDER / "monai_surface.json").read_text(encoding="utf-8"))


def test_goldens_are_of_these_cases_and_name_what_made_them(monai):
    assert monai["checksum"] == surface_rules.checksum()
    assert set(monai["scores"]) == set(CASES)
    assert set(monai["versions"]) == {"python", "monai", "torch", "scipy", "numpy"}


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"missed", "false", "empty"}))
def test_scores_are_those_of_monai(monai, name):
    case = CASES[name]
    found = scores(case.prediction, case.mask, spacing=case.spacing, tolerance=case.tolerance)
    for score, value in monai["scores"][name].items():
        assert found[score] == pytest.approx(value, rel=1e-6), score


@pytest.mark.parametrize("name", ["missed", "false", "empty"])
def test_where_one_is_empty_monai_has_no_number_that_a_mean_could_keep(monai, name):
    case = CASES[name]
    found = scores(case.prediction, case.mask)
    assert all(math.isfinite(value) for value in found.values())
    assert not any(math.isfinite(monai["scores"][name][score]) for score in DISTANCES)
    # Its HD95 of a missed lesion is NaN, which its means leave out: as good as never having seen the case.
    assert math.isnan(monai["scores"][name]["hd95"])


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: surface(np.zeros(4)), r"mask \(4,\): expected a slice \[H, W\] or a volume"),
        (lambda: surface(np.zeros((2, 3, 4, 5))), "expected a slice"),
        (lambda: surface(np.zeros((0, 4))), "expected a slice"),
        (lambda: surface(np.full((4, 4), 0.7)), "threshold it first"),
        (lambda: surface(np.full((4, 4), np.nan)), "threshold it first"),
        (lambda: surface(np.full((4, 4), 255, np.uint8)), "values other than 0 and 1"),
        (
            lambda: surface_distances(EMPTY, LESION[1:]),
            r"prediction \(6, 8\) and mask \(5, 8\) must have the same shape",
        ),
        (lambda: surface_distances(EMPTY, LESION, spacing=(1, 2, 3)), "one for each of 2 axes"),
        (lambda: surface_distances(EMPTY, LESION, spacing=0), "expected one positive number"),
        (lambda: boundary_iou_score(EMPTY, LESION[1:]), "must have the same shape"),
        (
            lambda: boundary_iou_score(LESION, LESION, width=0.5),
            "width=0.5; expected at least the smallest spacing, 1.0",
        ),
        (lambda: boundary_iou_score(LESION, LESION, width=math.nan), "width=nan"),
        (lambda: boundary_iou_score(LESION, LESION, norm="chessboard", spacing=2), "chessboard.* without a spacing"),
        (lambda: boundary_iou_score(LESION, LESION, norm="taxicab"), "norm='taxicab'"),
        (lambda: boundary_iou_score(LESION, LESION, empty="one"), "empty='one'"),
        (lambda: scores(LESION, LESION, empty="one"), 'empty=\'one\'; expected "perfect" or "skip"'),
        (lambda: scores(LESION, LESION, tolerance=-1), "tolerance=-1; expected a finite number"),
        (lambda: scores(LESION, LESION, tolerance=math.inf), "tolerance=inf"),
        (lambda: scores(LESION, LESION, missed=math.nan), "missed=nan; expected a distance"),
        (lambda: scores(LESION, LESION, missed=-1), "missed=-1"),
        (lambda: hausdorff_distance(surface_distances(LESION, LESION), percentile=101), "percentile=101; expected"),
        (lambda: average_surface_distance(surface_distances(LESION, LESION), empty="no"), "empty='no'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
