"""The run directory: its files, who may write to it, and whether a run may be continued.

    config.json           the configuration
    manifest.json         format version, data set, split by name, versions, seed
    run.lock              the process that trains here now
    metrics.jsonl         one row per step and one per epoch
    train_losses.csv      epoch, loss, val_loss                     (these six in train.eval_dir if set)
    train_metrics.csv     epoch, metric, val_metric
    train_*.png           their curves
    evaluation*.json      every figure of an evaluation
    evaluation*.csv       its counts and scores, one row per patient
    evaluation*.png       best, median and worst slices; predicted against observed frequency
    checkpoints/last      full state, the two newest
    checkpoints/best      weights of the lowest validation loss
    tensorboard/          event files
    mini_test/            ten test images and masks                 (of experiments.workflow)
    predictions/          masks, overlays, contact sheet            (of experiments.predict and infer)
    network.png           a drawing                                 (of experiments.summary)

A program deletes only files that the run wrote itself.
"""

import contextlib
import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import socket
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.prepared import Prepared
from data_pipeline.source import DataError
from data_pipeline.splits import Split
from experiments.config import Config, ConfigError, data_paths, flatten, options, read_run, to_json
from experiments.fields import Role, convert

FORMAT = 1
"""Version of the manifest; other versions are refused."""

PACKAGES = ("jaxunet", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")
CLAIM = "jaxunet_run.json"
"""File in a results folder outside the run directory that names the run it belongs to."""

_SUBSETS = ("train", "val", "test")


# --- which run a configuration belongs to


def identity(config: Config) -> dict[str, Any]:
    """Returns, by dotted key, the values that determine weights and records of a run; resuming must not change them.

    Locations of files, the number of devices and the length of the run are not among them. The data itself is compared
    by its fingerprint in the manifest.
    """
    values: dict[str, Any] = {}
    for key, value in flatten(config).items():
        if key == "train.loss_options":
            values |= {f"{key}.{name}": value[name] for name in sorted(value)}
        elif Role.FREE not in options()[key].roles:
            values[key] = convert(value, options()[key].kind)
    return values


def config_hash(config: Config) -> str:
    """Returns 8 hex digits of the identity and of the paths of the data.

    Only values that differ from the defaults are hashed, so that a key added later does not rename existing runs.
    """
    default = identity(Config())
    hashed = {key: value for key, value in identity(config).items() if value != default.get(key)}
    hashed |= {key: os.path.realpath(path) for key, path in data_paths(config).items()}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:8]


def run_directory(config: Config) -> Path:
    """Returns `run_dir`, or `runs/<config>-<hash>`, where <config> is the preset or the name of the .ini file."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    return Path("runs") / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', Path(config.config).stem)}-{config_hash(config)}"


def differences(saved: Config, asked: Config) -> list[str]:
    """Returns one line for each value of the identity in which two configurations differ."""
    a, b = identity(saved), identity(asked)
    return [
        f"{key}: {a.get(key, 'not set')} in the run, {b.get(key, 'not set')} asked"
        for key in dict.fromkeys([*a, *b])
        if a.get(key) != b.get(key) or (key in a) != (key in b)
    ]


def check_same_run(saved: Config, asked: Config) -> None:
    """Raises `ConfigError` with every difference if `asked` cannot continue the run of `saved`."""
    if lines := differences(saved, asked):
        listed = "".join(f"\n  {line}" for line in lines)
        raise ConfigError(
            f"{run_directory(asked)} holds the run of another configuration:{listed}\n"
            "give the values of the run, or another --run_dir"
        )


# --- config.json and manifest.json


def check_directory(directory: Path, config: Config) -> bool:
    """Checks that a run can be started or continued there, before any work is done.

    Returns:
      True if a run is there already.

    Raises:
      ConfigError: the directory holds another configuration, or files that are not a run.
    """
    if not (directory / "config.json").exists():
        _refuse_foreign(directory)
        return False
    check_same_run(read_run(directory), config)
    return True


def record_start(directory: Path, config: Config, data: Prepared, split: Split) -> None:
    """Writes `config.json` and `manifest.json` of a new run; adds the versions to those of a resumed run."""
    if (directory / "config.json").exists():
        content = read_manifest(directory)
        resumed = content.setdefault("resumed_with", [])
        if (resumed or [content.get("versions")])[-1] != versions():
            resumed.append(versions())
    else:
        content = manifest(config, data, split)
    write_atomically(directory / "manifest.json", json.dumps(content, indent=1) + "\n")
    write_atomically(directory / "config.json", to_json(config))


def manifest(config: Config, data: Prepared, split: Split) -> dict[str, Any]:
    """Identifies the data, the split and the software of a run."""
    names = {subset: [data.entries[i].name for i in getattr(split, subset)] for subset in _SUBSETS}
    return {
        "format": FORMAT,
        "id": uuid.uuid4().hex,
        "created": _now(),
        "dataset": {"kind": data.kind, "title": data.title, "fingerprint": data.fingerprint, "shape": list(data.shape)},
        "split": {"by": split.by, "seed": config.data.split_seed, "notes": list(split.notes), **names}
        | {"whole_volumes": split.whole_volumes},
        "seed": config.train.seed,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect a result."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """Reads the manifest of a run; raises ConfigError if it is missing, damaged or has another format version."""
    path = Path(directory) / "manifest.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        version = found.get("format") if isinstance(found, dict) else None
        raise ConfigError(f"{path} has format version {version}; this version of jaxunet reads {FORMAT}")
    needed = {"dataset": ("fingerprint", "title", "kind"), "split": ("by", "notes", *_SUBSETS)}
    for key, inner in needed.items():
        if not isinstance(found.get(key), dict) or any(name not in found[key] for name in inner):
            raise ConfigError(f"{path} is damaged: it lacks {key} with {', '.join(inner)}; restore it from a copy")
    return found


def saved_split(directory: Path, data: Prepared) -> Split:
    """Returns the split of a run by the names in its manifest; drawing it again could differ with another NumPy.

    Raises:
      ConfigError: the manifest cannot be read.
      DataError: the data set has changed since the run began.
    """
    saved = read_manifest(directory)
    before = saved["dataset"]["fingerprint"]
    if before != data.fingerprint:
        raise DataError(
            f"the data set has changed since {directory} began: fingerprint {before[:12]} then, "
            f"{data.fingerprint[:12]} now; restore the data or start a run with a new --run_dir"
        )
    split, index = saved["split"], {entry.name: i for i, entry in enumerate(data.entries)}
    if unknown := [name for subset in _SUBSETS for name in split[subset] if name not in index]:
        path = directory / "manifest.json"
        raise ConfigError(f"{path} is damaged: the data holds no slice {unknown[0]!r}; restore it from a copy")
    train, val, test = (tuple(index[name] for name in split[subset]) for subset in _SUBSETS)
    whole = split.get("whole_volumes", split["by"] != "slice")
    return Split(split["by"], train, val, test, tuple(split["notes"]), whole_volumes=whole)


# --- who may write


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the run's lock, which the system releases even after a kill.

    Raises:
      ConfigError: another process trains in this directory, or it holds files that are not a run.
    """
    if not (directory / "config.json").exists():
        _refuse_foreign(directory)
    directory.mkdir(parents=True, exist_ok=True)
    # Unbuffered: closing a file with a buffer that did not fit on a full disk would fail again, without naming a file.
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
        with _name_file_in_errors(file.name):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {_now()}\n".encode())
        yield


def claim(results: Path, directory: Path, names: Sequence[str]) -> None:
    """Makes sure that results written outside the run directory replace only this run's.

    Args:
      results: where they are written (`train.eval_dir`); created if missing.
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
    """Refuses a directory that is used for something else; the leftovers of a killed start are allowed."""
    leftovers = {"manifest.json", "manifest.json.partial", "config.json.partial", "run.lock"}
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"run_dir={directory} is a file, expected a directory or a new name")
    if directory.is_dir() and (found := sorted(p.name for p in directory.iterdir() if p.name not in leftovers)):
        raise ConfigError(
            f"run_dir={directory} holds {len(found)} files but no config.json ({', '.join(found[:3])}, ...); "
            "name a new or empty directory"
        )


# --- writing files


def new_file(path: str | Path, ending: str) -> Path:
    """Returns the path; raises ConfigError if it exists already or does not end in `ending`."""
    path = Path(path)
    if path.suffix.lower() != ending:
        raise ConfigError(f"--out={path}: the file is written as {ending[1:]}, name it {path.stem}{ending}")
    if path.exists():
        raise ConfigError(f"--out={path} exists already: name another file")
    return path


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path next to `path`, which replaces it once the block has succeeded."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with _name_file_in_errors(path):
            yield partial
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file that appears under its name only when it is complete and on the disk."""
    with atomic(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _name_file_in_errors(path: str | Path) -> Iterator[None]:
    """Adds the file to an error of `write`, which names none when the disk is full."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
