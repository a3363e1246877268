"""The documented .ini files: every key arrives, and nothing but literals does."""

import dataclasses
from pathlib import Path

import pytest

from experiments import config as cfg
from experiments.cli import parse
from experiments.config import Config, ConfigError, DataConfig, InferConfig, TrainConfig
from experiments.ini import INI_KEYS, read_ini
from experiments.run_directory import differences, run_directory

DATA = Path(__file__).parents[1] / "data"
CODE = "__import__('pathlib').Path('canary').touch()"

# Every documented key with a value that is not its default, and what becomes of it.
KEYS = [
    ("model", "image_width", "128", "model.image_width", 128),
    ("model", "image_height", "192", "model.image_height", 192),
    ("model", "image_channels", "1", "model.image_channels", 1),
    ("model", "num_classes", "2", "model.num_classes", 2),
    ("model", "base_filters", "8", "model.base_filters", 8),
    ("model", "num_layers", "5", "model.num_layers", 5),
    ("model", "dropout_rate", "0.1", "model.dropout_rate", 0.1),
    ("model", "learning_rate", "0.0003", "train.learning_rate", 0.0003),
    ("model", "dice_loss", "True", "train.loss", "hybrid"),
    ("model", "show_summary", "True", "model.show_summary", True),
    ("train", "epochs", "3", "train.epochs", 3),
    ("train", "batch_size", "8", "train.batch_size", 8),
    ("train", "patience", "5", "train.patience", 5),
    ("train", "metrics", "['jaccard', 'val_jaccard']", "train.metrics", ("jaccard", "val_jaccard")),
    ("train", "model_dir", "'models'", "run_dir", "models"),
    ("train", "eval_dir", "'eval'", "train.eval_dir", "eval"),
    ("train", "image_datapath", "'a/image'", "data.train_images", "a/image"),
    ("train", "mask_datapath", "'a/mask'", "data.train_masks", "a/mask"),
    ("eval", "image_datapath", "'b/image'", "data.test_images", "b/image"),
    ("eval", "mask_datapath", "'b/mask'", "data.test_masks", "b/mask"),
    ("infer", "images_dir", "'c'", "infer.images", "c"),
    ("infer", "output_dir", "'d'", "infer.output_dir", "d"),
    ("infer", "merged_dir", "'e'", "infer.merged_dir", "e"),
    ("mask", "blur", "2.5", "infer.blur", 2.5),
    ("mask", "binarize", "False", "infer.binarize", False),
    ("mask", "threshold", "80", "infer.threshold", 80 / 255),
]
IDS = [f"{section}.{key}" for section, key, *_ in KEYS]


@pytest.fixture
def ini(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text, name="my.ini"):
        Path(name).write_text(text, encoding="utf-8")
        return name

    return write


def refused(path):
    with pytest.raises(ConfigError) as caught:
        read_ini(path)
    return str(caught.value)


def test_the_documented_bce_file_is_the_preset_on_fixed_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = str(DATA / "bce.ini")
    folders = [str(tmp_path / "BrainTumor" / part / what) for part in ("train", "test") for what in ("image", "mask")]
    assert parse([f"--config={path}"]) == Config(
        config=path,
        run_dir="./bce/models",
        data=DataConfig(None, *folders, split="slice"),
        train=TrainConfig(eval_dir=str(tmp_path / "bce" / "eval")),
        infer=InferConfig(images="./BrainTumor/mini_test", output_dir="./bce/masks"),
    )


def test_the_documented_dice_file_is_the_hybrid_loss_with_masks_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = parse([f"--config={DATA / 'dice.ini'}"])
    assert (config.train.loss, config.train.metrics) == ("hybrid", ("dice_coef", "val_dice_coef"))
    assert config.model.show_summary
    assert (config.infer.merged_dir, config.infer.output_dir) == ("./dice/merged", "./dice/masks")
    assert (config.infer.blur, config.infer.binarize, config.infer.threshold) == (1.0, True, 80 / 255)
    assert differences(config, cfg.PRESETS["dice"]) == ["data.split: slice in the run, patient asked"]


def test_every_documented_key_is_known_and_tried_here():
    assert {(section, key): target for section, key, _, target, _ in KEYS} == INI_KEYS
    assert {target for *_, target, _ in KEYS} <= set(cfg.options())


@pytest.mark.parametrize(("section", "key", "text", "target", "value"), KEYS, ids=IDS)
def test_every_documented_key_has_its_effect(section, key, text, target, value, ini):
    assert value != cfg.flatten(Config())[target]
    assert read_ini(ini(f"[{section}]\n{key} = {text}\n")) == {"data.split": "slice", target: value}


@pytest.mark.parametrize(("section", "key"), [row[:2] for row in KEYS], ids=IDS)
@pytest.mark.parametrize(
    "text", [CODE, f"[{CODE}]", "{1: 2}", "", "(1, 2, 3)", "name", "lambda: 1", "1 +", "b'x'", "None."]
)
def test_every_documented_key_with_something_else_is_refused_and_nothing_runs(section, key, text, ini, tmp_path):
    path = ini(f"[{section}]\n{key} = {text}\n")
    assert refused(path).startswith(f"my.ini: [{section}] {key} = {text}: expected ")
    assert [p.name for p in tmp_path.iterdir()] == ["my.ini"]


@pytest.mark.parametrize(("section", "key"), [row[:2] for row in KEYS], ids=IDS)
def test_every_documented_key_misspelt_is_refused_with_the_nearest(section, key, ini):
    typo = key[:2] + key[3:]
    assert refused(ini(f"[{section}]\n{typo} = 1\n")) == (
        f"my.ini: unknown key [{section}] {typo}; did you mean {key}?"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [("True", 1.0), ("False", 0.0), ("3", 3.0), ("0.5", 0.5)],
)
def test_blur_is_a_switch_or_a_sigma(text, expected, ini):
    assert read_ini(ini(f"[mask]\nblur = {text}\n"))["infer.blur"] == expected


@pytest.mark.parametrize("text", ["0", "255", "-1", "True", "'80'", "1e999"])
def test_a_threshold_is_a_grey_value(text, ini):
    assert "expected a grey value above 0 and below 255" in refused(ini(f"[mask]\nthreshold = {text}\n"))


def test_keys_are_told_as_they_are_written(ini):
    assert refused(ini("[train]\nEpochs = 3\n")) == "my.ini: unknown key [train] Epochs; did you mean epochs?"


def test_unknown_sections_and_keys_and_bad_values_are_in_one_message(ini):
    text = refused(ini("[modle]\na = 1\n[train]\nepoch = 3\npatience = 'x'\n[DEFAULT]\nseed = 1\n"))
    assert text.startswith("my.ini: 4 problems:\n")
    assert "unknown section [modle]; did you mean model?" in text
    assert "unknown section [DEFAULT]" in text
    assert "unknown key [train] epoch; did you mean epochs?" in text
    assert "[train] patience = 'x': expected a whole number" in text


@pytest.mark.parametrize(
    "text", ["no section = 1", "[train]\nepochs\n", "[train]\nepochs=1\nepochs=2\n", "[train]\n[train]\n"]
)
def test_a_damaged_file_is_refused_by_name(text, ini):
    assert refused(ini(text)).startswith("--config=my.ini cannot be read: ")


def test_a_file_that_is_missing_or_no_text_is_refused(ini, tmp_path):
    with pytest.raises(ConfigError, match=r"--config=gone\.ini: the file does not exist"):
        parse(["--config=gone.ini"])
    Path("my.ini").write_bytes(b"\xff\xfe[\x00")
    assert "cannot be read" in refused("my.ini")
    with pytest.raises(ConfigError, match="cannot be read"):
        parse([f"--config={tmp_path}/"])


def test_percent_signs_comments_and_a_byte_order_mark_are_no_matter(ini):
    metrics = "metrics = ('loss',\n  'val_loss')"
    path = ini(f"\ufeff# first\n; second\n[train]\nepochs = 3  # a comment\nmodel_dir = 'a%(b)s'\n{metrics}\n")
    got = read_ini(path)
    assert (got["train.epochs"], got["run_dir"], got["train.metrics"]) == (3, "a%(b)s", ("loss", "val_loss"))


def test_a_windows_path_raises_no_warning(ini):
    assert read_ini(ini(r"[train]" + "\n" + r"model_dir = 'C:\data'"))["run_dir"] == r"C:\data"


def test_ranges_of_a_file_are_told_like_those_of_flags(ini):
    path = ini("[model]\nimage_width = 250\nlearning_rate = 0\n[train]\nepochs = 0\n")
    with pytest.raises(ConfigError, match="3 problems"):
        parse([f"--config={path}"])


def test_flags_win_over_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--train.epochs=1", "--model.base_filters=2", "--run_dir=there", "--train.loss=bce", "--infer.no-binarize"]
    config = parse([f"--config={DATA / 'dice.ini'}", *words])
    assert (config.train.epochs, config.model.base_filters, config.run_dir) == (1, 2, "there")
    assert (config.train.loss, config.infer.binarize) == ("bce", False)


def test_a_root_by_flag_replaces_the_folders_of_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = parse([f"--config={DATA / 'bce.ini'}", "--data.root=kaggle_3m"]).data
    assert data == DataConfig(root=str(tmp_path / "kaggle_3m"), split="slice")


def test_the_run_of_a_file_is_used_again_with_the_file_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [f"--config={DATA / 'dice.ini'}"]
    trained = parse(words)
    directory = run_directory(trained)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(cfg.to_json(trained))
    for program in ("evaluate", "predict", "summary"):
        assert parse(words, program=program) == dataclasses.replace(trained, run_dir=str(directory))


def test_a_file_changed_since_training_changes_prediction_but_not_the_network(ini):
    model, mask = "[train]\nmodel_dir = 'run'\n[model]\nbase_filters = {}\n", "[mask]\nthreshold = {}\n"
    path = ini(model.format(2) + mask.format(80))
    Path("run").mkdir()
    Path("run", "config.json").write_text(cfg.to_json(parse([f"--config={path}"])))
    ini(model.format(2) + mask.format(102) + "[infer]\nimages_dir = 'elsewhere'\n")
    infer = parse([f"--config={path}"], program="predict").infer
    assert (infer.threshold, infer.images) == (0.4, "elsewhere")
    assert parse([f"--config={path}", "--infer.threshold=0.5"], program="predict").infer.threshold == 0.5
    ini(model.format(4))
    with pytest.raises(ConfigError, match=r"model\.base_filters: 2 in the run, 4 asked"):
        parse([f"--config={path}"], program="predict")
