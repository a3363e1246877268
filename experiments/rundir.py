"""The run directory: what lies where, who may write, and whether a run may be gone on with.

    config.json           the configuration
    manifest.json         format version, data set, split by name, versions, seed
    run.lock              who trains here now
    metrics.jsonl         a row a step and a row an epoch
    train_losses.csv      epoch, loss, val_loss                     (these six in train.eval_dir if set)
    train_metrics.csv     epoch, metric, val_metric
    train_*.png           their curves
    evaluation*.json      every figure of an evaluation
    evaluation*.csv       its counts and scores, a row a patient
    evaluation*.png       its best, median and worst slices; predicted against observed frequency
    checkpoints/last      full state, the two newest
    checkpoints/best      weights of the lowest validation loss
    tensorboard/          event files
    mini_test/            ten test images and masks                 (of experiments.workflow)
    predictions/          masks, overlays, contact sheet            (of experiments.predict and infer)
    network.png           a drawing                                 (of experiments.summary)

Nothing in it is deleted that the run did not write itself.
"""

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.prepared import Prepared
from data_pipeline.source import DataError
from data_pipeline.splits import Split
from experiments.config import Config, ConfigError, read_run, to_json
from experiments.identity import check_same_run

FORMAT = 1
"""Version of the manifest; another one is refused."""

_PARTS = ("train", "val", "test")

PACKAGES = ("jaxunet", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


def write_atomically(path: Path, text: str) -> None:
    """Writes a file that appears under its name only when it is complete."""
    partial = path.with_name(path.name + ".partial")
    with _naming(path), partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@contextlib.contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Adds the file to an error of `write`, which on a full disk names none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def manifest(config: Config, data: Prepared, split: Split) -> dict[str, Any]:
    """What identifies the data and the software of a run."""
    names = {part: [data.entries[i].name for i in getattr(split, part)] for part in _PARTS}
    return {
        "format": FORMAT,
        "id": uuid.uuid4().hex,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "dataset": {"kind": data.kind, "title": data.title, "fingerprint": data.fingerprint, "shape": list(data.shape)},
        "split": {"by": split.by, "seed": config.data.split_seed, "notes": list(split.notes), **names}
        | {"whole_volumes": split.whole_volumes},
        "seed": config.train.seed,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The software that runs now."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def check_directory(directory: Path, config: Config) -> bool:
    """Looks whether a run can be begun or gone on with there, before any work is done.

    Returns:
      True if a run is there already.

    Raises:
      ConfigError: the directory holds another configuration, or files that are no run.
    """
    if not (directory / "config.json").exists():
        _refuse_foreign(directory)
        return False
    check_same_run(read_run(directory), config)
    return True


def saved_split(directory: Path, data: Prepared) -> Split:
    """Returns the split a run began with, by the names in its manifest: drawn anew, another NumPy might draw another.

    Raises:
      ConfigError: the manifest cannot be read.
      DataError: the data set has changed since the run began.
    """
    saved = read_manifest(directory)
    check_same_data(saved, data, directory)
    split, index = saved["split"], {entry.name: i for i, entry in enumerate(data.entries)}
    if unknown := [name for part in _PARTS for name in split[part] if name not in index]:
        path = directory / "manifest.json"
        raise ConfigError(f"{path} is damaged: the data holds no slice {unknown[0]!r}; restore it from a copy")
    train, val, test = (tuple(index[name] for name in split[part]) for part in _PARTS)
    whole = split.get("whole_volumes", split["by"] != "slice")
    return Split(split["by"], train, val, test, tuple(split["notes"]), whole_volumes=whole)


def check_same_data(saved: Mapping[str, Any], data: Prepared, directory: Path) -> None:
    """Raises `DataError` if the data is not that of the manifest `saved` of the run in `directory`."""
    fingerprint = saved["dataset"]["fingerprint"]
    if fingerprint != data.fingerprint:
        raise DataError(
            f"the data set has changed since {directory} began: fingerprint {fingerprint[:12]} then, "
            f"{data.fingerprint[:12]} now; restore the data or start a run with a new --run_dir"
        )


def record_start(directory: Path, config: Config, data: Prepared, split: Split) -> None:
    """Writes `config.json` and `manifest.json` of a new run; adds the versions to those of a run that goes on."""
    if (directory / "config.json").exists():
        content = read_manifest(directory)
        resumed = content.setdefault("resumed_with", [])
        if (resumed or [content.get("versions")])[-1] != versions():
            resumed.append(versions())
    else:
        content = manifest(config, data, split)
    write_atomically(directory / "manifest.json", json.dumps(content, indent=1) + "\n")
    write_atomically(directory / "config.json", to_json(config))


CLAIM = "jaxunet_run.json"
"""Says in a directory outside the run directory whose results lie there."""


def claim(results: Path, directory: Path, names: Sequence[str]) -> None:
    """Makes sure that results written outside the run directory replace no others than this run's.

    Args:
      results: where they go (`train.eval_dir`); created if missing.
      directory: the run directory, with its manifest.
      names: the files that will be written.

    Raises:
      ConfigError: another run writes there, or files of these names are there that no run has claimed.
    """
    if results.resolve() == directory.resolve():
        return
    content = read_manifest(directory)
    mine = content.get("id", content.get("created"))
    path = results / CLAIM
    try:
        results.mkdir(parents=True, exist_ok=True)
        owner = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        other = "" if owner is None or owner["id"] == mine else owner["run"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"train.eval_dir={results} cannot be used: {error}") from error
    if other:
        raise ConfigError(f"{results} holds the results of {other}; name another --train.eval_dir")
    if owner:
        return
    if found := [name for name in names if (results / name).exists()]:
        raise ConfigError(
            f"{results} holds {', '.join(found[:3])} of something else, which would be overwritten; "
            "name another --train.eval_dir"
        )
    write_atomically(path, json.dumps({"id": mine, "run": str(directory.absolute())}) + "\n")


def _refuse_foreign(directory: Path) -> None:
    """A directory in use for something else is not written into; what a killed start left is."""
    ours = {"manifest.json", "manifest.json.partial", "config.json.partial", "run.lock"}
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"run_dir={directory} is a file, expected a directory or a new name")
    if directory.is_dir():
        found = sorted(p.name for p in directory.iterdir() if p.name not in ours)
        if found:
            raise ConfigError(
                f"run_dir={directory} holds {len(found)} files but no config.json ({', '.join(found[:3])}, ...); "
                "name a new or empty directory"
            )


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """Reads the manifest of a run; raises ConfigError if it is missing, damaged or of another format version."""
    path = Path(directory) / "manifest.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        version = found.get("format") if isinstance(found, dict) else None
        raise ConfigError(f"{path} has format version {version}; this version of jaxunet reads {FORMAT}")
    needed = {"dataset": ("fingerprint", "title", "kind"), "split": ("by", "notes", *_PARTS)}
    for key, inner in needed.items():
        if not isinstance(found.get(key), dict) or any(name not in found[key] for name in inner):
            raise ConfigError(f"{path} is damaged: it lacks {key} with {', '.join(inner)}; restore it from a copy")
    return found


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the run's lock, which the system releases even after a kill.

    Raises:
      ConfigError: another process trains in this directory, or it holds files that are no run.
    """
    if not (directory / "config.json").exists():
        _refuse_foreign(directory)
    directory.mkdir(parents=True, exist_ok=True)
    # Unbuffered: closing a file whose buffer a full disk refused would fail again, and name no file.
    with (directory / "run.lock").open("ab+", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ConfigError(
                f"{directory} is in use by {file.read().decode().strip() or 'another process'}"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"{file.name} cannot be locked ({error.strerror}): the file system has no locks; "
                "name a --run_dir on another one"
            ) from error
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with _naming(file.name):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n".encode())
        yield
