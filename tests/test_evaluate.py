"""Each figure of an evaluation is what its name says, on sums small enough to check by hand."""

import csv
import io
import types

import numpy as np
import pytest

from experiments.config import METRIC_NAMES
from experiments.evaluate import Evaluation, batch_means, group_scores, patient_table, print_table, summarise
from experiments.progress import TRACKED
from jaxunet.metrics import PixelSums

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
ENTRIES = [types.SimpleNamespace(patient=p, site="S1") for p in ("a", "a", "b", "b")]


@pytest.fixture
def result():
    return summarise(Evaluation(0.25, SUMS, 2), ENTRIES, whole_volumes=True)


def test_pixel_dice_pools_all_pixels(result):
    assert result["pixels"]["dice"] == pytest.approx(2 * 8 / (2 * 8 + 7 + 12))


def test_slice_dice_counts_an_empty_slice_that_is_left_empty_as_one(result):
    assert result["slices"]["dice"]["mean"] == pytest.approx((0.8 + 0 + 1 + 0) / 4)
    assert result["slices"]["dice"]["defined"] == 4


def test_tumour_slices_leave_empty_masks_out(result):
    assert result["tumour_images"] == 2
    assert result["tumour_slices"]["dice"]["mean"] == pytest.approx(0.4)


def test_volume_dice_pools_the_pixels_of_a_patient(result):
    assert result["patients"]["count"] == 2
    assert result["patients"]["dice"]["mean"] == pytest.approx((16 / 30 + 0) / 2)


def test_undefined_sensitivity_is_left_out_and_counted(result):
    assert result["slices"]["sensitivity"]["mean"] == pytest.approx(0.4)
    assert result["slices"]["sensitivity"]["defined"] == 2


def test_single_slices_give_no_volume_figure():
    assert "patients" not in summarise(Evaluation(0.25, SUMS, 2), ENTRIES, whole_volumes=False)


def test_documented_dice_is_a_mean_over_batches_and_depends_on_their_size():
    by_two = ((2 * 8 + 1) / (20 + 11 + 1) + 1 / (5.5 + 1)) / 2
    assert batch_means(SUMS, 2)["dice_coef"] == pytest.approx(by_two)
    assert batch_means(SUMS, 4)["dice_coef"] == pytest.approx((2 * 8 + 1) / (20 + 16.5 + 1))
    assert batch_means(SUMS, 3)["dice_coef"] == pytest.approx(((2 * 8 + 1) / (20 + 11.5 + 1) + 1 / 6) / 2)


def test_predicting_nothing_is_scored_beside_it(result):
    assert result["nothing"]["accuracy"] == pytest.approx(380 / 400)
    assert result["nothing"]["slice_dice"] == pytest.approx(0.5)


def printed(capsys, *, batch_size=32, threshold=0.5, whole_volumes=True):
    result = {
        "dataset": {"title": "SYNTHETIC"},
        "split": {"by": "patient", "part": "test"},
        "threshold": threshold,
        "loss_name": "bce",
        **summarise(Evaluation(0.25, SUMS, batch_size), ENTRIES, whole_volumes=whole_volumes),
        "flair_threshold": {"threshold": 80, "pixel_dice": 0.25},
    }
    print_table(result)
    return capsys.readouterr().out


def test_only_the_mean_as_published_is_called_documented(capsys):
    assert "batches of 32 (documented)" in printed(capsys)
    assert "(documented)" not in printed(capsys, batch_size=2)
    assert "(documented)" not in printed(capsys, threshold=0.4)


def test_a_mean_says_what_it_leaves_out(capsys):
    out = printed(capsys)
    assert "undefined, so left out of the mean: sensitivity in 2 of 4 slices, 1 of 2 patients\n" in out
    assert "undefined, so left out of the mean: precision in 2 of 4 slices, 1 of 2 tumour slices\n" in out
    assert "mean: dice" not in out and "mean: accuracy" not in out


def test_selected_slices_print_no_volume_figure(capsys):
    assert "mean of 2 patient volumes" in printed(capsys)
    out = printed(capsys, whole_volumes=False)
    assert "volumes" not in out and "no volume figure" in out


def test_a_score_that_nothing_defines_is_nan_with_a_count_of_zero():
    empty = PixelSums(*(values[2] for values in SUMS))
    scores = group_scores([empty])["sensitivity"]
    assert np.isnan(scores["mean"])
    assert scores["defined"] == 0


def test_patient_table_has_a_row_a_patient_with_its_counts():
    rows = list(csv.DictReader(io.StringIO(patient_table(Evaluation(0.25, SUMS, 2), ENTRIES))))
    assert [(r["patient"], r["slices"], r["tumour_slices"], r["tp"], r["fn"]) for r in rows] == [
        ("a", "2", "2", "8", "12"),
        ("b", "2", "0", "0", "0"),
    ]
    assert float(rows[0]["dice"]) == pytest.approx(16 / 30)


def test_every_column_that_can_be_asked_for_is_recorded():
    assert set(METRIC_NAMES) == {"loss", *TRACKED}
