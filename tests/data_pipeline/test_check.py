"""The data check counts what is there, lists all that is wrong, and scores the threshold that a model must beat."""

import io
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from data_pipeline import SourceOptions, open_source
from data_pipeline.__main__ import main
from data_pipeline.check import Site, decode, facts, render, threshold_baseline
from data_pipeline.prepare import prepare
from data_pipeline.splits import split
from tests.helpers.trees import PATIENTS, encode, image_pixels, mask_pixels, write_kaggle, write_pictures

LONG = "TCGA_DU_0003_20000103"


@pytest.fixture
def tree(tmp_path):
    return write_kaggle(tmp_path / "kaggle_3m")


def check(root):
    return facts(decode(open_source(root)))


def text_of(renderable) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(renderable)
    return console.file.getvalue()


class Slices:
    """Slices in memory."""

    def __init__(self, images, masks):
        self.samples = [{"image": image, "mask": mask} for image, mask in zip(images, masks, strict=True)]

    def __getitem__(self, index):
        return self.samples[index]


def test_the_counts_are_those_of_the_tree(tree):
    found = check(tree)
    assert (found.patients, found.slices, found.positives) == (6, 26, 11)
    assert found.slices_per_patient == (2, 11)
    assert found.shapes == (((16, 16, 3), 26),)
    assert found.sites == (Site("CS", 2, 7, 3), Site("DU", 3, 17, 7), Site("EZ", 1, 2, 1))
    assert found.problems == () and found.duplicates == () and found.notes == ()
    assert found.baseline is None


def test_the_tumour_share_is_over_the_pixels_of_tumour_slices(tree):
    counts = {
        f"{patient}_{n}": int((mask_pixels(n + 100 * int(patient.split("_")[2])) > 0).sum())
        for patient, slices in PATIENTS.items()
        for n in range(2, slices + 1, 2)
    }
    found = check(tree)
    assert found.tumour_share == pytest.approx(sum(counts.values()) / (len(counts) * 256), abs=1e-12)
    assert found.smallest is not None and found.smallest[0] == min(counts.values()) == counts[found.smallest[1]]


def test_prepared_and_decoded_slices_give_the_same_summary(tree, tmp_path):
    prepared = prepare(open_source(tree, SourceOptions(size=(16, 16))), tmp_path / "cache", progress=False)
    decoded = decode(open_source(tree))
    assert facts(prepared) == facts(decoded)
    assert text_of(render(facts(prepared))) == text_of(render(facts(decoded)))


def test_the_summary_shows_figures_sites_and_notes(tree):
    (tree / ".DS_Store").write_text("")
    text = text_of(render(check(tree)))
    for part in (
        "kaggle_3m tree (real data)",
        "6, with 2 to 11 slices",
        "11 (42.3 %)",
        "16x16x3: 26",
        "note: 1 hidden",
    ):
        assert part in text
    assert [line.split()[1:8:2] for line in text.splitlines() if " DU " in line] == [["DU", "3", "17", "7"]]


def test_every_bad_file_is_listed_and_not_only_the_first(tree, tmp_path, capsys):
    bad = sorted(tree.rglob("*[0-9].tif"))[3:6]
    for path in bad:
        path.write_bytes(path.read_bytes()[:-1])
    found = check(tree)
    assert len([problem for problem in found.problems if "truncated" in problem]) == 3
    assert found.slices == 23
    assert main(["check", "--root", str(tree)]) == 1
    out = capsys.readouterr().out
    assert all(path.name in out for path in bad)


def test_no_more_than_ten_problems_are_printed(tree):
    for path in tree.rglob("*_mask.tif"):
        path.write_bytes(encode(image_pixels(0, channels=1)))
    text = text_of(render(check(tree)))
    assert text.count("problem:") == 11 and "problem: and 16 more" in text


def test_slices_of_another_size_are_a_problem_of_a_tree_and_not_of_folders(tree, tmp_path):
    for suffix, pixels in (("", image_pixels), ("_mask", mask_pixels)):
        (tree / LONG / f"{LONG}_1{suffix}.tif").write_bytes(encode(pixels(1, (8, 16))))
    assert check(tree).problems == (f"1 slices are not 16x16x3 as most: {LONG}_1 (8x16x3)",)
    for kind, pixels in (("image", image_pixels), ("mask", mask_pixels)):
        write_pictures(tmp_path / "pair" / kind, {"p_1.png": pixels(1), "p_4.png": pixels(2, (8, 16))})
    found = check(tmp_path / "pair")
    assert found.problems == () and found.shapes == (((16, 16, 3), 1), ((8, 16, 3), 1))


def test_a_gap_in_a_volume_is_a_problem_of_a_tree(tree):
    for number in (4, 5):
        for suffix in ("", "_mask"):
            (tree / LONG / f"{LONG}_{number}{suffix}.tif").unlink()
    assert check(tree).problems == (f"{LONG} lacks slices 4, 5 between its first and its last",)


def test_masks_without_any_tumour_are_a_problem(tmp_path):
    found = check(write_kaggle(tmp_path / "kaggle_3m", tumour_every=100))
    assert found.problems == ("0 of 26 masks contain tumour",)
    assert found.tumour_share == 0 and found.smallest is None


def test_copies_of_a_slice_are_found_and_blank_ones_do_not_count(tree):
    for number in (1, 3):
        (tree / LONG / f"{LONG}_{number}.tif").write_bytes(encode(np.zeros((16, 16, 3), np.uint8)))
    for suffix in ("", "_mask"):
        copy = (tree / LONG / f"{LONG}_2{suffix}.tif").read_bytes()
        (tree / "TCGA_EZ_0006_20000106" / f"TCGA_EZ_0006_20000106_2{suffix}.tif").write_bytes(copy)
    found = check(tree)
    assert found.duplicates == ((f"{LONG}_2", "TCGA_EZ_0006_20000106_2"),)
    text = text_of(render(check(tree)))
    assert f"same pixels: {LONG}_2 = TCGA_EZ_0006_20000106_2" in text


def test_the_baseline_is_the_best_of_all_thresholds():
    rng = np.random.default_rng(0)
    masks = (rng.random((6, 8, 8, 1)) < 0.3).astype(np.uint8)
    images = rng.integers(0, 256, (6, 8, 8, 3), np.uint8)
    images[..., 1] = np.clip(images[..., 1] // 2 + 90 * masks[..., 0], 0, 255)

    def dice(threshold, rows):
        predicted = images[rows][..., 1:2] > threshold
        return 2 * (predicted & (masks[rows] > 0)).sum() / (predicted.sum() + masks[rows].sum())

    train, test = [0, 2, 4], [1, 3]
    best = max(range(256), key=lambda threshold: dice(threshold, train))
    found, score = threshold_baseline(Slices(images, masks), train, test)
    assert found == best
    assert score == pytest.approx(dice(best, test), abs=1e-12)
    assert score != pytest.approx(dice(best, train), abs=1e-3), "it is scored on the test"


def test_the_baseline_separates_what_a_threshold_can():
    masks = np.zeros((2, 4, 4, 1), np.uint8)
    masks[:, 1:3, 1:3] = 1
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[..., 1] = 100 + 50 * masks[..., 0]
    assert threshold_baseline(Slices(images, masks), [0], [1]) == (100, 1.0)
    grey = Slices(images[..., 1:2], masks)
    assert threshold_baseline(grey, [0], [1]) == (100, 1.0), "of one channel, that one"
    images[..., 1] = 255
    assert threshold_baseline(Slices(images, masks), [0], [1]) == (0, 0.4), "everything is tumour: 2 * 4 / (16 + 4)"


def test_a_baseline_without_a_pixel_is_undefined():
    empty = Slices(np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 4, 4, 1), np.uint8))
    assert np.isnan(threshold_baseline(empty, [0], [0])[1])


def test_synthetic_slices_print_a_baseline_below_what_a_model_must_reach():
    source = open_source(None, SourceOptions(size=(48, 48), phantom_patients=6))
    decoded = decode(source)
    found = facts(decoded)
    parts = split(decoded.entries, by="patient", slices="all")
    assert found.baseline == threshold_baseline(decoded, parts.train, parts.test)
    assert 0 < found.baseline[1] < 0.6
    assert f"> {found.baseline[0]}: Dice {found.baseline[1]:.4f}" in text_of(render(found))


def test_the_command_prints_and_exits_with_0_when_nothing_is_wrong(tree, capsys):
    assert main(["check", f"--root={tree}"]) == 0
    assert "kaggle_3m tree (real data)" in capsys.readouterr().out


def test_a_place_that_cannot_be_opened_is_one_message(tmp_path, capsys):
    assert main(["check", f"--root={tmp_path / 'missing'}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: no such file or folder") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--phantom_patients=2", "2 synthetic patients: at least 3"),
        ("--mask_threshold=255", "mask_threshold=255: must be a grey value from 0 to 254"),
        ("--channels=1", "synthetic slices have 3 channels, not 1"),
    ],
)
def test_a_value_that_makes_no_sense_ends_with_2(capsys, word, message):
    assert main(["check", word]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_nothing_is_written(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = sorted(tmp_path.rglob("*"))
    main(["check", f"--root={tree}"])
    assert sorted(tmp_path.rglob("*")) == before


def test_the_program_runs_in_a_process(tree):
    command = [sys.executable, "-m", "data_pipeline", "check", "--root", str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "26" in done.stdout
