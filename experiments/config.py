"""What a run can be told: frozen dataclasses, the presets, and `config.json`.

`Config()` is the documented `bce` experiment. Keys are written with dots, `train.learning_rate`, in every message, in
`config.json` and on the command line (`experiments/cli.py`). Nothing here imports jax: `--help` must answer at once.
"""

import contextlib
import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from experiments.fields import convert

FORMAT = 1
"""Version of `config.json`; a newer one is refused."""

LOSS_NAMES = (
    "bce",
    "weighted_bce",
    "balanced_bce",
    "label_smoothing_bce",
    "poly_bce",
    "topk_bce",
    "nacl",
    "focal",
    "normalized_focal",
    "reduced_focal",
    "asymmetric_focal",
    "dice",
    "squared_dice",
    "log_dice",
    "log_cosh_dice",
    "dice_metric",
    "wasserstein_dice",
    "jaccard",
    "log_jaccard",
    "jaccard_metric",
    "tversky",
    "focal_tversky",
    "asymmetric_similarity",
    "asymmetric_focal_tversky",
    "generalized_dice",
    "penalty_generalized_dice",
    "sensitivity_specificity",
    "mcc",
    "lovasz_hinge",
    "lovasz_sigmoid",
    "ssim",
    "ms_ssim",
    "cl_dice",
    "boundary",
    "boundary_dou",
    "distance_bce",
    "distance_dice",
    "hausdorff_dt",
    "log_hausdorff_dt",
    "hausdorff_er",
    "bce_dice",
    "bce_jaccard",
    "combo",
    "dice_topk",
    "jaccard_topk",
    "exp_log",
    "dice_focal",
    "generalized_dice_focal",
    "focal_jaccard",
    "unified_focal",
    "hybrid",
    "unet3plus",
    "dice_cl_dice",
    "dice_boundary",
)
"""Names `train.loss` knows, as in `jaxunet.losses.LOSSES` (written out because importing that imports jax)."""

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
"""Columns `train.metrics` may name, each also with the prefix `val_`."""


class ConfigError(ValueError):
    """The configuration cannot be used; the message names every key at fault, what was found and what was expected."""

    exit_code = 2


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network."""

    image_width: int = 256
    """Width of the slices in pixels; a multiple of 2^num_layers."""
    image_height: int = 256
    """Height of the slices in pixels; a multiple of 2^num_layers."""
    image_channels: int = 3
    """Channels of a slice (pre-contrast, FLAIR, post-contrast)."""
    num_classes: int = 1
    """Independent mask channels the network predicts."""
    base_filters: int = 16
    """Filters of the first level; each deeper level has twice as many."""
    num_layers: int = 6
    """Number of 2x2 poolings; 6 is the documented network of 31 110 001 parameters."""
    dropout_rate: float = 0.08
    """Dropout of level i is i times this rate, so num_layers times it must stay below 1."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the computation; parameters, optimizer and loss are float32 always."""
    remat: bool = False
    """Compute each level again in the backward pass in place of keeping it: less memory, more time, same values."""
    show_summary: bool = False
    """Print the layer table before training."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The slices and how they are split."""

    root: str | None = None
    """The kaggle_3m folder, the Kaggle zip, or a folder of image and mask folders. None: synthetic slices."""
    train_images: str | None = None
    """Folder of training images, instead of root; fixes the split together with the three folders below."""
    train_masks: str | None = None
    """Folder of their masks, paired by name."""
    test_images: str | None = None
    """Folder of test images."""
    test_masks: str | None = None
    """Folder of their masks."""
    split: Literal["patient", "slice", "site"] = "patient"
    """What training, validation and test do not share. slice is the documented split: it leaks patients."""
    slices: Literal["tumour", "all"] = "tumour"
    """Slices trained and validated on: those with tumour, or all."""
    test_sites: tuple[str, ...] = ()
    """Sites to test on with split=site, for example CS,HT."""
    split_seed: int = 0
    """Seed of the split."""
    resize: bool | None = None
    """Resize slices of another size to the model's. None: off for kaggle_3m, on for folders of images."""
    mask_threshold: int | None = None
    """Grey masks: tumour is every value above this one (0..254). None: a grey mask is an error."""
    cache_dir: str | None = None
    """Where the prepared slices are kept. None: $XDG_CACHE_HOME/jaxunet."""
    cache: Literal["none", "memory", "device"] = "none"
    """Where decoded slices are kept while training: nowhere (each is read in every epoch), in the memory of the host,
    or in that of every device, where a step picks them by index. The order and the values are the same."""
    threads: int = 2
    """Threads that read and decode slices."""
    phantom_patients: int = 48
    """Patients of the synthetic set."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Training."""

    loss: str = "bce"
    """bce, dice, jaccard, ssim, bce_dice, bce_jaccard, hybrid, or a function of your own: package.module:function.
    Options of the loss have flags too, by name: --train.loss_options.smooth=0.5."""
    loss_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keyword options of the loss, by name."""
    learning_rate: float = 1e-3
    """Step size of Adam."""
    lr_rule: Literal["constant", "linear", "sqrt"] = "constant"
    """How the step size grows with the batch: not at all, with batch_size / 4, or with the root of that."""
    warmup_epochs: float = 0.0
    """Epochs over which the step size rises from nothing to its full value."""
    epochs: int = 100
    """Most passes over the training slices; early stopping may end before. A longer run continues a shorter one."""
    batch_size: int = 4
    """Slices a step, over all devices together; a multiple of their number."""
    accumulate: int = 1
    """Parts a batch is computed in, one after the other, so that it needs the memory of one part. The loss is the mean
    over the parts: that of the whole batch for bce, another one for losses of whole batches such as dice or jaccard."""
    shard_optimizer: bool = False
    """Divide Adam's moments among the devices instead of keeping a copy on each."""
    patience: int = 10
    """Epochs without a lower validation loss after which training stops."""
    seed: int = 0
    """Seed of the initial weights, the order of the slices and dropout."""
    metrics: tuple[str, str] = ("accuracy", "val_accuracy")
    """The two columns of train_metrics.csv and its curve: loss, accuracy, dice_coef, jaccard_coef, dice, jaccard,
    sensitivity, specificity or precision, with the prefix val_ for validation."""
    eval_dir: str | None = None
    """Where CSV files and curves go. None: the run directory."""
    save_minutes: float = 10.0
    """Minutes between two saves of the full state within an epoch."""


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation."""

    split: Literal["test", "val", "train"] = "test"
    """Which slices are evaluated."""
    batch_size: int = 32
    """Slices a batch; the documented dice_coef is a mean over batches, so its value depends on this size."""
    threshold: float = 0.5
    """Probability from which a pixel counts as tumour in the thresholded scores."""
    empty: Literal["perfect", "skip"] = "perfect"
    """Slices without tumour: perfect scores an empty prediction 1, skip leaves them out of every mean."""
    lesion_iou: float | None = None
    """Intersection over union from which a lesion is found. None: any overlap."""
    tolerance: float = 1.0
    """How far an outline may be off and still count as right in the surface Dice, in units of the spacing."""
    spacing: tuple[float, float, float] | None = None
    """Distance between slices, rows and columns, for example 5,1,1 (mm). None: pixels."""


@dataclasses.dataclass(frozen=True)
class InferConfig:
    """Prediction on images without a data set."""

    images: str | None = None
    """An image or a folder of images (png, jpg, tif, bmp)."""
    masks: str | None = None
    """Folder of true masks to draw beside the prediction, paired by name."""
    output_dir: str | None = None
    """Where probability maps and masks go. None: a folder in the run directory."""
    merged_dir: str | None = None
    """Where overlays go. None: beside the masks."""
    batch_size: int = 8
    """Images predicted at once."""
    blur: float = 0.0
    """Sigma in pixels of a Gaussian that smooths the probabilities before the threshold; 0 is off."""
    binarize: bool = True
    """Write binary masks beside the probability maps."""
    threshold: float = 0.5
    """Probability from which a pixel of a binary mask is tumour."""
    overwrite: bool = False
    """Replace pictures of an earlier prediction."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One value that describes a run. Write options as --train.epochs=5."""

    config: str = "bce"
    """Where the values start from: the preset bce, dice or demo, or the path of a documented .ini file."""
    run_dir: str | None = None
    """The run directory. None: runs/<config>-<hash of the configuration>."""
    distributed: bool = False
    """Join the processes of all hosts before anything else."""
    compile_cache: str | None = None
    """Where compiled programs are kept for the next start. None: xla in data.cache_dir; off: nowhere."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    eval: EvalConfig = EvalConfig()
    infer: InferConfig = InferConfig()


PRESETS: Mapping[str, Config] = {
    # python -m experiments.train --config=bce --data.root=/path/to/kaggle_3m
    # The documented experiment with binary cross-entropy; add --data.split=slice for its split.
    "bce": Config(config="bce"),
    # python -m experiments.train --config=dice --data.root=/path/to/kaggle_3m
    # The documented experiment with the hybrid loss; add --data.split=slice for its split.
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

INPUT_PATHS = ("data.root", "data.train_images", "data.train_masks", "data.test_images", "data.test_masks")
PATHS = (
    *INPUT_PATHS,
    *("run_dir", "data.cache_dir", "train.eval_dir", "compile_cache"),
    *("infer.images", "infer.masks", "infer.output_dir", "infer.merged_dir"),
)


@functools.cache
def kinds() -> Mapping[str, Any]:
    """Returns the annotation of every dotted key, in the order of the help."""
    found: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(Config).items():
        if dataclasses.is_dataclass(kind):
            found |= {f"{name}.{leaf}": inner for leaf, inner in typing.get_type_hints(kind).items()}
        else:
            found[name] = kind
    return types.MappingProxyType(found)


def flatten(config: Config) -> dict[str, Any]:
    """Returns every value under its dotted key."""
    values: dict[str, Any] = {}
    for key in kinds():
        section, _, leaf = key.rpartition(".")
        values[key] = getattr(getattr(config, section) if section else config, leaf)
    return values


def override(config: Config, settings: Mapping[str, Any]) -> Config:
    """Returns `config` with the dotted keys of `settings` replaced; the values have their types already."""
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
    # who joins is the matter of each start: a run of many hosts is evaluated on one
    stored = dataclasses.replace(config, distributed=False)
    return json.dumps({"format": FORMAT, **dataclasses.asdict(stored)}, indent=2) + "\n"


def from_json(text: str, *, name: str = "config.json") -> Config:
    """Reads what `to_json` wrote; keys a later version added take their defaults.

    Args:
      text: the file's content.
      name: how messages call it.

    Raises:
      ConfigError: no JSON object, a newer format, unknown keys, values of a wrong type (all named).
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is damaged, it is no JSON: {error}") from error
    found = content.pop("format", None) if isinstance(content, dict) else None
    if not isinstance(found, int) or isinstance(found, bool):
        raise ConfigError(f"{name} is not the configuration of a run: it has no format number")
    if found != FORMAT:
        raise ConfigError(
            f"{name} has format {found}, this version reads format {FORMAT}: use the version that wrote it"
        )
    sections = {key.split(".")[0] for key in kinds() if "." in key}
    values: dict[str, Any] = {}
    for key, value in content.items():
        nested = key in sections and isinstance(value, dict)
        values |= {f"{key}.{leaf}": item for leaf, item in value.items()} if nested else {key: value}
    problems, settings = [], {}
    for key, value in values.items():
        try:
            settings[key] = convert(value, kinds()[key])
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
            text = file.read(1_000_000)  # a configuration has some kilobytes; more is another file
    except FileNotFoundError:
        raise ConfigError(
            f"no run in {run_dir}: {path} does not exist; train first, or name another --run_dir"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return dataclasses.replace(from_json(text, name=str(path)), run_dir=str(run_dir), distributed=False)


def expand(key: str, value: Any) -> Any:
    """Returns `value` with a leading `~` as the home directory where `key` is a path."""
    if isinstance(value, str) and value.startswith("~") and key in (*PATHS, "config"):
        with contextlib.suppress(RuntimeError):  # no such user: the name of a file then
            return str(Path(value).expanduser())
    return value


def raise_problems(problems: list[str], prefix: str = "") -> None:
    """Raises one `ConfigError` for all problems, a line each; does nothing without problems."""
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ConfigError(prefix + (problems[0] if len(problems) == 1 else f"{len(problems)} problems:{lines}"))
