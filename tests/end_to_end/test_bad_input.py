"""Every bad input of a training: one message that says which, an exit code, and every file as it was before."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data_pipeline.console import run_program
from experiments import config as cfg
from experiments import train, workflow
from experiments.cli import parse
from tests.helpers.trees import encode, image_pixels, mask_pixels, write_kaggle, write_pictures

KAGGLE = ["--data.root=kaggle_3m"]
FOLDERS = ["--data.train_images=train/image", "--data.train_masks=train/mask", "--data.split=slice"]
WORDS = ["--config=bce", "--data.slices=all", "--train.batch_size=8", "--train.epochs=1", "--run_dir=run"]
WORDS += ["--model.image_width=16", "--model.image_height=16", "--model.num_layers=2", "--model.base_filters=2"]
SLICE = "TCGA_DU_0003_20000103_2"


@pytest.fixture(autouse=True)
def place(tmp_path, tmp_path_factory, monkeypatch):
    """A working directory with a good tree and good folders; the cache lies elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    write_kaggle(tmp_path / "kaggle_3m")
    names = [f"p_{number}.png" for number in range(20)]
    write_pictures(tmp_path / "train" / "image", {name: image_pixels(i) for i, name in enumerate(names)})
    write_pictures(tmp_path / "train" / "mask", {name: mask_pixels(i) for i, name in enumerate(names)})
    (tmp_path / "empty").mkdir()
    return tmp_path


def files():
    return {path: path.read_bytes() for path in Path.cwd().rglob("*") if path.is_file()}


def image():
    return next(Path("kaggle_3m").rglob(f"{SLICE}.tif"))


def mask():
    return next(Path("kaggle_3m").rglob(f"{SLICE}_mask.tif"))


def cut():
    image().write_bytes(image().read_bytes()[:-1])


def two_pages():
    page = Image.fromarray(image_pixels(0))
    page.save(image(), "TIFF", save_all=True, append_images=[page])


def without_tumour():
    for path in Path("kaggle_3m").rglob("*_mask.tif"):
        path.write_bytes(encode(mask_pixels(0, empty=True)))


def another_run():
    Path("run").mkdir()
    config = parse([*WORDS, *KAGGLE, "--train.learning_rate=0.5"])
    Path("run", "config.json").write_text(cfg.to_json(config))


def another_format():
    Path("run").mkdir()
    Path("run", "config.json").write_text('{"format": 2}')


def something_else():
    Path("run").mkdir()
    Path("run", "thesis.txt").write_text("mine")


def write(path, data):
    return lambda: Path(path()).write_bytes(data)


def nothing():
    pass


SIZE = r"image of 16x16 but mask of 8x16 pixels \(height x width\): "
# What is done to the files, the words, the exit code and what the message must say.
CASES = {
    "missing folder": (nothing, ["--data.root=gone"], 1, r"no such file or folder: '.*/gone' \(data\.root\)$"),
    "missing mask folder": (lambda: shutil.move("train/mask", "m"), FOLDERS, 1, r"no such folder: .*/train/mask$"),
    "file for a folder": (
        nothing,
        ["--data.root=kaggle_3m/data.csv"],
        1,
        r"not a data set: .*/data\.csv .a file.; expected .* zip",
    ),
    "empty folder": (
        nothing,
        ["--data.root=empty"],
        1,
        r"not a data set: .*/empty .holds nothing.; expected .*TCGA_<site>",
    ),
    "empty image folder": (
        nothing,
        ["--data.train_images=empty", "--data.train_masks=train/mask"],
        1,
        r"no pictures \(\.png, .*\) in .*/empty$",
    ),
    "image without mask": (lambda: mask().unlink(), KAGGLE, 1, rf"1 image has no mask: {SLICE} \(in .*/kaggle_3m\)$"),
    "mask without image": (lambda: image().unlink(), KAGGLE, 1, rf"1 mask has no image: {SLICE} "),
    "picture without mask": (lambda: Path("train/mask/p_7.png").unlink(), FOLDERS, 1, r"1 image has no mask: p_7 "),
    "damaged TIFF": (cut, KAGGLE, 1, rf"truncated: \d+ of \d+ bytes: .*/{SLICE}\.tif$"),
    "no TIFF": (write(image, b"<!DOCTYPE html>"), KAGGLE, 1, rf"not a TIFF \(starts with '<!DO'\): .*/{SLICE}\.tif$"),
    "16-bit TIFF": (
        write(image, encode(np.full((16, 16), 300, np.uint16))),
        KAGGLE,
        1,
        rf"expected 8-bit RGB, got mode=I;16 bits=16: .*/{SLICE}\.tif$",
    ),
    "16-bit mask": (
        write(mask, encode(np.full((16, 16), 65535, np.uint16))),
        KAGGLE,
        1,
        rf"expected an 8-bit grey mask, got mode=I;16 bits=16: .*/{SLICE}_mask\.tif$",
    ),
    "multi-page TIFF": (two_pages, KAGGLE, 1, rf"2 pages, expected one image: .*/{SLICE}\.tif$"),
    "grey mask": (
        write(mask, encode(image_pixels(0, channels=1))),
        KAGGLE,
        1,
        rf"mask has \d+ distinct values, expected 0 and 255: .*/{SLICE}_mask\.tif; set data\.mask_threshold",
    ),
    "sizes that differ": (write(mask, encode(mask_pixels(0, (8, 16)))), KAGGLE, 1, rf"{SIZE}.*/{SLICE}\.tif$"),
    "another size, kaggle": (
        nothing,
        [*KAGGLE, "--model.image_width=32"],
        1,
        r"image of 16x16, expected 16x32 pixels .*\.tif; set model\.image_height .* or data\.resize",
    ),
    "another size, folders": (
        nothing,
        [*FOLDERS, "--data.resize=False", "--model.image_height=8"],
        1,
        r"image of 16x16, expected 8x16 pixels .*/p_0\.png; set model\.image_height .* or data\.resize",
    ),
    "no tumour": (without_tumour, KAGGLE, 1, r"0 of \d+ training masks contain tumour .*0 of all 26 do"),
    "too few slices": (nothing, [*KAGGLE, "--train.batch_size=24"], 1, r"\d+ samples < global batch 24: "),
    "unknown key": (nothing, ["--train.learnig_rate=1"], 2, r"unknown key --train\.learnig_rate; .*learning_rate\?$"),
    "unknown preset": (
        nothing,
        ["--config=dise"],
        2,
        r"--config=dise: unknown preset; .* dice\?\nknown are bce, dice,",
    ),
    "unknown loss": (
        nothing,
        ["--train.loss=dise"],
        2,
        r"train\.loss='dise': unknown loss; did you mean dice\?; known are bce, ",
    ),
    "loss of nowhere": (nothing, ["--train.loss=no.where:f"], 2, r"train\.loss='no\.where:f' cannot be imported"),
    "option of no loss": (nothing, [*KAGGLE, "--train.loss_options.alpha=1"], 2, r"bce has no option alpha; it has "),
    "ranges": (
        nothing,
        ["--train.epochs=0", "--train.learning_rate=nan", "--data.mask_threshold=300"],
        2,
        r"3 problems:\n  data\.mask_threshold=300: must .*\n  train\.learning_rate=nan: must .*\n  train\.epochs=0: ",
    ),
    "size that does not halve six times": (
        nothing,
        ["--model.num_layers=6", "--model.image_width=96", "--model.image_height=64"],
        2,
        r"model\.image_width=96 does not halve 6 times \(multiple of 64\); nearest 128$",
    ),
    "batch that does not divide": (
        nothing,
        [*KAGGLE, "--train.batch_size=12"],
        2,
        r"train\.batch_size=12 does not divide among 8 devices; use 8 or 16$",
    ),
    "run of another configuration": (
        another_run,
        KAGGLE,
        2,
        r"run holds the run of another configuration:\n  train\.learning_rate: 0\.5 in the run, 0\.001 asked\ngive",
    ),
    "run of another format": (another_format, KAGGLE, 2, r"run/config\.json has format 2, this version reads format 1"),
    "directory in use": (something_else, KAGGLE, 2, r"run_dir=run holds 1 files but no config\.json \(thesis\.txt"),
}


def fails(words, code, message, capsys):
    assert run_program(train.main, [*WORDS, *words]) == code
    _, error = capsys.readouterr()
    assert error.startswith("error: ") and "Traceback" not in error
    assert re.search(message, error.removeprefix("error: ").rstrip("\n")), error


@pytest.mark.parametrize("case", CASES)
def test_it_is_one_message_an_exit_code_and_no_file_changed(case, capsys):
    damage, words, code, message = CASES[case]
    damage()
    before = files()
    fails(words, code, message, capsys)
    assert files() == before


def test_a_value_of_another_type_is_one_message_and_changes_no_file(capsys):
    before = files()
    with pytest.raises(SystemExit) as stop:
        run_program(train.main, [*WORDS, "--train.epochs=many"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in error
    assert "Error parsing --train.epochs" in error and "'many'" in error and "--help" in error
    assert files() == before


def test_batches_of_the_evaluation_are_looked_at_before_hours_of_training(capsys):
    before = files()
    assert run_program(workflow.main, [*WORDS, *KAGGLE, "--eval.batch_size=12"]) == 2
    assert "eval.batch_size=12 does not divide among 8 devices; use 8 or 16" in capsys.readouterr().err
    assert files() == before


def test_a_disk_too_full_for_the_data_is_said_before_any_is_written(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    before = files()
    fails(KAGGLE, 1, r"preparing 26 slices needs up to \S+ GB in .*, where 0\.00 GB are free", capsys)
    assert files() == before


def test_a_disk_too_full_for_the_checkpoints_is_said_before_the_first_step(monkeypatch, capsys):
    monkeypatch.setattr("experiments.training.free_megabytes", lambda path: 0.01)
    before = files()
    for _ in range(2):  # what the first start leaves is no obstacle to a second
        fails(
            KAGGLE, 4, r"run: the checkpoints need \d+\.\d MB, 0\.0 MB are free; make room or name a --run_dir", capsys
        )
    after = files()
    assert before.items() <= after.items()
    left = {str(path.relative_to(Path.cwd())) for path in after.keys() - before.keys()}
    assert left == {"run/config.json", "run/manifest.json", "run/run.lock"}


def test_results_of_another_run_are_not_written_over(monkeypatch, capsys):
    monkeypatch.setattr("experiments.training.free_megabytes", lambda path: 0.01)  # stops it before it trains
    words = [*KAGGLE, "--train.eval_dir=results"]
    fails(words, 4, "checkpoints need", capsys)
    Path("results/train_losses.csv").write_text("of the first run")
    message = rf"^{Path.cwd()}/results holds the results of {Path.cwd()}/run; name another --train\.eval_dir"
    fails([*words, "--run_dir=second"], 2, message, capsys)
    fails(words, 4, "checkpoints need", capsys)
    assert Path("results/train_losses.csv").read_text() == "of the first run"
