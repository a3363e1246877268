"""A run directory: its identity, who may write there, and how damaged files are refused."""

import contextlib
import json
import resource
from types import SimpleNamespace

import pytest

from data_pipeline.source import DataError
from experiments import run_directory
from experiments.config import Config, ConfigError, to_json

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
