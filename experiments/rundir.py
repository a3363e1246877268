"""The run directory: what lies where, who may write, and whether a run may be gone on with.

    config.json           the configuration
    manifest.json         format version, data set, split by name, versions, seed
    metrics.jsonl         a row a step and a row an epoch
    train_losses.csv      epoch, loss, val_loss                     (in train.eval_dir if set)
    train_metrics.csv     epoch, metric, val_metric                 (in train.eval_dir if set)
    *.png                 their curves                              (in train.eval_dir if set)
    checkpoints/last      full state, the two newest
    checkpoints/best      weights of the lowest validation loss
    tensorboard/          event files

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.prepare import Prepared
from data_pipeline.source import DataError
from data_pipeline.splits import Split
from experiments.config import Config, ConfigError, check_same_run, read_run, to_json

FORMAT = 1
"""Version of the manifest; another one is refused."""

PACKAGES = ("jaxunet", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


def write_atomically(path: Path, text: str) -> None:
    """Writes a file that appears under its name only when it is complete."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def manifest(config: Config, data: Prepared, split: Split) -> dict[str, Any]:
    """What identifies the data and the software of a run."""
    names = {part: [data.entries[i].name for i in getattr(split, part)] for part in ("train", "val", "test")}
    return {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "dataset": {"kind": data.kind, "title": data.title, "fingerprint": data.fingerprint, "shape": list(data.shape)},
        "split": {"by": split.by, "seed": config.data.split_seed, "notes": list(split.notes), **names},
        "seed": config.train.seed,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def create_or_resume(directory: Path, config: Config, data: Prepared, split: Split) -> bool:
    """Writes `config.json` and `manifest.json` of a new run, or checks that the run there is the one that is asked for.

    Returns:
      True if a run is there already.

    Raises:
      ConfigError: the directory holds another configuration.
      DataError: the data set has changed since the run began.
    """
    if not (directory / "config.json").exists():
        text = json.dumps(manifest(config, data, split), indent=1)
        write_atomically(directory / "manifest.json", text + "\n")
        write_atomically(directory / "config.json", to_json(config))
        return False
    check_same_run(read_run(directory), config)
    saved = read_manifest(directory)["dataset"]["fingerprint"]
    if saved != data.fingerprint:
        raise DataError(
            f"the data set has changed since {directory} began: fingerprint {saved[:12]} then, "
            f"{data.fingerprint[:12]} now; restore the data or start a run with a new --run_dir"
        )
    write_atomically(directory / "config.json", to_json(config))
    return True


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
    with (directory / "run.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise ConfigError(f"{directory} is in use by {file.read().strip() or 'another process'}") from error
        file.seek(0)
        file.truncate()
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n")
        file.flush()
        yield
