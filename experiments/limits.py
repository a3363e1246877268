"""Checks a configuration before any file is read or device touched, and reports all problems together."""

import math
import os
import re
from collections.abc import Iterator, Sequence

from experiments.config import METRIC_NAMES, Config, flatten, keys_of, options, raise_problems
from experiments.fields import Role, convert

_SSIM_LOSSES = ("ssim", "ms_ssim", "hybrid", "unet3plus")
_SSIM_WINDOW = 11  # pixels, the default of the losses above
_PAIRS = (("data.train_images", "data.train_masks"), ("data.test_images", "data.test_masks"))


def validate(config: Config) -> Config:
    """Returns `config` if every value has its type and lies in its range.

    Args:
      config: the configuration; paths are compared, not opened.

    Raises:
      ConfigError: all problems in one message, one per line.
    """
    values, problems = flatten(config), []
    for key, option in options().items():
        try:
            convert(values[key], option.kind)
        except ValueError as error:
            problems.append(f"{key}={values[key]!r}: expected {error}")
    if not problems:  # ranges can only be checked for values of the right type
        problems = [*_ranges(config), *_sizes(config), *_names(config), *_paths(config)]
    raise_problems(problems)
    return config


def check_devices(config: Config, device_count: int, keys: Sequence[str]) -> None:
    """Checks that every batch divides among the devices.

    Args:
      config: the run.
      device_count: devices of the mesh, over all processes.
      keys: the batch sizes that the program uses.

    Raises:
      ConfigError: `train.batch_size=6 does not divide among 4 devices; use 4 or 8`. With `train.accumulate=2` each of
        the two microbatches must divide.
    """
    values, problems = flatten(config), []
    for key in keys:
        size, microbatches = values[key], config.train.accumulate if key == "train.batch_size" else 1
        unit = device_count * microbatches
        if size >= 1 and size % unit:
            lower = size // unit * unit
            choice = f"{lower} or {lower + unit}" if lower else str(unit)
            into = f"into train.accumulate={microbatches} microbatches " if microbatches > 1 else ""
            problems.append(f"{key}={size} does not divide {into}among {device_count} devices; use {choice}")
    raise_problems(problems)


def _ranges(config: Config) -> Iterator[str]:
    values = flatten(config)
    for key, option in options().items():
        value = values[key]
        numbers = value if isinstance(value, tuple) else () if value is None else (value,)
        if option.range and (found := [p for n in numbers if (p := option.range.problem(n))]):
            yield f"{key}={value}: {found[0]}"
    for name, value in config.train.loss_options.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"train.loss_options.{name}={value}: must be finite"


def _sizes(config: Config) -> Iterator[str]:
    model = config.model
    rate, layers = model.dropout_rate, model.num_layers
    if not 1 <= layers <= 16:
        return  # reported as out of range
    if rate * layers >= 1 > rate:
        deepest = f"level {layers} would drop {rate * layers:.3g}"
        yield f"model.dropout_rate={rate}: {deepest}; must be below {1 / layers:.3g}"
    factor = 2**layers
    window = config.train.loss_options.get("window", _SSIM_WINDOW)
    window = window if isinstance(window, int) else _SSIM_WINDOW
    for key, size in (("image_width", model.image_width), ("image_height", model.image_height)):
        if size >= 1 and size % factor:
            nearest = max(factor, (size + factor // 2) // factor * factor)
            yield (
                f"model.{key}={size} does not halve {layers} times (multiple of {factor}); nearest {nearest}"
                + (", or a smaller model.num_layers" if size < factor else "")
            )
        elif size < window and config.train.loss in _SSIM_LOSSES:
            yield f"model.{key}={size}: train.loss={config.train.loss} compares windows of {window} pixels"


def _names(config: Config) -> Iterator[str]:
    train, data = config.train, config.data
    # Whether the name is known is for `build.loss` to check: that needs the library, which imports jax.
    if not re.fullmatch(r"[^\W\d]\w*|[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", train.loss):
        yield f"train.loss={train.loss!r}: expected the name of a loss, or package.module:function"
    for name in train.metrics:
        if name.removeprefix("val_") not in METRIC_NAMES:
            known = " ".join(METRIC_NAMES)
            yield f"train.metrics: unknown column {name!r}; known are {known}, each also with the prefix val_"
    for name in train.loss_options:
        if not name.isidentifier():
            yield f"train.loss_options: {name!r} is not a valid name of an option"
    if data.test_sites and data.split != "site":
        yield f"data.test_sites={','.join(data.test_sites)}: needs data.split=site, found data.split={data.split}"
    if any(not site for site in data.test_sites):
        yield "data.test_sites: an empty name"


def _paths(config: Config) -> Iterator[str]:
    values, real = flatten(config), {}
    for key, option in options().items():
        path = values[key]
        if option.is_path and path is not None:
            if path.strip():
                real[key] = os.path.realpath(path)
            else:
                yield f"{key}={path!r}: not a path"
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
    for key in real.keys() & set(keys_of(Role.OUTPUT)):
        for source in real.keys() & set(keys_of(Role.INPUT)):
            if real[key] == real[source]:
                yield f"{key}={values[key]} is also {source}: nothing is written into a folder that is read"
            elif source.startswith("data.") and real[key].startswith(real[source].rstrip(os.sep) + os.sep):
                yield f"{key}={values[key]} lies in {source}={values[source]}: nothing is written into a data set"
