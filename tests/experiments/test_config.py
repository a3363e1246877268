"""The configuration: presets, ranges, `config.json` and the identity of a run."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from experiments import config as cfg
from experiments.config import Config, ConfigError, TrainConfig
from experiments.limits import validate

# Of a documented default, one other value that makes another run.
OTHER = {
    "model.image_width": 128,
    "model.image_height": 128,
    "model.image_channels": 1,
    "model.num_classes": 2,
    "model.base_filters": 8,
    "model.num_layers": 5,
    "model.dropout_rate": 0.1,
    "model.dtype": "bfloat16",
    "data.split": "slice",
    "data.slices": "all",
    "data.test_sites": ("CS",),
    "data.split_seed": 1,
    "data.resize": True,
    "data.mask_threshold": 127,
    "data.phantom_patients": 12,
    "train.loss": "dice",
    "train.loss_options": {"smooth": 0.5},
    "train.augment": ("flip",),
    "train.learning_rate": 3e-4,
    "train.lr_rule": "sqrt",
    "train.warmup_epochs": 2.5,
    "train.batch_size": 8,
    "train.accumulate": 2,
    "train.patience": 5,
    "train.seed": 1,
    "train.metrics": ("jaccard", "val_jaccard"),
}
# And those that do not.
FREE = {
    "config": "demo",
    "run_dir": "elsewhere",
    "distributed": True,
    "compile_cache": "off",
    "out": "weights.npz",
    "model.remat": True,
    "model.show_summary": True,
    "data.root": "kaggle_3m",
    "data.train_images": "train/image",
    "data.train_masks": "train/mask",
    "data.test_images": "test/image",
    "data.test_masks": "test/mask",
    "data.cache_dir": "cache",
    "data.cache": "device",
    "data.threads": 4,
    "train.shard_optimizer": True,
    "train.epochs": 5,
    "train.eval_dir": "eval",
    "train.save_minutes": 1.0,
    "eval.split": "val",
    "eval.batch_size": 4,
    "eval.threshold": 0.3,
    "eval.empty": "skip",
    "eval.lesion_iou": 0.5,
    "eval.tolerance": 2.0,
    "eval.spacing": (5.0, 1.0, 1.0),
    "infer.images": "images",
    "infer.masks": "masks",
    "infer.output_dir": "out",
    "infer.merged_dir": "merged",
    "infer.batch_size": 1,
    "infer.blur": 1.0,
    "infer.binarize": False,
    "infer.threshold": 0.3,
    "infer.overwrite": True,
}


def changed(key, value):
    return cfg.override(Config(), {key: value})


def test_the_default_is_the_documented_bce_experiment():
    c = Config()
    assert (c.model.image_width, c.model.image_height, c.model.image_channels) == (256, 256, 3)
    assert (c.model.num_classes, c.model.base_filters, c.model.num_layers, c.model.dropout_rate) == (1, 16, 6, 0.08)
    assert (c.train.learning_rate, c.train.epochs, c.train.batch_size, c.train.patience) == (1e-3, 100, 4, 10)
    assert (c.train.loss, c.train.metrics) == ("bce", ("accuracy", "val_accuracy"))
    assert (c.data.split, c.data.slices, c.eval.batch_size) == ("patient", "tumour", 32)
    assert cfg.PRESETS["bce"] == c


def test_dice_differs_from_bce_in_loss_and_columns_alone():
    bce, dice = cfg.flatten(cfg.PRESETS["bce"]), cfg.flatten(cfg.PRESETS["dice"])
    assert {key: dice[key] for key in dice if dice[key] != bce[key]} == {
        "config": "dice",
        "train.loss": "hybrid",
        "train.metrics": ("dice_coef", "val_dice_coef"),
    }


@pytest.mark.parametrize("name", cfg.PRESETS)
def test_every_preset_is_valid_and_says_its_name(name):
    assert validate(cfg.PRESETS[name]).config == name


def test_known_columns_are_the_documented_metrics_of_the_library():
    from jaxunet import metrics

    assert all(callable(getattr(metrics, name)) for name in cfg.METRIC_NAMES if name != "loss")


def test_every_option_has_a_description_below_it():
    source = Path(cfg.__file__).read_text()
    for key in cfg.options():
        leaf = key.rpartition(".")[2]
        assert re.search(rf'^    {leaf}: .*\n    """\w', source, re.MULTILINE) or "." not in key, key
    for section in ("model", "data", "train", "eval", "infer"):
        assert type(getattr(Config(), section)).__doc__


def test_configurations_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.epochs = 3


# --- config.json


def everything_changed():
    return cfg.override(Config(), {**FREE, **OTHER})


def test_the_tables_of_this_file_hold_every_key():
    assert {*FREE, *OTHER} == set(cfg.options())


@pytest.mark.parametrize("config", [Config(), cfg.PRESETS["demo"], everything_changed()], ids=["bce", "demo", "other"])
def test_json_gives_back_what_it_was_made_of(config):
    again = cfg.from_json(cfg.to_json(config))
    assert again == dataclasses.replace(config, distributed=False, out=None)  # these belong to one start
    assert [type(v) for k, v in cfg.flatten(again).items() if k != "out"] == [
        type(v) for k, v in cfg.flatten(config).items() if k != "out"
    ]


def test_tuples_of_loss_options_survive_json():
    config = Config(train=TrainConfig(loss="hybrid", loss_options={"weights": (0.5, 0.25, 0.25)}))
    assert cfg.from_json(cfg.to_json(config)) == config


def test_a_key_that_an_older_version_did_not_know_takes_its_default():
    content = json.loads(cfg.to_json(Config()))
    del content["infer"], content["train"]["patience"]
    assert cfg.from_json(json.dumps(content)) == Config()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": 2}, "format 2"),
        ({"format": None}, "no format number"),
        ({"format": True}, "no format number"),
        (
            {"train": {"learnig_rate": 1}, "modle": {}},
            r"2 problems:\n  unknown key train.learnig_rate\n  unknown key modle",
        ),
        ({"train": {"epochs": "5"}}, "train.epochs='5': expected a whole number"),
        ({"train": {"epochs": 5.0}}, "train.epochs=5.0: expected a whole number"),
        ({"train": {"metrics": ["loss"]}}, "train.metrics=.*expected two names"),
        ({"train": {"loss_options": {"a": 2**64}}}, "expected a whole number of fewer than 20 digits"),
        ({"train": {"epochs": 2**64}}, "expected a whole number of fewer than 20 digits"),
        ({"train": {"loss_options": {"a": [[1]]}}}, "expected a number, True, False, text, or a tuple of these"),
        ({"train": {"loss_options": [1]}}, "train.loss_options=.*expected options by name"),
        ({"train": 3}, "unknown key train"),
        ({"model": {"dtype": "float16"}}, "expected one of float32, bfloat16"),
        ({"run_dir": "a\0b"}, "zero byte"),
        ({"train": {"learning_rate": True}}, "train.learning_rate=True: expected a number"),
        ({"train": {"learning_rate": None}}, "expected a number"),
    ],
)
def test_a_configuration_file_with_something_else_in_it_is_refused(change, expected):
    with pytest.raises(ConfigError, match=expected):
        cfg.from_json(json.dumps({"format": 1, **change}))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "[" * 100_000, '{"format": 1', "\x00"])
def test_a_damaged_configuration_file_is_refused_by_name(text):
    with pytest.raises(ConfigError, match=r"^runs/a/config\.json "):
        cfg.from_json(text, name="runs/a/config.json")


def test_a_run_is_read_from_where_it_lies_now(tmp_path):
    (tmp_path / "config.json").write_text(cfg.to_json(Config(run_dir="where/it/was", train=TrainConfig(epochs=3))))
    assert cfg.read_run(tmp_path) == Config(run_dir=str(tmp_path), train=TrainConfig(epochs=3))


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no run in .*config\.json does not exist; train first"):
        cfg.read_run(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        cfg.read_run(tmp_path)
