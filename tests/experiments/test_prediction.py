"""Every image gets its pictures, in its own size; bad files are reported and nothing is written over."""

import csv
import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from data_pipeline.source import DataError
from experiments import prediction
from experiments.config import ConfigError, override
from experiments.plots import PREDICTION, TRUTH
from tests.helpers.red_network import SIZE, pixels, red, run_of, save


def go(run, **kwargs):
    out = io.StringIO()
    return prediction.predict_run(run, to=Console(file=out, width=160), **kwargs), out.getvalue()


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("extension", ["png", "tif", "tiff", "bmp", "jpg", "jpeg", "PNG"])
def test_an_image_becomes_three_pictures_of_its_own_size(tmp_path, extension):
    size = (24, 50)
    save(tmp_path / "in" / f"a.{extension}", red(size, (6, 15, 8, 30)))
    outcomes, text = go(run_of(tmp_path / "run", images=tmp_path / "in"))
    folder = tmp_path / "run" / "predictions" / "in"
    expected = ["a_mask.png", "a_overlay.png", "a_probability.png", "contact_sheet.png", "predictions.csv"]
    assert names(tmp_path / "run") == expected
    mask, probability, overlay = (pixels(folder / f"a_{kind}.png") for kind in ("mask", "probability", "overlay"))
    assert mask.shape == probability.shape == size and overlay.shape == (*size, 3)
    assert mask.dtype == probability.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 255}
    assert mask[10, 18] == 255 and mask[2, 2] == 0 and mask[20, 45] == 0
    assert probability[10, 18] > 250 and probability[20, 45] < 5
    assert (overlay == PREDICTION).all(-1).any()
    assert outcomes[0].tumour_pixels == (mask == 255).sum()
    assert "tumour predicted in" in text


def test_at_the_size_of_the_network_the_mask_is_exact(tmp_path):
    save(tmp_path / "in" / "a.png", red())
    go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "out"))
    np.testing.assert_array_equal(pixels(tmp_path / "out" / "a_mask.png"), red()[:, :, 0])


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (700, 5), (1024, 1024)])
def test_odd_sizes_come_back_as_they_were(tmp_path, size):
    save(tmp_path / "a.png", np.full((*size, 3), 255, np.uint8))
    go(run_of(tmp_path / "run", images=tmp_path / "a.png", output_dir=tmp_path / "out"))
    for kind in ("mask", "probability", "overlay"):
        assert pixels(tmp_path / "out" / f"a_{kind}.png").shape[:2] == size
    assert (pixels(tmp_path / "out" / "a_mask.png") == 255).all()


def test_bad_files_are_reported_and_the_others_done(tmp_path):
    folder = tmp_path / "in"
    for k in range(8):
        save(folder / f"good{k}.png", red())
    (folder / "broken.png").write_bytes((folder / "good0.png").read_bytes()[:100])
    save(folder / "sixteen.png", np.full((8, 8), 300, np.uint16))
    run = run_of(tmp_path / "run", images=folder, output_dir=tmp_path / "out", batch_size=3)
    outcomes, text = go(run)
    assert [o.file.path.name for o in outcomes] == sorted(path.name for path in folder.iterdir())
    assert [o.file.output for o in outcomes if o.error] == ["broken", "sixteen"]
    assert [line.split() for line in text.splitlines() if line.split()[:1] in (["ok"], ["failed"])] == [
        ["ok", "8"],
        ["failed", "2"],
    ]
    with pytest.raises(DataError, match=r"8 ok, 2 failed:\n.*truncated.*broken\.png\n.*sixteen\.png"):
        prediction.raise_failures(outcomes)
    assert len(list((tmp_path / "out").glob("*_mask.png"))) == 8
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["file"] for row in rows if row["error"]] == ["broken.png", "sixteen.png"]
    assert {row["tumour_pixels"] for row in rows if not row["error"]} == {"90"}


def test_only_bad_files_are_no_crash(tmp_path):
    save(tmp_path / "in" / "a.png", np.full((8, 8), 300, np.uint16))
    outcomes, _ = go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "out"))
    assert names(tmp_path / "out") == ["predictions.csv"]
    assert outcomes[0].error


def test_an_output_that_is_not_finite_writes_no_picture_and_is_a_numeric_error(tmp_path):
    save(tmp_path / "in" / "a.png", red((40, 40)))
    outcomes, _ = go(run_of(tmp_path / "run", shift=np.nan, images=tmp_path / "in", output_dir=tmp_path / "out"))
    assert names(tmp_path / "out") == ["predictions.csv"]
    with pytest.raises(ArithmeticError, match="not finite") as error:
        prediction.raise_failures(outcomes)
    assert type(error.value).exit_code == 3


def test_nothing_is_written_over_unless_allowed(tmp_path):
    save(tmp_path / "in" / "a.png", red())
    out = tmp_path / "out"
    out.mkdir()
    (out / "a_mask.png").write_bytes(b"mine")
    (out / "other.txt").write_bytes(b"mine")
    run = run_of(tmp_path / "run", images=tmp_path / "in", output_dir=out)
    with pytest.raises(ConfigError, match=r"a_mask\.png exist already.*--infer\.overwrite"):
        go(run)
    assert names(out) == ["a_mask.png", "other.txt"]
    assert (out / "a_mask.png").read_bytes() == b"mine"
    go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=out, overwrite=True))
    assert pixels(out / "a_mask.png").any()
    assert (out / "other.txt").read_bytes() == b"mine"


@pytest.mark.parametrize("option", ["output_dir", "merged_dir"])
@pytest.mark.parametrize("place", ["in", "link", "masks"])
def test_the_output_never_goes_where_images_are_read(tmp_path, option, place):
    save(tmp_path / "in" / "a.png", red())
    save(tmp_path / "masks" / "a.png", red()[:, :, 0])
    (tmp_path / "link").symlink_to(tmp_path / "in")
    options = {"images": tmp_path / "in", "masks": tmp_path / "masks", option: tmp_path / place}
    with pytest.raises(ConfigError, match="where images are read"):
        go(run_of(tmp_path / "run", **options))
    assert names(tmp_path / "in") == ["a.png"]


def test_an_output_folder_that_is_a_file_is_refused(tmp_path):
    save(tmp_path / "in" / "a.png", red())
    (tmp_path / "out").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="which is a file"):
        go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "out"))


def test_overlays_go_to_their_own_folder_and_masks_can_be_left_out(tmp_path):
    save(tmp_path / "in" / "a.png", red())
    options = {"output_dir": tmp_path / "out", "merged_dir": tmp_path / "merged", "binarize": False}
    go(run_of(tmp_path / "run", images=tmp_path / "in", **options))
    assert names(tmp_path / "merged") == ["a_overlay.png"]
    assert names(tmp_path / "out") == ["a_probability.png", "contact_sheet.png", "predictions.csv"]


def test_the_threshold_is_one_of_probability_and_is_exceeded(tmp_path):
    image = np.zeros((*SIZE, 3), np.uint8)
    image[:, :16, 0], image[:, 16:, 0] = 128, 129  # probability 0.5 exactly, and above it
    save(tmp_path / "in" / "a.png", image)
    for threshold, columns in ((0.5, 16), (0.49, 32), (0.54, 0)):
        options = {"output_dir": tmp_path / str(threshold), "threshold": threshold}
        (outcome,), _ = go(run_of(tmp_path / "run", images=tmp_path / "in", **options))
        assert outcome.tumour_pixels == 16 * columns


def test_blur_smooths_probabilities_before_the_threshold(tmp_path):
    image = red(box=(8, 9, 16, 17))  # a single pixel
    save(tmp_path / "in" / "a.png", image)
    (sharp,), _ = go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "sharp"))
    (soft,), _ = go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "soft", blur=2.0))
    assert (sharp.tumour_pixels, soft.tumour_pixels) == (1, 0)
    assert 0.03 < soft.peak < 0.05  # 1 / (2 pi 2^2)
    save(tmp_path / "in" / "a.png", red())
    (soft,), _ = go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "large", blur=1.0))
    assert abs(soft.tumour_pixels - 90) <= 8  # a blurred mask does not grow by a rim


def test_every_class_has_pictures_of_its_own(tmp_path):
    save(tmp_path / "in" / "a.png", red())
    go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "out", classes=2))
    first, second = (pixels(tmp_path / "out" / f"a_mask_{k}.png") for k in (0, 1))
    np.testing.assert_array_equal(second, 255 - first)
    options = {"images": tmp_path / "in", "output_dir": tmp_path / "blurred", "classes": 2, "blur": 0.7}
    go(run_of(tmp_path / "run", **options))
    assert pixels(tmp_path / "blurred" / "a_probability_0.png")[7, 12] > 250  # classes are not blurred into each other


def test_a_contact_sheet_shows_24_of_many(tmp_path):
    for k in range(30):
        save(tmp_path / "in" / f"{k:02d}.png", red())
    outcomes, _ = go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "out"))
    assert len(outcomes) == 30
    assert sum(outcome.case is not None for outcome in outcomes) == prediction.SHEET_CASES
    assert outcomes[0].case is not None and outcomes[-1].case is not None
    assert (pixels(tmp_path / "out" / "contact_sheet.png")[:, :, :3] == PREDICTION).all(-1).any()


def test_processes_divide_the_files(tmp_path):
    for k in range(5):
        save(tmp_path / "in" / f"{k}.png", red())
    run = run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "out")
    parts = [[o.file.output for o in go(run, share=(rank, 2))[0]] for rank in (0, 1)]
    assert parts == [["0", "2", "4"], ["1", "3"]]
    assert {"contact_sheet.png", "contact_sheet_1.png", "predictions_1.csv"} <= set(names(tmp_path / "out"))


def test_a_process_without_a_file_of_its_own_predicts_none(tmp_path):
    save(tmp_path / "in" / "0.png", red())
    run = run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "out")
    assert go(run, share=(1, 2))[0] == []
    assert names(tmp_path / "out") == ["predictions_1.csv"]


def test_true_masks_are_drawn_and_scored(tmp_path):
    save(tmp_path / "in" / "a.png", red())
    save(tmp_path / "in" / "b.png", np.zeros_like(red()))
    save(tmp_path / "masks" / "a_mask.tif", red(box=(4, 10, 5, 12))[:, :, 0])
    save(tmp_path / "masks" / "b.png", np.zeros(SIZE, np.uint8))
    options = {"images": tmp_path / "in", "masks": tmp_path / "masks", "output_dir": tmp_path / "out"}
    (a, b), text = go(run_of(tmp_path / "run", **options))
    assert a.dice == pytest.approx(2 * 42 / (90 + 42))
    assert b.dice == 1  # both empty
    assert (pixels(tmp_path / "out" / "a_overlay.png") == TRUTH).all(-1).any()
    assert "mean Dice of 2 images with a mask" in text


def test_a_mask_of_another_size_fails_its_image_only(tmp_path):
    save(tmp_path / "in" / "a.png", red())
    save(tmp_path / "in" / "b.png", red())
    save(tmp_path / "masks" / "a.png", np.zeros((5, 5), np.uint8))
    save(tmp_path / "masks" / "b.png", np.zeros(SIZE, np.uint8))
    options = {"images": tmp_path / "in", "masks": tmp_path / "masks", "output_dir": tmp_path / "out"}
    (a, b), _ = go(run_of(tmp_path / "run", **options))
    assert "image of 16x32 but mask of 5x5" in a.error
    assert not b.error


def test_a_grey_mask_needs_a_threshold(tmp_path):
    save(tmp_path / "in" / "a.png", red())
    save(tmp_path / "masks" / "a.png", np.arange(512, dtype=np.uint8).reshape(SIZE))
    run = run_of(tmp_path / "run", images=tmp_path / "in", masks=tmp_path / "masks", output_dir=tmp_path / "out")
    assert "data.mask_threshold" in go(run)[0][0].error
    config = override(run.config, {"data.mask_threshold": 127, "infer.overwrite": True})
    assert not go(dataclasses.replace(run, config=config))[0][0].error


def test_a_broken_link_fails_alone(tmp_path):
    save(tmp_path / "in" / "a.png", red())
    (tmp_path / "in" / "b.png").symlink_to(tmp_path / "gone.png")
    outcomes, _ = go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "out"))
    assert [bool(outcome.error) for outcome in outcomes] == [False, True]


def test_files_of_one_name_have_pictures_of_their_own(tmp_path):
    save(tmp_path / "in" / "a.png", red())
    save(tmp_path / "in" / "a.tif", np.zeros_like(red()))
    go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "out"))
    assert pixels(tmp_path / "out" / "a_png_mask.png").any()
    assert not pixels(tmp_path / "out" / "a_tif_mask.png").any()


def test_a_conversion_is_noted(tmp_path):
    save(tmp_path / "in" / "c.png", np.full(SIZE, 7, np.uint8))
    _, text = go(run_of(tmp_path / "run", images=tmp_path / "in", output_dir=tmp_path / "out"))
    assert "note: 1 image grey: repeated in three channels" in text
