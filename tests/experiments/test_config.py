"""The configuration: presets, ranges, `config.json` and the identity of a run."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import config as cfg
from experiments import run_directory
from experiments.config import Config, ConfigError, DataConfig, EvalConfig, InferConfig, ModelConfig, TrainConfig
from experiments.limits import check_devices, validate

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


def message(config, **options):
    with pytest.raises(ConfigError) as caught:
        validate(config, **options)
    return str(caught.value)


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


# --- ranges


RANGES = [
    ("model.image_width", (0, -64, 250, 100, 2**31), (64, 128, 512)),
    ("model.image_height", (0, -64, 250, 100), (64, 128, 512)),
    ("model.image_channels", (0, -1), (1, 4)),
    ("model.num_classes", (0, -1), (1, 4)),
    ("model.base_filters", (0, -1), (1, 64)),
    ("model.num_layers", (0, -1, 9, 17, 10**9), (1, 5, 8)),
    ("model.dropout_rate", (-0.01, 1.0, 1.5, 1 / 6, float("nan"), float("inf")), (0.0, 0.16)),
    ("data.split_seed", (-1, 2**31), (0, 7)),
    ("data.mask_threshold", (-1, 255), (0, 254)),
    ("data.threads", (0, -1), (1, 16)),
    ("data.phantom_patients", (0, 2), (3, 100)),
    ("train.learning_rate", (0.0, -1e-3, float("nan"), float("inf")), (1e-8, 1e20)),
    ("train.epochs", (0, -1), (1, 1000)),
    ("train.batch_size", (0, -4, 2**31), (1, 64)),
    ("train.accumulate", (0, -1), (1, 64)),
    ("train.warmup_epochs", (-1.0, float("nan"), float("inf")), (0.0, 2.5)),
    ("train.patience", (0, -1), (1, 1000)),
    ("train.seed", (-1, 2**31), (0, 2**31 - 1)),
    ("train.save_minutes", (0.0, -1.0, float("nan"), float("inf")), (0.1, 1e3)),
    ("train.metrics", (("acuracy", "loss"), ("accuracy", "test_accuracy")), (("loss", "val_loss"),)),
    ("train.loss", ("", "os.system", "a:b:c", "a b:c", ":f", "m:"), ("ssim", "my.module:my_loss")),
    ("train.loss_options", ({"a b": 1}, {"alpha": float("nan")}), ({"alpha": 0.3},)),
    ("eval.batch_size", (0, -1), (1, 64)),
    ("eval.threshold", (0.0, 1.0, -1.0, float("nan")), (0.01, 0.99)),
    ("eval.tolerance", (-1.0, float("nan"), float("inf")), (0.0, 2.5)),
    ("eval.spacing", ((5.0, 1.0, 0.0), (1.0, float("nan"), 1.0)), (None, (5.0, 0.9, 0.9))),
    ("eval.lesion_iou", (0.0, 1.1, -1.0, float("nan")), (None, 0.01, 1.0)),
    ("infer.batch_size", (0, -1), (1, 64)),
    ("infer.blur", (-1.0, float("nan"), float("inf")), (0.0, 2.5)),
    ("infer.threshold", (0.0, 1.0, 2.0, float("nan")), (0.01, 0.99)),
    ("run_dir", ("", "  "), ("runs/a",)),
    ("config", ("",), ("demo",)),
    ("data.root", ("",), ("kaggle_3m",)),
    ("data.cache_dir", ("",), ("cache",)),
    ("compile_cache", ("", " "), ("off", "xla")),
]


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, bad, _ in RANGES for value in bad])
def test_a_value_out_of_range_is_refused_by_key(key, value):
    lines = message(changed(key, value)).splitlines()
    assert any(key in line for line in lines)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, _, good in RANGES for value in good])
def test_a_value_in_range_is_taken(key, value):
    assert validate(changed(key, value)) == changed(key, value)


def test_all_range_problems_are_in_one_message():
    bad = Config(
        model=ModelConfig(image_width=250, dropout_rate=1.0),
        train=TrainConfig(learning_rate=float("nan"), epochs=0, batch_size=0, metrics=("accuracy", "val_acc")),
        eval=EvalConfig(threshold=1.0),
        data=DataConfig(mask_threshold=255),
    )
    text = message(bad)
    assert text.startswith("8 problems:\n")
    for key in ("model.image_width=250", "model.dropout_rate=1.0", "train.learning_rate=nan", "train.epochs=0"):
        assert f"\n  {key}" in text
    for key in ("train.batch_size=0", "train.metrics", "eval.threshold=1.0", "data.mask_threshold=255"):
        assert f"\n  {key}" in text


def test_a_size_that_does_not_halve_names_the_nearest_that_does():
    expected = "model.image_width=250 does not halve 6 times (multiple of 64); nearest 256"
    assert message(changed("model.image_width", 250)) == expected
    assert "nearest 192" in message(changed("model.image_height", 200))
    assert "nearest 64, or a smaller model.num_layers" in message(changed("model.image_height", 10))


def test_a_size_need_not_be_square():
    validate(Config(model=ModelConfig(image_width=320, image_height=192)))


def test_dropout_counts_at_the_deepest_level():
    assert "level 6 would drop 1.2; must be below 0.167" in message(changed("model.dropout_rate", 0.2))
    validate(Config(model=ModelConfig(dropout_rate=0.2, num_layers=4)))


def test_slices_smaller_than_the_window_of_ssim_are_refused_with_its_losses_alone():
    small = ModelConfig(image_width=8, image_height=8, num_layers=3)
    assert "windows of 11 pixels" in message(Config(model=small, train=TrainConfig(loss="hybrid")))
    validate(Config(model=small, train=TrainConfig(loss="dice")))
    validate(Config(model=small, train=TrainConfig(loss="ssim", loss_options={"window": 7})))


def test_folders_come_in_pairs_and_not_beside_a_root():
    assert "data.train_images is set without data.train_masks" in message(changed("data.train_images", "a"))
    both = DataConfig(train_images="a", train_masks="b", root="c")
    assert "data.root and data.train_images are both set" in message(Config(data=both))
    assert "infer.masks is set without infer.images" in message(changed("infer.masks", "a"))
    validate(Config(data=DataConfig(train_images="a", train_masks="b", test_images="c", test_masks="d")))


def test_test_sites_need_the_site_split():
    assert "needs data.split=site" in message(changed("data.test_sites", ("CS",)))
    validate(Config(data=DataConfig(test_sites=("CS", "HT"), split="site")))


@pytest.mark.parametrize("key", ["run_dir", "train.eval_dir", "infer.output_dir", "infer.merged_dir", "data.cache_dir"])
def test_nothing_is_written_into_a_folder_that_is_read(key, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    config = cfg.override(Config(data=DataConfig(root=str(tmp_path))), {key: str(tmp_path / "link")})
    assert f"{key}={tmp_path / 'link'} is also data.root" in message(config)


def test_a_link_that_leads_to_itself_is_no_matter_here(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    looped = changed("data.root", str(tmp_path / "loop"))
    assert validate(looped) == looped
    assert run_directory.config_hash(looped) != run_directory.config_hash(Config())


def test_a_wrong_type_from_python_is_told_before_ranges():
    text = message(Config(train=TrainConfig(epochs="5", batch_size=2.0, loss=None), model=ModelConfig(num_layers=True)))
    for key in ("train.epochs='5'", "train.batch_size=2.0", "train.loss=None", "model.num_layers=True"):
        assert f"\n  {key}: expected" in text


def test_a_batch_that_does_not_divide_among_devices_names_those_that_do():
    six = Config(train=TrainConfig(batch_size=6))
    with pytest.raises(ConfigError, match=r"train\.batch_size=6 does not divide among 4 devices; use 4 or 8$"):
        check_devices(six, 4, ["train.batch_size"])
    with pytest.raises(ConfigError, match=r"train\.batch_size=4 does not divide among 8 devices; use 8$"):
        check_devices(Config(), 8, ["train.batch_size", "eval.batch_size"])
    with pytest.raises(ConfigError, match=r"infer\.batch_size=8 does not divide among 3 devices; use 6 or 9$"):
        check_devices(Config(), 3, ["infer.batch_size"])
    check_devices(Config(), 4, ["train.batch_size", "eval.batch_size"])


def test_each_part_of_a_batch_divides_among_devices():
    parts = Config(train=TrainConfig(batch_size=16, accumulate=4))
    check_devices(parts, 4, ["train.batch_size", "eval.batch_size"])
    expected = r"train\.batch_size=16 does not divide into train\.accumulate=4 microbatches among 8 devices; use 32$"
    with pytest.raises(ConfigError, match=expected):
        check_devices(parts, 8, ["train.batch_size", "eval.batch_size"])


def test_a_run_of_several_hosts_is_read_back_as_one_of_this_host(tmp_path):
    (tmp_path / "config.json").write_text(cfg.to_json(Config(distributed=True)))
    assert not cfg.read_run(tmp_path).distributed
    old = cfg.to_json(Config()).replace('"distributed": false', '"distributed": true')
    (tmp_path / "config.json").write_text(old)
    assert not cfg.read_run(tmp_path).distributed


@pytest.mark.parametrize("output", ["run_dir", "train.eval_dir", "data.cache_dir", "infer.output_dir"])
def test_nothing_is_written_below_a_data_set(tmp_path, output):
    settings = {"data.root": str(tmp_path), output: str(tmp_path / "a" / "b")}
    assert f"lies in data.root={tmp_path}" in message(cfg.override(Config(), settings))
    validate(cfg.override(Config(), {**settings, output: f"{tmp_path}_beside"}))


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


# --- identity


@pytest.mark.parametrize("key", OTHER)
def test_what_decides_the_weights_makes_another_run(key):
    config = changed(key, OTHER[key])
    assert run_directory.config_hash(config) != run_directory.config_hash(Config())
    (line,) = run_directory.differences(Config(), config)
    assert line.startswith(key)
    with pytest.raises(ConfigError, match=re.escape(line)):
        run_directory.check_same_run(Config(), config)


@pytest.mark.parametrize("key", FREE)
def test_what_does_not_decide_the_weights_continues_the_run(key):
    config = changed(key, FREE[key])
    assert run_directory.differences(Config(), config) == []
    run_directory.check_same_run(Config(), config)
    assert (run_directory.config_hash(config) != run_directory.config_hash(Config())) == (key in cfg.data_paths(config))


def test_a_difference_names_key_and_both_values():
    line = "train.learning_rate: 0.001 in the run, 0.0003 asked"
    assert run_directory.differences(Config(), changed("train.learning_rate", 3e-4)) == [line]
    options = changed("train.loss_options", {"smooth": 0.5})
    assert run_directory.differences(options, Config()) == ["train.loss_options.smooth: 0.5 in the run, not set asked"]
    options = changed("train.loss_options", {"smooth": None})
    assert run_directory.differences(options, Config()) == ["train.loss_options.smooth: None in the run, not set asked"]


def test_the_run_directory_names_configuration_and_hash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert re.fullmatch(r"runs/dice-[0-9a-f]{8}", str(run_directory.run_directory(cfg.PRESETS["dice"])))
    assert re.fullmatch(r"runs/my_first-[0-9a-f]{8}", str(run_directory.run_directory(Config(config="a/my first.ini"))))
    assert run_directory.run_directory(Config(run_dir="there/x")) == Path("there/x")


def test_the_same_data_by_another_path_is_the_same_run(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    paths = ("data", "./data", str(tmp_path / "data"), "link")
    hashes = {run_directory.config_hash(changed("data.root", path)) for path in paths}
    assert len(hashes) == 1


def test_a_hash_is_the_same_in_every_process_and_version():
    # Written down: a change here would make every existing run directory unfindable.
    assert run_directory.config_hash(cfg.PRESETS["dice"]) == "df130242"
    code = "from experiments import config, run_directory; print(run_directory.config_hash(config.PRESETS['dice']))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "df130242"


def test_a_whole_number_for_a_number_is_the_same_run():
    assert run_directory.config_hash(changed("train.learning_rate", 1)) == run_directory.config_hash(
        changed("train.learning_rate", 1.0)
    )
    assert InferConfig(blur=1) == InferConfig(blur=1.0)
