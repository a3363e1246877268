"""Each figure of an evaluation is what its name says, on sums small enough to check by hand; so is what is printed."""

import csv
import io
import types

import numpy as np
import pytest

from experiments.config import METRIC_NAMES
from experiments.evaluation_tables import (
    COUNTED_SCORES,
    REFERENCE_SCORES,
    Evaluation,
    batch_means,
    lesion_figures,
    patient_table,
    print_evaluation,
    probability_figures,
    summarise_evaluation,
    surface_figures,
)
from experiments.training import TRACKED
from jaxunet.metrics import Histogram, LesionCounts, PixelSums
from jaxunet.surface import SurfaceScores
from tests.helpers.squares import ENTRIES as SQUARES
from tests.helpers.squares import evaluated, figures

SUMS = PixelSums(
    tp=np.array([8, 0, 0, 0]),
    fp=np.array([2, 0, 0, 5]),
    fn=np.array([2, 10, 0, 0]),
    tn=np.array([88, 90, 100, 95]),
    overlap=np.array([7.5, 0.5, 0.0, 0.0]),
    predicted=np.array([10.0, 1.0, 0.5, 5.0]),
    actual=np.array([10.0, 10.0, 0.0, 0.0]),
)


ENTRIES = [types.SimpleNamespace(patient=p, site=s) for p, s in zip("aabb", ("S2", "S2", "S1", "S1"), strict=True)]


EVALUATION = Evaluation(0.25, SUMS, 2)


@pytest.fixture
def result():
    return summarise_evaluation(EVALUATION, ENTRIES, whole_volumes=True)


def test_pixel_dice_pools_all_pixels(result):
    assert result["pixels"]["dice"] == pytest.approx(2 * 8 / (2 * 8 + 7 + 12))


def test_slice_dice_counts_an_empty_slice_that_is_left_empty_as_one(result):
    assert result["slices"]["dice"]["macro"] == pytest.approx((0.8 + 0 + 1 + 0) / 4)
    assert (result["slices"]["dice"]["groups"], result["slices"]["dice"]["undefined"]) == (4, 0)


def test_tumour_slices_leave_empty_masks_out(result):
    assert result["tumour_images"] == 2
    assert result["tumour_slices"]["dice"]["macro"] == pytest.approx(0.4)
    assert result["tumour_slices"]["dice"]["micro"] == pytest.approx(16 / 30)


def test_volume_dice_pools_the_pixels_of_a_patient(result):
    assert result["patients"]["count"] == 2
    assert result["patients"]["dice"]["macro"] == pytest.approx((16 / 30 + 0) / 2)


def test_sites_are_groups_too_and_each_has_its_own_figures(result):
    assert result["sites"]["dice"]["macro"] == pytest.approx((16 / 30 + 0) / 2)
    assert list(result["by_site"]) == ["S1", "S2"]
    first, second = result["by_site"].values()
    assert (second["patients"], second["slices"], second["tumour_slices"]) == (1, 2, 2)
    assert second["pixels"]["dice"] == second["patient_means"]["dice"] == pytest.approx(16 / 30)
    assert np.isnan(first["pixels"]["sensitivity"])
    assert first["false_positive_slices"] == {"empty": 2, "false": 1, "per_patient": 1.0}
    nameless = [types.SimpleNamespace(patient=e.patient, site="") for e in ENTRIES]
    assert not {"sites", "by_site"} & summarise_evaluation(EVALUATION, nameless, whole_volumes=True).keys()


def test_undefined_sensitivity_is_left_out_and_counted(result):
    assert result["slices"]["sensitivity"]["macro"] == pytest.approx(0.4)
    assert result["slices"]["sensitivity"]["undefined"] == 2


def test_skipped_slices_are_in_no_mean(result):
    skip = summarise_evaluation(EVALUATION, ENTRIES, whole_volumes=True, empty="skip")
    assert skip["slices"]["dice"]["macro"] == result["tumour_slices"]["dice"]["macro"]
    assert (skip["slices"]["dice"]["undefined"], skip["patients"]["dice"]["undefined"]) == (2, 1)
    assert skip["nothing"]["slice_dice"] == 0
    assert (skip["empty"], result["empty"]) == ("skip", "perfect")


def test_false_positive_slices_are_counted_and_divided_among_all_patients(result):
    assert result["false_positive_slices"] == {"empty": 2, "false": 1, "per_patient": 0.5}


def test_single_slices_give_no_volume_figure():
    single = summarise_evaluation(EVALUATION, ENTRIES, whole_volumes=False)
    assert "patients" not in single
    assert all("patient_means" not in site for site in single["by_site"].values())


def test_the_dice_of_the_reference_is_a_mean_over_batches_and_depends_on_their_size():
    by_two = ((2 * 8 + 1) / (20 + 11 + 1) + 1 / (5.5 + 1)) / 2
    assert batch_means(SUMS, 2)["dice_coef"] == pytest.approx(by_two)
    assert batch_means(SUMS, 4)["dice_coef"] == pytest.approx((2 * 8 + 1) / (20 + 16.5 + 1))
    assert batch_means(SUMS, 3)["dice_coef"] == pytest.approx(((2 * 8 + 1) / (20 + 11.5 + 1) + 1 / 6) / 2)


def test_predicting_nothing_is_scored_next_to_it(result):
    assert result["nothing"]["accuracy"] == pytest.approx(380 / 400)
    assert result["nothing"]["slice_dice"] == pytest.approx(0.5)


def test_a_score_that_nothing_defines_is_nan_with_its_count():
    empty = PixelSums(*(values[2:3] for values in SUMS))
    scores = summarise_evaluation(Evaluation(0.5, empty, 1), ENTRIES[2:3], whole_volumes=True)["slices"]["sensitivity"]
    assert np.isnan(scores["macro"])
    assert np.isnan(scores["micro"])
    assert scores["undefined"] == 1


def test_patient_table_has_one_row_per_patient_with_its_counts_and_what_its_volume_gives():
    volumes = {"b": {"lesions_actual": 0, "hd95": 1.5}, "a": {"lesions_actual": 2, "hd95": 2.5}}
    rows = list(csv.DictReader(io.StringIO(patient_table(EVALUATION, ENTRIES, volumes=volumes))))
    columns = ("patient", "site", "slices", "tumour_slices", "false_positive_slices", "tp", "fn", "hd95")
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("a", "S2", "2", "2", "0", "8", "12", "2.5"),
        ("b", "S1", "2", "0", "1", "0", "0", "1.5"),
    ]
    assert float(rows[0]["dice"]) == pytest.approx(16 / 30)
    assert set(COUNTED_SCORES) < rows[0].keys()
    skip = list(csv.DictReader(io.StringIO(patient_table(EVALUATION, ENTRIES, empty="skip"))))
    assert (rows[1]["dice"], skip[1]["dice"]) == ("0.0", "nan")


def test_lesions_are_pooled_and_averaged_over_the_patients_that_have_some():
    slices = [LesionCounts(2, 1, 3, 1), LesionCounts(0, 0, 1, 0), LesionCounts(1, 1, 1, 1)]
    volumes = {
        "a": {"lesions_actual": 1, "lesions_found": 1, "lesions_predicted": 2, "lesions_right": 1, "hd95": 3.0},
        "b": {"lesions_actual": 0, "lesions_found": 0, "lesions_predicted": 2, "lesions_right": 0, "hd95": 0.0},
    }
    figures = lesion_figures(slices, volumes, iou=None)
    assert figures["criterion"] == "any overlap"
    assert figures["slices"]["sensitivity"] == {"micro": 2 / 3, "macro": 0.75, "undefined": 1}
    assert figures["slices"]["precision"]["micro"] == 2 / 5
    assert figures["volumes"]["precision"] == {"micro": 1 / 4, "macro": 0.25, "undefined": 0}
    assert (figures["volumes"]["actual"], figures["volumes"]["predicted"]) == (1, 4)
    alone = lesion_figures(slices, {}, iou=0.25)
    assert "volumes" not in alone
    assert alone["criterion"] == "intersection over union of at least 0.25, one to one"


def test_outlines_are_averaged_over_slices_those_with_tumour_and_volumes():
    cases = [
        SurfaceScores(4.0, 3.0, 1.0, 0.5, 0.25, "both"),
        SurfaceScores(9.0, 9.0, 9.0, 0.0, 0.0, "missed"),
        SurfaceScores(9.0, 9.0, 9.0, 0.0, 0.0, "false"),
        SurfaceScores(0.0, 0.0, 0.0, 1.0, 1.0, "empty"),
    ]
    volumes = {"a": {"lesions_actual": 1, **cases[0]._asdict()}}
    figures = surface_figures(cases, volumes, tolerance=2.0, spacing=(5.0, 1.0, 1.0))
    assert (figures["tolerance"], figures["spacing"]) == (2.0, [5.0, 1.0, 1.0])
    assert figures["slices"]["mean"]["hd95"] == 21 / 4
    assert figures["tumour_slices"]["mean"]["hd95"] == 6
    assert figures["tumour_slices"]["median"]["surface_dice"] == 0.25
    assert [figures["slices"][name] for name in ("scored", "missed", "false", "empty")] == [4, 1, 1, 1]
    assert figures["volumes"]["mean"]["boundary_iou"] == 0.25
    alone = surface_figures(cases, {})
    assert "volumes" not in alone
    assert alone["spacing"] is None


def test_probability_figures_are_those_of_the_histogram():
    figures = probability_figures(Histogram(np.array([0, 1, 0, 3]), np.array([6, 0, 2, 0])))
    assert figures["bins_of_the_logit"] == 4
    assert figures["auroc"] == (6 + 3 * 8) / (4 * 8)
    assert figures["auroc_bounds"] == [figures["auroc"]] * 2  # no ties
    assert figures["average_precision"] == pytest.approx((3 * 1 + 4 / 6) / 4)
    assert sum(figures["reliability"]["pixels"]) == 12
    assert figures["brier"] > 0


def test_every_column_that_can_be_asked_for_is_recorded():
    assert set(METRIC_NAMES) == {"loss", *TRACKED}
    assert set(REFERENCE_SCORES) < set(METRIC_NAMES)


def printed(capsys, *, empty="perfect", whole_volumes=True, **changes) -> tuple[dict, str]:
    evaluation, seen = evaluated(1, 5)
    result = figures(evaluation, seen) | {
        "dataset": {"title": "Squares"},
        "split": {"by": "patient", "part": "test"},
        "threshold": 0.5,
        "loss_name": "bce",
        "flair_threshold": {"threshold": 3, "pixel_dice": 0.25},
    }
    result |= summarise_evaluation(evaluation, SQUARES, whole_volumes=whole_volumes, empty=empty)
    if not whole_volumes:
        del result["patients"]
    print_evaluation(result | changes)
    return result, capsys.readouterr().out


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize("empty", ["perfect", "skip"])
def test_the_table_names_what_each_column_averages_over(capsys, empty):
    result, text = printed(capsys, empty=empty)
    for words in (
        "Squares: test part of the patient split",
        "batches of 5",
        "mean of 18 slices",
        "mean of 6 tumour slices",
        "mean of 3 patient volumes",
        "false-positive slices per patient",
        "26 neighbours, any overlap",
        "outlines of volumes (pixels): HD95 mean",
        "AUROC",
        "predicting nothing",
    ):
        assert words in text
    assert ("left out of every mean" in text) == (empty == "skip")
    (line,) = (line for line in text.splitlines() if line.strip().startswith("dice "))
    assert [f"{result[level]['dice']['macro']:.4f}" for level in ("slices", "tumour_slices")] == line.split()[2:4]
    assert [line.split()[:3] for line in text.splitlines() if line.strip()[:2] in ("S1", "S2")] == [
        ["S1", "2", "12"],
        ["S2", "1", "6"],
    ]


def test_only_the_mean_as_published_is_called_that_of_the_reference(capsys):
    of_32 = {"batches": {"batch_size": 32, "dice_coef": 0.5}}
    assert "batches of 32 (reference)" in printed(capsys, **of_32)[1]
    assert "(reference)" not in printed(capsys)[1]
    assert "(reference)" not in printed(capsys, **of_32, threshold=0.4)[1]


def test_a_mean_says_what_it_leaves_out(capsys):
    _, text = printed(capsys)
    assert "undefined, so left out of the mean: sensitivity in 12 of 18 slices\n" in text
    assert "mean: dice" not in text
    assert "mean: accuracy" not in text
    assert "mean: dice in 12 of 18 slices\n" in printed(capsys, empty="skip")[1]


def test_selected_slices_print_no_volume_figure(capsys):
    _, text = printed(capsys, whole_volumes=False)
    assert "patient volumes" not in text
    assert "no scores of volumes" in text
