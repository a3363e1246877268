"""From a command line to one checked `Config`, and from an exception to one message and an exit code."""

import os
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from data_pipeline import console
from experiments import config as cfg
from experiments.allocator import keep_freed_memory
from experiments.config import PRESETS, Config, ConfigError
from experiments.fields import describe, from_text, literal, plain, suggest
from experiments.identity import differences, identity, run_directory
from experiments.ini import read_ini
from experiments.limits import validate

DEFAULT_PRESET = "dice"
_TRAINERS = ("train", "workflow")  # the programs that begin a run
_OPTIONS = "train.loss_options"
# What a program that uses a finished run may be told anew.
_FREE = {*cfg.INPUT_PATHS, "config", "run_dir", "distributed", "compile_cache"}
_FREE |= {"data.cache_dir", "data.cache", "data.threads"}
_FREE |= {key for key in cfg.kinds() if key.startswith(("eval.", "infer."))}
_FREE |= {"train.eval_dir", "model.show_summary"}
_KEPT_PATHS = (*cfg.INPUT_PATHS, "data.cache_dir", "train.eval_dir")
_FOLDERS = tuple(key for key in cfg.INPUT_PATHS if key != "data.root")


def parse(argv: Sequence[str] | None = None, *, program: str = "train") -> Config:
    """Returns the checked configuration that a command line asks for.

    A later word wins: preset or .ini file, then flags. `--help` prints every option with its default and exits.
    Paths of data, cache and results are made absolute, so that a run can be used from another working directory.

    Args:
      argv: the words after the program's name; by default those of this process.
      program: `train` or `workflow`, or one that uses a finished run (`evaluate`, `predict`, `infer`, `summary`,
        `export`): it starts from the `config.json` of its run, and only what does not decide the weights can be told
        anew. `summary` without a run describes the configuration that is asked for.

    Raises:
      ConfigError: all unknown keys and wrong types in one message, or else all values out of range.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "-h" in words or "--help" in words:
        _print_help(words, program)
        raise SystemExit(0)
    flags = read_flags(words)
    asked = _start(flags)
    base = None
    if program not in _TRAINERS:
        run_dir = run_directory(asked)
        if program != "summary" or "run_dir" in flags or (run_dir / "config.json").exists():
            base = cfg.read_run(run_dir)
    return validate(_absolute(asked if base is None else _reuse(base, asked, flags)))


def _start(flags: Mapping[str, Any]) -> Config:
    """Returns the preset or .ini file with the flags over it."""
    config = _apply(Config(), read_settings(flags.get("config", DEFAULT_PRESET)))
    return _apply(config, flags)


def _apply(config: Config, settings: Mapping[str, Any]) -> Config:
    """Returns `config` with `settings` over it; a new place of the data replaces the old one, of either form."""
    settings = dict(settings)
    options = {key: settings.pop(key) for key in list(settings) if key.startswith(f"{_OPTIONS}.")}
    if options:
        named = {key.removeprefix(f"{_OPTIONS}."): value for key, value in options.items()}
        settings[_OPTIONS] = {**config.train.loss_options, **settings.get(_OPTIONS, {}), **named}
    if settings.get("data.root") is not None:
        settings = {**dict.fromkeys(_FOLDERS), **settings}
    elif any(settings.get(key) is not None for key in _FOLDERS):
        settings = {"data.root": None, **settings}
    return cfg.override(config, settings)


def _reuse(base: Config, asked: Config, flags: Mapping[str, Any]) -> Config:
    """Returns a run's configuration with what was asked of it, if that can be told anew."""
    values = {**cfg.flatten(asked), **flags}
    problems = differences(base, asked) if "config" in flags else []
    saved = {**cfg.flatten(base), **identity(base)}
    for key in flags:
        if key not in _FREE and values[key] != saved.get(key) and not any(f"{key}:" in line for line in problems):
            problems.append(f"{key}: {saved.get(key, 'not set')} in the run, {values[key]} asked")
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise ConfigError(
            f"{run_directory(base)} holds a run that was trained with other values:{listed}\n"
            "leave these out, or name another --run_dir; anew can be told: eval.*, infer.* and where the data lies"
        )
    layer = read_settings(flags["config"]) if "config" in flags else {}
    for settings in (layer, flags):
        base = _apply(base, {key: value for key, value in settings.items() if key in _FREE and key != "config"})
    return base


def _absolute(config: Config) -> Config:
    values = cfg.flatten(config)
    return cfg.override(config, {key: str(Path(values[key]).absolute()) for key in _KEPT_PATHS if values[key]})


def read_flags(words: Sequence[str]) -> dict[str, Any]:
    """Returns the typed settings of a command line: `--key=value`, `--key value`, `--flag` and `--no-flag`.

    Keys may be spelled with `-` or `_`. Options of the loss stay under `train.loss_options.<name>`.

    Raises:
      ConfigError: words that are no option, unknown keys with the nearest known one, values of a wrong type.
    """
    problems: list[str] = []
    settings: dict[str, Any] = {}
    for name, values in _group(words, problems):
        try:
            settings |= _read_flag(name, values)
        except ValueError as error:
            problems.append(str(error))
    cfg.raise_problems(problems)
    return settings


def _group(words: Sequence[str], problems: list[str]) -> Iterable[tuple[str, list[str]]]:
    """Returns each option with its values; words before the first option are problems."""
    grouped: list[tuple[str, list[str]]] = []
    for word in words:
        if re.match(r"--?[^\W\d]", word):
            name, equals, value = word.partition("=")
            grouped.append((name, [value] if equals else []))
        elif grouped:
            grouped[-1][1].append(word)
        else:
            problems.append(f"unexpected word {word!r}; options are written --key=value")
    return grouped


def _read_flag(name: str, values: list[str]) -> dict[str, Any]:
    key = name.lstrip("-").replace("-", "_")
    section, _, leaf = key.rpartition(".")
    positive = f"{section}.{leaf.removeprefix('no_')}".lstrip(".")
    kind = cfg.kinds().get(key)
    if kind is None and leaf.startswith("no_") and _is_switch(cfg.kinds().get(positive)):
        if values:
            raise ValueError(f"{name} takes no value, found {values[0]!r}")
        return {positive: False}
    if section == _OPTIONS and leaf.isidentifier() and name.startswith("--"):
        return {key: _read_option(name, values)}
    if kind is None or not name.startswith("--"):
        raise ValueError(f"unknown key {name}" + suggest(key, cfg.kinds(), "--"))
    if _is_switch(kind) and not values:
        return {key: True}
    if typing.get_origin(kind) is tuple and len(values) > 1:
        values = [",".join(values)]
    if not values:
        raise ValueError(f"{name} needs a value: {describe(kind)}")
    if len(values) > 1:
        raise ValueError(f"unexpected word {values[1]!r} after {name}={values[0]}; options are written --key=value")
    try:
        return {key: cfg.expand(key, from_text(values[0], kind))}
    except ValueError as error:
        raise ValueError(f"{name}={values[0]}: expected {error}") from error


def _is_switch(kind: Any) -> bool:
    return kind is bool or bool in typing.get_args(kind)


def _read_option(name: str, values: list[str]) -> Any:
    """Returns an option of a loss: a literal, or a bare word as text; the loss itself knows which names it takes."""
    if len(values) != 1:
        raise ValueError(f"{name} needs one value, found {len(values)}")
    if values[0].lower().lstrip("+-") in ("nan", "inf", "infinity"):
        return float(values[0])
    if values[0].isidentifier() and values[0] not in ("True", "False", "None"):
        return values[0]
    try:
        return plain(literal(values[0]))
    except ValueError as error:
        raise ValueError(f"{name}={values[0]}: expected {error}") from error


def read_settings(name: str) -> dict[str, Any]:
    """Returns what a preset, or a documented .ini file, sets; raises `ConfigError` for an unknown name."""
    if name in PRESETS:
        default = cfg.flatten(Config())
        return {key: value for key, value in cfg.flatten(PRESETS[name]).items() if value != default[key]}
    if name.endswith(".ini") or "/" in name or os.sep in name:
        return {"config": name, **read_ini(name)}
    raise ConfigError(
        f"--config={name}: unknown preset{suggest(name, PRESETS)}\n"
        f"known are {', '.join(PRESETS)}, or the path of an .ini file"
    )


def _print_help(words: Sequence[str], program: str) -> None:
    """Prints every option with its default, as the preset or file on the same command line sets it."""
    import tyro  # only the help needs it

    told = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    told += [value for word, value in pairwise(words) if word == "--config"]
    default = _start({"config": told[-1]} if told else {})
    if program not in _TRAINERS:
        text = f"{program}: --run_dir is all it needs; eval.*, infer.* and where the data lies can be told anew."
    else:
        text = "Options are written --key=value. They change what the preset or .ini file of --config sets."
    tyro.cli(Config, default=default, args=["--help"], prog=_command(program), description=text, use_underscores=True)


def _command(program: str) -> str:
    return f"python -m experiments.{program}"


def run_program(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Calls `main(argv)` as `data_pipeline.console.run_program` does, with the allocator of all programs."""
    keep_freed_memory()
    return console.run_program(main, argv)
