"""The ranges of a configuration: every problem is found before a file is read or a device touched, and told at once."""

import math
import os
import re
from collections.abc import Iterator, Sequence

from experiments import config as cfg
from experiments.config import Config
from experiments.fields import convert, suggest

_AT_LEAST = {
    "model.image_channels": 1,
    "model.num_classes": 1,
    "model.base_filters": 1,
    "data.split_seed": 0,
    "data.threads": 1,
    "data.phantom_patients": 3,  # one each for training, validation and test
    "train.epochs": 1,
    "train.batch_size": 1,
    "train.accumulate": 1,
    "train.patience": 1,
    "train.seed": 0,
    "eval.batch_size": 1,
    "infer.batch_size": 1,
}
_LARGEST = 2**31 - 1  # int32: what arrays and seeds are counted in
_DEEPEST = 16  # 2^16 pixels is wider than any slice
_SSIM_WINDOW = 11  # pixels, without padding, where train.loss_options name no other
_OUTPUT_PATHS = ("run_dir", "data.cache_dir", "compile_cache", "train.eval_dir", "infer.output_dir", "infer.merged_dir")
_PAIRS = (("data.train_images", "data.train_masks"), ("data.test_images", "data.test_masks"))


def validate(config: Config) -> Config:
    """Returns `config` if every value has its type and lies in its range.

    Args:
      config: what to check; paths are compared, not opened.

    Raises:
      ConfigError: all problems in one message, a line each.
    """
    values, problems = cfg.flatten(config), []
    for key, kind in cfg.kinds().items():
        try:
            convert(values[key], kind)
        except ValueError as error:
            problems.append(f"{key}={values[key]!r}: expected {error}")
    if not problems:  # a range can be told of a value of the right type only
        problems = [*_numbers(config), *_sizes(config), *_names(config), *_paths(config)]
    cfg.raise_problems(problems)
    return config


def check_devices(config: Config, device_count: int, keys: Sequence[str]) -> None:
    """Checks that every batch divides among the devices.

    Args:
      config: the run.
      device_count: devices of the mesh, over all processes.
      keys: the batch sizes the program uses.

    Raises:
      ConfigError: `train.batch_size=6 does not divide among 4 devices; use 4 or 8`. With `train.accumulate=2` each of
        the two parts must divide.
    """
    cfg.raise_problems(list(_devices(config, device_count, keys)))


def _devices(config: Config, device_count: int, keys: Sequence[str]) -> Iterator[str]:
    values = cfg.flatten(config)
    for key in keys:
        size, parts = values[key], config.train.accumulate if key == "train.batch_size" else 1
        unit = device_count * parts
        if size >= 1 and size % unit:
            lower = size // unit * unit
            choice = f"{lower} or {lower + unit}" if lower else str(unit)
            into = f"into train.accumulate={parts} parts " if parts > 1 else ""
            yield f"{key}={size} does not divide {into}among {device_count} devices; use {choice}"


def _numbers(config: Config) -> Iterator[str]:
    values, train = cfg.flatten(config), config.train
    for key, least in _AT_LEAST.items():
        if not least <= values[key] <= _LARGEST:
            yield f"{key}={values[key]}: must be from {least} to {_LARGEST}"
    for key in ("eval.threshold", "infer.threshold"):
        if not 0 < values[key] < 1:  # also refuses nan
            yield f"{key}={values[key]}: must be a probability between 0 and 1, without the ends"
    if config.eval.lesion_iou is not None and not 0 < config.eval.lesion_iou <= 1:
        yield f"eval.lesion_iou={config.eval.lesion_iou}: must be above 0 and at most 1"
    if not 0 <= config.eval.tolerance < math.inf:
        yield f"eval.tolerance={config.eval.tolerance}: must be a finite distance, at least 0"
    if not all(0 < step < math.inf for step in config.eval.spacing or ()):
        yield f"eval.spacing={config.eval.spacing}: must be finite distances above 0"
    for key in ("train.learning_rate", "train.save_minutes"):
        if not 0 < values[key] < math.inf:
            yield f"{key}={values[key]}: must be a finite number above 0"
    if not 0 <= train.warmup_epochs < math.inf:
        yield f"train.warmup_epochs={train.warmup_epochs}: must be a finite number of epochs, at least 0"
    if not 0 <= config.infer.blur < math.inf:
        yield f"infer.blur={config.infer.blur}: must be a finite number of pixels, at least 0"
    if config.data.mask_threshold is not None and not 0 <= config.data.mask_threshold <= 254:
        yield f"data.mask_threshold={config.data.mask_threshold}: must be from 0 to 254"
    for name, value in train.loss_options.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"train.loss_options.{name}={value}: must be finite"


def _sizes(config: Config) -> Iterator[str]:
    model = config.model
    rate, layers = model.dropout_rate, model.num_layers
    if not 0 <= rate < 1:
        yield f"model.dropout_rate={rate}: must be at least 0 and below 1"
    elif 1 <= layers <= _DEEPEST and rate * layers >= 1:
        deepest = f"level {layers} would drop {rate * layers:.3g}"
        yield f"model.dropout_rate={rate}: {deepest}; must be below {1 / layers:.3g}"
    if not 1 <= layers <= _DEEPEST:
        yield f"model.num_layers={layers}: must be from 1 to {_DEEPEST}"
    factor = 2**layers if 1 <= layers <= _DEEPEST else 1
    window = config.train.loss_options.get("window", _SSIM_WINDOW)
    window = window if isinstance(window, int) else _SSIM_WINDOW
    for key, size in (("image_width", model.image_width), ("image_height", model.image_height)):
        if not 1 <= size <= _LARGEST:
            yield f"model.{key}={size}: must be a positive number of pixels, a multiple of {factor}"
        elif size % factor:
            nearest = max(factor, (size + factor // 2) // factor * factor)
            yield (
                f"model.{key}={size} does not halve {layers} times (multiple of {factor}); nearest {nearest}"
                + (", or a smaller model.num_layers" if size < factor else "")
            )
        elif size < window and config.train.loss in ("ssim", "ms_ssim", "hybrid", "unet3plus"):
            yield f"model.{key}={size}: train.loss={config.train.loss} compares windows of {window} pixels"


def _names(config: Config) -> Iterator[str]:
    train, data = config.train, config.data
    if train.loss not in cfg.LOSS_NAMES and not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", train.loss):
        yield (
            f"train.loss={train.loss!r}: unknown loss{suggest(train.loss, cfg.LOSS_NAMES)}; known are "
            f"{', '.join(cfg.LOSS_NAMES)}, "
            "or 'package.module:function' for a function of your own"
        )
    for name in train.metrics:
        if name.removeprefix("val_") not in cfg.METRIC_NAMES:
            known = " ".join(cfg.METRIC_NAMES)
            yield f"train.metrics: unknown column {name!r}; known are {known}, each also with the prefix val_"
    for name in train.loss_options:
        if not name.isidentifier():
            yield f"train.loss_options: {name!r} is no name of an option"
    if data.test_sites and data.split != "site":
        yield f"data.test_sites={','.join(data.test_sites)}: needs data.split=site, found data.split={data.split}"
    if any(not site for site in data.test_sites):
        yield "data.test_sites: an empty name"


def _paths(config: Config) -> Iterator[str]:
    values = cfg.flatten(config)
    usable = {}
    for key in (*cfg.PATHS, "config"):
        path = values[key]
        if path is not None and (not path.strip()):
            yield f"{key}={path!r}: is no path"
        elif path is not None:
            usable[key] = os.path.realpath(path)
    for pair in _PAIRS:
        for key, other in (pair, pair[::-1]):
            if values[key] is not None and values[other] is None:
                yield f"{key} is set without {other}: give both"
    if values["data.test_images"] is not None and values["data.train_images"] is None:
        yield "data.test_images is set without data.train_images: give both"
    if values["data.root"] is not None and values["data.train_images"] is not None:
        yield "data.root and data.train_images are both set: give one of them"
    if values["infer.masks"] is not None and values["infer.images"] is None:
        yield "infer.masks is set without infer.images: give both"
    for key in usable.keys() & set(_OUTPUT_PATHS):
        for source in usable.keys() & {*cfg.INPUT_PATHS, "infer.images", "infer.masks"}:
            if usable[key] == usable[source]:
                yield f"{key}={values[key]} is also {source}: nothing is written into a folder that is read"
            elif source in cfg.INPUT_PATHS and usable[key].startswith(usable[source].rstrip(os.sep) + os.sep):
                yield f"{key}={values[key]} lies in {source}={values[source]}: nothing is written into a data set"
