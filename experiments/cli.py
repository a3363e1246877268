"""From a command line to one checked `Config`."""

import dataclasses
import os
import re
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.config import (
    PRESETS,
    Config,
    ConfigError,
    flatten,
    keys_of,
    options,
    override,
    raise_problems,
    read_run,
)
from experiments.fields import Role, literal, plain, suggest
from experiments.ini import read_ini
from experiments.limits import validate
from experiments.run_directory import differences, identity, run_directory

DEFAULT_PRESET = "dice"

_COMMON = ("config", "run_dir", "distributed", "compile_cache")
_PLACES = (*(key for key in keys_of(Role.INPUT) if key.startswith("data.")), "data.cache_dir", "data.threads")
PROGRAMS: dict[str, tuple[str, ...]] = {
    "train": (*_COMMON, "model", "data", "train"),
    "workflow": (*_COMMON, "model", "data", "train", "eval", "infer.batch_size", "infer.blur", "infer.threshold"),
    "evaluate": (*_COMMON, *_PLACES, "train.eval_dir", "eval"),
    "predict": (*_COMMON, "infer"),
    "infer": (*_COMMON, "infer"),
    "summary": ("config", "run_dir", "model", "out"),
    "export": ("config", "run_dir", "out"),
}
"""Keys and sections that each program uses, and that its help lists."""

_TRAINERS = ("train", "workflow")
# What may differ from a finished run in a program that uses it.
_OVERRIDABLE = (*_COMMON, *_PLACES, "data.cache", "train.eval_dir", "model.show_summary", "out", "eval", "infer")
_FOLDERS = ("data.train_images", "data.train_masks", "data.test_images", "data.test_masks")
_LOSS_OPTION = re.compile(r"--train\.loss[_-]options\.(?P<name>[^=]*)(=(?P<value>.*))?", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class _Start:
    """The options that the defaults of all others depend on."""

    config: str | None = None
    run_dir: str | None = None


def parse(argv: Sequence[str] | None = None, *, program: str = "train") -> Config:
    """Returns the checked configuration of a command line; with `--help`, prints the options of `program` and exits.

    The defaults are those of the preset or .ini file that `--config` names. If `--run_dir` holds a run, its values are
    the defaults. Programs that use a finished run always start from it, and only options that do not affect its weights
    may differ. Paths of data, cache and results become absolute, so that a run can be used from any directory.

    Args:
      argv: the words after the name of the program; default: those of this process.
      program: a key of `PROGRAMS`.

    Raises:
      ConfigError: unknown options, or values out of range, all in one message; or values that differ from the run's.
      SystemExit: 2 for a value of a wrong type, which tyro reports.
    """
    words, loss_options = _take_loss_options(list(sys.argv[1:] if argv is None else argv))
    asks_for_help = bool({"-h", "--help"} & {*words})
    words = [word for word in words if word not in ("-h", "--help")]
    given, _ = tyro.cli(_Start, args=words, return_unknown_args=True, use_underscores=True)
    preset = read_preset(given.config or DEFAULT_PRESET)
    default = preset
    if given.run_dir and not given.config and Path(given.run_dir, "config.json").exists():
        default = read_run(given.run_dir)
    if asks_for_help:
        _print_help(default, program)
    asked = _read(words, loss_options, default, program)
    if program in _TRAINERS:
        return validate(asked)
    directory = run_directory(asked)
    if program == "summary" and not given.run_dir and not (directory / "config.json").exists():
        return validate(asked)  # describes a network that was not trained yet
    run = read_run(directory)
    config = _read(words, loss_options, _with_free_settings(run, given.config), program)
    _check_reuse(run, config, asked if given.config else run)
    return validate(config)


def read_preset(name: str) -> Config:
    """Returns a preset, or the configuration of an .ini file; raises `ConfigError` for an unknown name."""
    if name in PRESETS:
        return PRESETS[name]
    if name.endswith(".ini") or "/" in name or os.sep in name:
        return override(Config(), {"config": name, **read_ini(name)})
    raise ConfigError(
        f"--config={name}: unknown preset{suggest(name, PRESETS)}\n"
        f"known are {', '.join(PRESETS)}, or the path of an .ini file"
    )


def _take_loss_options(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Separates `--train.loss_options.NAME=VALUE` from the other words, because the names depend on the loss."""
    rest: list[str] = []
    found: dict[str, Any] = {}
    problems = []
    remaining = iter(words)
    for word in remaining:
        match = _LOSS_OPTION.fullmatch(word)
        if match is None:
            rest.append(word)
            continue
        text = match["value"] if match["value"] is not None else next(remaining, None)
        try:
            found[match["name"].replace("-", "_")] = _loss_option(text)
        except ValueError as error:
            problems.append(f"{word}: expected {error}")
    raise_problems(problems)
    return rest, found


def _loss_option(text: str | None) -> Any:
    """Returns the value of a literal; a bare word is text."""
    if text is None:
        raise ValueError("a value")
    if text.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        return float(text)  # refused later, with all values out of range
    if text.isidentifier() and text not in ("True", "False", "None"):
        return text
    return plain(literal(text))


def _read(words: Sequence[str], loss_options: dict[str, Any], default: Config, program: str) -> Config:
    """Reads the command line over a configuration; a new location of the data replaces the old one."""
    config, unknown = tyro.cli(
        Config, default=default, args=words, prog=_command(program), return_unknown_args=True, use_underscores=True
    )
    raise_problems([_explain(word) for word in unknown])
    before, values = flatten(default), flatten(config)
    settings: dict[str, Any] = {}
    changed = {key for key in ("data.root", *_FOLDERS) if values[key] is not None and values[key] != before[key]}
    if changed == {"data.root"}:
        settings |= dict.fromkeys(_FOLDERS)
    elif changed and "data.root" not in changed:
        settings["data.root"] = None
    if loss_options:
        settings["train.loss_options"] = {**config.train.loss_options, **loss_options}
    for key, option in options().items():
        path = settings.get(key, values[key])
        if option.is_path and path:
            path = str(_expand(path))
            # Names in config.json must not depend on the working directory.
            settings[key] = str(Path(path).absolute()) if key.startswith(("data.", "train.")) else path
    return override(config, settings)


def _explain(word: str) -> str:
    """Explains what is wrong with a word that is not an option."""
    if not re.match(r"--?[^\W\d]", word):
        return f"unexpected word {word!r}; options are written --key=value"
    name = word.partition("=")[0]
    return f"unknown key {name}{suggest(name.lstrip('-').replace('-', '_'), options(), '--')}"


def _expand(path: str) -> str:
    """Replaces a leading `~` by the home directory; with an unknown user, the path stays as it is."""
    return os.path.expanduser(path)  # noqa: PTH111 - Path.expanduser raises for unknown users


def _with_free_settings(run: Config, config: str | None) -> Config:
    """Returns a run's configuration with the settings of an .ini file that do not affect the weights."""
    if config is None or config in PRESETS:
        return run
    settings = {key: value for key, value in read_ini(config).items() if _is_in(key, _OVERRIDABLE)}
    return override(run, {key: value for key, value in settings.items() if key != "run_dir"})


def _check_reuse(run: Config, config: Config, asked: Config) -> None:
    """Refuses a configuration that would change the trained network."""
    problems = {line.split(":")[0]: line for line in differences(run, asked)}
    saved, values = ({**flatten(one), **identity(one)} for one in (run, config))
    for key, value in values.items():
        if key != "train.loss_options" and value != saved.get(key) and not _is_in(key, _OVERRIDABLE):
            problems[key] = f"{key}: {saved.get(key, 'not set')} in the run, {value} asked"
    if problems:
        listed = "".join(f"\n  {line}" for line in problems.values())
        raise ConfigError(
            f"{run_directory(run)} holds a run that was trained with other values:{listed}\n"
            "leave these out, or name another --run_dir; only eval.*, infer.* and data paths can be overridden"
        )


def _is_in(key: str, keys: Sequence[str]) -> bool:
    return key in keys or key.partition(".")[0] in keys


def _print_help(default: Config, program: str) -> None:
    """Prints the options that a program uses, with their defaults, and exits."""
    if program in _TRAINERS:
        text = "Options override the preset or .ini file of --config. A run in --run_dir supplies the defaults."
    else:
        text = "Only --run_dir is required; eval.*, infer.* and data paths can be overridden."
    shown = _narrowed(default, PROGRAMS[program])
    tyro.cli(
        type(shown),
        default=shown,
        args=["--help"],
        prog=_command(program),
        description=text,
        use_underscores=True,
    )


def _command(program: str) -> str:
    return f"python -m experiments.{program}"


def _narrowed(values: Any, used: Sequence[str], prefix: str = "") -> Any:
    """Returns a copy of a dataclass instance, of a subclass whose unused fields tyro does not list.

    A subclass, because tyro finds the help of a field in the source of the class that declares it.
    """
    cls, copied = type(values), {}
    body: dict[str, Any] = {"__annotations__": {}, "__doc__": cls.__doc__, "__module__": cls.__module__}
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        key, hint, value = f"{prefix}{field.name}", hints[field.name], getattr(values, field.name)
        if any(name.startswith(f"{key}.") for name in used) or (dataclasses.is_dataclass(value) and _is_in(key, used)):
            value = _narrowed(value, used, f"{key}.")
            hint = type(value)
        elif not _is_in(key, used) or key == "train.loss_options":
            hint = Annotated[hint, tyro.conf.Suppress]
        body["__annotations__"][field.name], copied[field.name] = hint, value
    return type(cls.__name__, (cls,), body)(**copied)
