"""A run directory: its identity, who may write there, and how damaged files are refused."""

import contextlib
import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_pipeline.source import DataError
from experiments import config as cfg
from experiments import run_directory
from experiments.config import Config, ConfigError, InferConfig, to_json
from tests.experiments.test_config import FREE, OTHER, changed

MANIFEST = {
    "format": 1,
    "dataset": {"fingerprint": "f" * 64, "title": "SYNTHETIC", "kind": "synthetic"},
    "split": {"by": "patient", "notes": ["n"], "train": ["a_1"], "val": ["b_1"], "test": ["c_1", "c_2"]},
}
NAMES = ("c_2", "b_1", "a_1", "c_1")
DATA = SimpleNamespace(fingerprint="f" * 64, entries=[SimpleNamespace(name=name) for name in NAMES])


def write(directory, content):
    (directory / "manifest.json").write_text(json.dumps(content))


def test_the_split_of_a_run_is_read_by_name(tmp_path):
    write(tmp_path, MANIFEST)
    split = run_directory.saved_split(tmp_path, DATA)
    assert (split.train, split.val, split.test, split.notes) == ((2,), (1,), (3, 0), ("n",))
    assert split.whole_volumes, "a manifest that does not say: as it was then"
    write(tmp_path, {**MANIFEST, "split": {**MANIFEST["split"], "whole_volumes": False}})
    assert not run_directory.saved_split(tmp_path, DATA).whole_volumes


def test_a_slice_that_the_data_do_not_hold_is_named(tmp_path):
    write(tmp_path, {**MANIFEST, "split": {**MANIFEST["split"], "val": ["d_9"]}})
    with pytest.raises(ConfigError, match=r"manifest\.json is damaged: the data holds no slice 'd_9'"):
        run_directory.saved_split(tmp_path, DATA)


def test_data_that_have_changed_are_refused_with_both_fingerprints(tmp_path):
    write(tmp_path, MANIFEST)
    changed = SimpleNamespace(fingerprint="0" * 64, entries=DATA.entries)
    with pytest.raises(DataError, match=r"has changed since .*: fingerprint f{12} then, 0{12} now"):
        run_directory.saved_split(tmp_path, changed)


LACKING = [(key, name) for key in ("dataset", "split") for name in MANIFEST[key]]


@pytest.mark.parametrize(("key", "name"), LACKING)
def test_a_manifest_that_lacks_something_is_refused_by_name(tmp_path, key, name):
    write(tmp_path, {**MANIFEST, key: {k: v for k, v in MANIFEST[key].items() if k != name}})
    with pytest.raises(ConfigError, match=rf"manifest\.json is damaged: it lacks {key} with .*{name}"):
        run_directory.read_manifest(tmp_path)


@pytest.mark.parametrize("key", ["dataset", "split"])
@pytest.mark.parametrize("value", [None, [], "x"])
def test_a_manifest_with_something_else_in_a_place_is_refused(tmp_path, key, value):
    write(tmp_path, {**MANIFEST, key: value})
    with pytest.raises(ConfigError, match=f"lacks {key}"):
        run_directory.read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ("[]", "format version None"), ('{"format": 7}', "format version 7"), ("", "cannot")],
)
def test_a_damaged_or_foreign_manifest_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"manifest\.json .*{message}"):
        run_directory.read_manifest(tmp_path)


def test_a_manifest_that_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"manifest\.json cannot be read: .*No such file"):
        run_directory.read_manifest(tmp_path)


def test_a_run_may_begin_where_nothing_or_a_killed_start_is(tmp_path):
    assert not run_directory.check_directory(tmp_path / "new", Config())
    assert not run_directory.check_directory(tmp_path, Config())
    for name in ("manifest.json", "manifest.json.partial", "config.json.partial", "run.lock"):
        (tmp_path / name).write_text("half")
    assert not run_directory.check_directory(tmp_path, Config())
    (tmp_path / "config.json").write_text(to_json(Config()))
    assert run_directory.check_directory(tmp_path, Config())


def test_a_file_in_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ConfigError, match=r"run_dir=.*run is a file, expected a directory or a new name"):
        run_directory.check_directory(tmp_path / "run", Config())
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"id": "another"}'])
def test_a_claim_that_cannot_be_read_is_refused_and_kept(tmp_path, text):
    run, results = tmp_path / "run", tmp_path / "results"
    run.mkdir()
    results.mkdir()
    write(run, {**MANIFEST, "id": "mine"})
    (results / run_directory.CLAIM).write_text(text)
    with pytest.raises(ConfigError, match=r"train\.eval_dir=.*results cannot be used"):
        run_directory.claim(results, run, ["a.csv"])
    assert (results / run_directory.CLAIM).read_text() == text


def test_a_second_process_is_told_who_holds_the_lock(tmp_path):
    message = r"is in use by process \d+ on \S+ since 20"
    with run_directory.locked(tmp_path), pytest.raises(ConfigError, match=message), run_directory.locked(tmp_path):
        pass
    with run_directory.locked(tmp_path):
        pass


@contextlib.contextmanager
def no_space():
    """No file can grow, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_without_room_for_the_lock_names_the_file(tmp_path):
    with pytest.raises(OSError, match="too large") as caught, no_space(), run_directory.locked(tmp_path):
        pass
    assert caught.value.filename == str(tmp_path / "run.lock")


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_kept(tmp_path):
    path = tmp_path / "config.json"
    run_directory.write_atomically(path, "old")
    with pytest.raises(OSError, match="too large") as caught, no_space():
        run_directory.write_atomically(path, "new")
    assert caught.value.filename == str(path) and path.read_text() == "old"


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
