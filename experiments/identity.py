"""What makes two configurations the same run: what resuming must not change, and what names a run directory."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from experiments.config import INPUT_PATHS, PATHS, Config, ConfigError, flatten, kinds
from experiments.fields import convert

# What does not decide the trained weights: where things lie or are computed (more devices, a divided optimizer and
# levels computed twice change the order of sums at most), how long to go on, what is done with the weights later.
# The data itself is compared by its fingerprint in the manifest, wherever it lies.
_NOT_IDENTITY = {*PATHS, "config", "distributed", "model.show_summary", "data.threads", "train.epochs"}
_NOT_IDENTITY |= {"train.save_minutes", "data.cache", "train.shard_optimizer", "model.remat"}


def identity(config: Config) -> dict[str, Any]:
    """Returns, by dotted key, what decides the weights and records of a run: what resuming must not change."""
    values: dict[str, Any] = {}
    for key, value in flatten(config).items():
        if key == "train.loss_options":
            values |= {f"{key}.{name}": value[name] for name in sorted(value)}
        elif key not in _NOT_IDENTITY and not key.startswith(("eval.", "infer.")):
            values[key] = convert(value, kinds()[key])
    return values


def config_hash(config: Config) -> str:
    """Returns 8 hex digits of the identity and of the places the data is read from.

    Only values that differ from the defaults are hashed, so that a key added later does not rename existing runs.
    """
    default, values = identity(Config()), flatten(config)
    told = {key: value for key, value in identity(config).items() if value != default.get(key)}
    told |= {key: os.path.realpath(values[key]) for key in INPUT_PATHS if values[key] is not None}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]


def run_directory(config: Config) -> Path:
    """Returns `run_dir`, or `runs/<config>-<hash>`, where <config> is the preset or the name of the .ini file."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    return Path("runs") / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', Path(config.config).stem)}-{config_hash(config)}"


def differences(saved: Config, asked: Config) -> list[str]:
    """Returns a line for each value of the identity in which a run and what is asked of it differ."""
    a, b = identity(saved), identity(asked)

    def say(values: dict[str, Any], key: str) -> str:
        return str(values[key]) if key in values else "not set"

    return [
        f"{key}: {say(a, key)} in the run, {say(b, key)} asked"
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
