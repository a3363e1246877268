"""Run configuration: frozen dataclasses, the presets, and `config.json`.

`Config()` is the reference's `bce` experiment. An option has a dotted key, `train.learning_rate`, in messages, in
`config.json` and on the command line (`experiments/cli.py`). Its field holds everything about it: the type, the range,
its role (`experiments/fields.py`) and, in the docstring below, the text of the help.

Nothing here imports jax, because `--help` must be fast.
"""

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from experiments.fields import (
    Count,
    Input,
    Names,
    NotNegative,
    Option,
    Output,
    Positive,
    Probability,
    Range,
    Role,
    Seed,
    Switch,
    ThreeNumbers,
    TwoNames,
    convert,
    read_option,
)

FORMAT = 1
"""Version of `config.json`; other versions are refused."""

METRIC_NAMES = (
    "loss",
    "accuracy",
    "dice_coef",
    "jaccard_coef",
    "dice",
    "jaccard",
    "sensitivity",
    "specificity",
    "precision",
)
"""Columns that `train.metrics` may name, each also with the prefix `val_`."""


class ConfigError(ValueError):
    """The configuration cannot be used; the message names every key at fault, what was found and what was expected."""

    exit_code = 2


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network."""

    image_width: Count = 256
    """Width of the slices in pixels; a multiple of 2^num_layers."""
    image_height: Count = 256
    """Height of the slices in pixels; a multiple of 2^num_layers."""
    image_channels: Count = 3
    """Channels of a slice (pre-contrast, FLAIR, post-contrast)."""
    num_classes: Count = 1
    """Independent mask channels that the network predicts."""
    base_filters: Count = 16
    """Filters of the first level; each deeper level has twice as many."""
    num_layers: Annotated[int, Range(1, 16)] = 6
    """Number of 2x2 poolings; 6 is the reference's network with 31 110 001 parameters."""
    dropout_rate: Annotated[float, Range(0, 1, below=True)] = 0.08
    """Dropout of level i is i times this rate, so num_layers times this rate must be below 1."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the computation; parameters, optimizer and loss are always float32."""
    remat: Annotated[bool, Role.FREE] = False
    """Recompute each level in the backward pass instead of keeping it: less memory, more time, same values."""
    show_summary: Annotated[bool, Role.FREE] = False
    """Print the layer table before training."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The slices and how they are split."""

    root: Input = None
    """The kaggle_3m folder, the Kaggle zip, or a folder with image and mask folders. None: synthetic slices."""
    train_images: Input = None
    """Folder of training images, used instead of root. With the three folders below, it fixes the test set."""
    train_masks: Input = None
    """Folder of their masks, paired by name."""
    test_images: Input = None
    """Folder of test images."""
    test_masks: Input = None
    """Folder of their masks."""
    split: Literal["patient", "slice", "site"] = "patient"
    """What training, validation and test do not share. slice is the reference's split, in which they share patients."""
    slices: Literal["tumour", "all"] = "tumour"
    """Slices used for training and validation: those with tumour, or all."""
    test_sites: Names = ()
    """Sites to test on with split=site, for example CS,HT."""
    split_seed: Seed = 0
    """Seed of the split."""
    resize: Switch = None
    """Resize slices to the size of the model. None: off for kaggle_3m, on for folders of images."""
    mask_threshold: Annotated[int | None, Range(0, 254)] = None
    """Grey value (0 to 254) above which a mask is tumour. None: masks must contain only 0 and 255."""
    cache_dir: Output = None
    """Folder of the prepared slices. None: $XDG_CACHE_HOME/jaxunet."""
    cache: Annotated[Literal["none", "memory", "device"], Role.FREE] = "none"
    """Where decoded slices stay during training: nowhere, in host memory, or on every device. Values are the same."""
    threads: Annotated[Count, Role.FREE] = 2
    """Threads that read and decode slices."""
    phantom_patients: Annotated[int, Range(3)] = 48
    """Number of synthetic patients."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Training."""

    loss: str = "bce"
    """A loss of jaxunet or package.module:function. Set its options as --train.loss_options.smooth=0.5."""
    loss_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keyword options of the loss, by name."""
    augment: Names = ()
    """Augmentations of jaxunet.augment applied to each training slice, in this order, for example flip,gamma."""
    learning_rate: Positive = 1e-3
    """Step size of Adam."""
    lr_rule: Literal["constant", "linear", "sqrt"] = "constant"
    """How the step size grows with the batch: not at all, with batch_size / 4, or with its square root."""
    warmup_epochs: NotNegative = 0.0
    """Epochs over which the step size rises from zero to its full value."""
    epochs: Annotated[Count, Role.FREE] = 100
    """Maximum passes over the training slices; early stopping may end sooner. A longer run continues a shorter one."""
    batch_size: Count = 4
    """Slices per step, over all devices together; a multiple of their number."""
    accumulate: Count = 1
    """Microbatches per batch, to save memory. For dice and jaccard, their mean loss is not the loss of the batch."""
    shard_optimizer: Annotated[bool, Role.FREE] = False
    """Divide Adam's moments among the devices instead of keeping a copy on each."""
    patience: Count = 10
    """Training stops after this many epochs without a lower validation loss."""
    seed: Seed = 0
    """Seed of the initial weights, the order of the slices, dropout and augmentation."""
    metrics: TwoNames = ("accuracy", "val_accuracy")
    """The two columns of train_metrics.csv, such as accuracy, dice_coef or val_sensitivity (val_: validation)."""
    eval_dir: Output = None
    """Folder for CSV files, curves and evaluations. None: the run directory."""
    save_minutes: Annotated[Positive, Role.FREE] = 10.0
    """Minutes between two saves of the full state within an epoch."""


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation."""

    split: Literal["test", "val", "train"] = "test"
    """Which slices are evaluated."""
    batch_size: Count = 32
    """Slices per batch. The reference's dice_coef is a mean over batches, so its value depends on this size."""
    threshold: Probability = 0.5
    """Probability above which a pixel counts as tumour in the thresholded scores."""
    empty: Literal["perfect", "skip"] = "perfect"
    """Slices without tumour: perfect scores an empty prediction 1, skip leaves them out of every mean."""
    lesion_iou: Annotated[float | None, Range(0, 1, above=True)] = None
    """Intersection over union at which a lesion counts as found. None: any overlap is enough."""
    tolerance: NotNegative = 1.0
    """Largest error of an outline that still counts as correct in the surface Dice, in units of the spacing."""
    spacing: Annotated[ThreeNumbers, Range(0, above=True)] = None
    """Distance between slices, rows and columns, for example 5,1,1 (mm). None: pixels."""


@dataclasses.dataclass(frozen=True)
class InferConfig:
    """Prediction of image files."""

    images: Input = None
    """An image or a folder of images (png, jpg, tif, bmp)."""
    masks: Input = None
    """Folder of true masks to draw with the prediction, paired by name."""
    output_dir: Output = None
    """Folder for probability maps and masks. None: a folder in the run directory."""
    merged_dir: Output = None
    """Folder for overlays. None: the same as output_dir."""
    batch_size: Count = 8
    """Images predicted at once."""
    blur: NotNegative = 0.0
    """Sigma in pixels of a Gaussian that smooths the probabilities before the threshold; 0 is off."""
    binarize: bool = True
    """Write binary masks as well as probability maps."""
    threshold: Probability = 0.5
    """Probability above which a pixel of a binary mask is tumour."""
    overwrite: bool = False
    """Replace the pictures of an earlier prediction."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The configuration of a run."""

    config: Annotated[str, Role.PATH, Role.FREE] = "bce"
    """Starting values: the preset bce, dice or demo, or an .ini file of the reference."""
    run_dir: Output = None
    """The run directory. None: runs/<config>-<hash of the configuration>."""
    distributed: Annotated[bool, Role.FREE] = False
    """Join the processes of all hosts in one run."""
    compile_cache: Output = None
    """Folder where compiled programs are kept for the next start. None: xla in data.cache_dir; off: always compile."""
    out: Annotated[str | None, Role.PATH, Role.FREE] = None
    """The file that export (.npz) or summary (.png) writes."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    eval: EvalConfig = EvalConfig()
    infer: InferConfig = InferConfig()


FREE_SECTIONS = ("eval", "infer")
"""Sections that use the trained weights and never affect them."""

PRESETS: Mapping[str, Config] = {
    # python -m experiments.train --config=bce --data.root=/path/to/kaggle_3m
    # The reference's experiment with binary cross-entropy; add --data.split=slice for its split.
    "bce": Config(config="bce"),
    # python -m experiments.train --config=dice --data.root=/path/to/kaggle_3m
    # The reference's experiment with the hybrid loss; add --data.split=slice for its split.
    "dice": Config(config="dice", train=TrainConfig(loss="hybrid", metrics=("dice_coef", "val_dice_coef"))),
    # python -m experiments.train --config=demo
    # Synthetic slices and a small network: the whole workflow in minutes on two CPU cores.
    "demo": Config(
        config="demo",
        model=ModelConfig(image_width=64, image_height=64, base_filters=8, num_layers=4),
        data=DataConfig(slices="all", phantom_patients=96),
        train=TrainConfig(loss="bce_dice", epochs=12, batch_size=16, metrics=("dice_coef", "val_dice_coef")),
    ),
}


@functools.cache
def options() -> Mapping[str, Option]:
    """Returns every option by its dotted key, in the order of the help."""
    found: dict[str, Option] = {}
    for name, annotation in typing.get_type_hints(Config, include_extras=True).items():
        if dataclasses.is_dataclass(annotation):
            roles = (Role.FREE,) if name in FREE_SECTIONS else ()
            hints = typing.get_type_hints(annotation, include_extras=True)
            found |= {f"{name}.{leaf}": read_option(hint, roles) for leaf, hint in hints.items()}
        else:
            found[name] = read_option(annotation)
    return types.MappingProxyType(found)


def keys_of(role: Role) -> tuple[str, ...]:
    """Returns the keys of all options with a role."""
    return tuple(key for key, option in options().items() if role in option.roles)


def data_paths(config: Config) -> dict[str, str]:
    """Returns the paths that the data set is read from, by key; empty for the synthetic set."""
    values = flatten(config)
    return {key: values[key] for key in keys_of(Role.INPUT) if key.startswith("data.") and values[key] is not None}


def flatten(config: Config) -> dict[str, Any]:
    """Returns every value under its dotted key."""
    values: dict[str, Any] = {}
    for key in options():
        section, _, leaf = key.rpartition(".")
        values[key] = getattr(getattr(config, section) if section else config, leaf)
    return values


def override(config: Config, settings: Mapping[str, Any]) -> Config:
    """Returns `config` with the dotted keys of `settings` replaced; the values must have their types already."""
    top = {key: value for key, value in settings.items() if "." not in key}
    sections: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        if "." in key:
            section, leaf = key.split(".")
            sections.setdefault(section, {})[leaf] = value
    replaced = {name: dataclasses.replace(getattr(config, name), **leaves) for name, leaves in sections.items()}
    return dataclasses.replace(config, **replaced, **top)


def to_json(config: Config) -> str:
    """Returns the text of `config.json`: `{"format": 1, "train": {"epochs": ...}, ...}`."""
    # Not stored: a run of several hosts may be evaluated on one, and each program names its own output file.
    stored = dataclasses.replace(config, distributed=False, out=None)
    return json.dumps({"format": FORMAT, **dataclasses.asdict(stored)}, indent=2) + "\n"


def from_json(text: str, *, name: str = "config.json") -> Config:
    """Reads the text that `to_json` wrote; keys that a later version added take their defaults.

    Args:
      text: the content of the file.
      name: the name of the file, for messages.

    Raises:
      ConfigError: not a JSON object, another format, unknown keys or values of a wrong type (all of them named).
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is damaged, it is not valid JSON: {error}") from error
    found = content.pop("format", None) if isinstance(content, dict) else None
    if not isinstance(found, int) or isinstance(found, bool):
        raise ConfigError(f"{name} is not the configuration of a run: it has no format number")
    if found != FORMAT:
        raise ConfigError(
            f"{name} has format {found}, this version reads format {FORMAT}: use the version that wrote it"
        )
    sections = {key.split(".")[0] for key in options() if "." in key}
    values: dict[str, Any] = {}
    for key, value in content.items():
        nested = key in sections and isinstance(value, dict)
        values |= {f"{key}.{leaf}": item for leaf, item in value.items()} if nested else {key: value}
    problems, settings = [], {}
    for key, value in values.items():
        try:
            settings[key] = convert(value, options()[key].kind)
        except KeyError:
            problems.append(f"unknown key {key}")
        except ValueError as error:
            problems.append(f"{key}={value!r}: expected {error}")
    raise_problems(problems, f"{name}: ")
    return override(Config(), settings)


def read_run(run_dir: str | Path) -> Config:
    """Returns the configuration saved in a run directory, with `run_dir` set to where it is now.

    Raises:
      ConfigError: there is no `config.json`, or it cannot be read.
    """
    path = Path(run_dir) / "config.json"
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(1_000_000)  # a configuration has a few kilobytes; a larger file is something else
    except FileNotFoundError:
        raise ConfigError(
            f"no run in {run_dir}: {path} does not exist; train first, or name another --run_dir"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return dataclasses.replace(from_json(text, name=str(path)), run_dir=str(run_dir), distributed=False)


def raise_problems(problems: list[str], prefix: str = "") -> None:
    """Raises one `ConfigError` for all problems, one per line; does nothing without problems."""
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ConfigError(prefix + (problems[0] if len(problems) == 1 else f"{len(problems)} problems:{lines}"))
