"""Ranges and conditions between options: every problem is reported, in one message."""

import pytest

from experiments import config as cfg
from experiments import run_directory
from experiments.config import Config, ConfigError, DataConfig, EvalConfig, ModelConfig, TrainConfig
from experiments.limits import check_devices, validate


def changed(key, value):
    return cfg.override(Config(), {key: value})


def message(config, **options):
    with pytest.raises(ConfigError) as caught:
        validate(config, **options)
    return str(caught.value)


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
