"""The reference's .ini files: every key, and the option of `Config` it sets."""

import configparser
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.config import ConfigError, options, raise_problems
from experiments.fields import convert, literal, suggest

INI_KEYS: Mapping[tuple[str, str], str] = types.MappingProxyType(
    {
        ("model", "image_width"): "model.image_width",
        ("model", "image_height"): "model.image_height",
        ("model", "image_channels"): "model.image_channels",
        ("model", "num_classes"): "model.num_classes",
        ("model", "base_filters"): "model.base_filters",
        ("model", "num_layers"): "model.num_layers",
        ("model", "dropout_rate"): "model.dropout_rate",
        ("model", "learning_rate"): "train.learning_rate",
        ("model", "dice_loss"): "train.loss",  # True: hybrid, False: bce
        ("model", "show_summary"): "model.show_summary",
        ("train", "epochs"): "train.epochs",
        ("train", "batch_size"): "train.batch_size",
        ("train", "patience"): "train.patience",
        ("train", "metrics"): "train.metrics",
        ("train", "model_dir"): "run_dir",
        ("train", "eval_dir"): "train.eval_dir",
        ("train", "image_datapath"): "data.train_images",
        ("train", "mask_datapath"): "data.train_masks",
        ("eval", "image_datapath"): "data.test_images",
        ("eval", "mask_datapath"): "data.test_masks",
        ("infer", "images_dir"): "infer.images",
        ("infer", "output_dir"): "infer.output_dir",
        ("infer", "merged_dir"): "infer.merged_dir",
        ("mask", "blur"): "infer.blur",  # True: a sigma of 1 pixel
        ("mask", "binarize"): "infer.binarize",
        ("mask", "threshold"): "infer.threshold",  # a grey value of 255
    }
)
"""Every key of the reference's .ini files and the option it sets."""


def read_ini(path: str | Path) -> dict[str, Any]:
    """Returns the settings of an .ini file by dotted key.

    Values are Python literals. Image folders make a fixed split by slice; keys that the file leaves out keep the
    defaults of `Config()`.

    Args:
      path: the file, UTF-8.

    Raises:
      ConfigError: the file is missing or damaged; or all unknown sections, unknown keys and unusable values, in one
        message.
    """
    parser = configparser.ConfigParser(interpolation=None, default_section="\0")
    parser.optionxform = str  # type: ignore[method-assign,assignment]  # keep the case of unknown keys
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            parser.read_string(file.read(1_000_000), source=str(path))
    except FileNotFoundError:
        raise ConfigError(f"--config={path}: the file does not exist") from None
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--config={path} cannot be read: {reason}") from error
    problems, settings = [], {"data.split": "slice"}
    for section in parser.sections():
        known = [key for name, key in INI_KEYS if name == section]
        if not known:
            problems.append(f"unknown section [{section}]" + suggest(section, {name for name, _ in INI_KEYS}))
            continue
        for key, text in parser[section].items():
            where = f"[{section}] {key}"
            if key not in known:
                problems.append(f"unknown key {where}" + suggest(key, known))
                continue
            try:
                settings[INI_KEYS[section, key]] = _ini_value(section, key, text)
            except ValueError as error:
                problems.append(f"{where} = {text}: expected {error}")
    raise_problems(problems, f"{path}: ")
    return settings


def _ini_value(section: str, key: str, text: str) -> Any:
    value, target = literal(text), INI_KEYS[section, key]
    if key == "dice_loss":
        return "hybrid" if convert(value, bool) else "bce"
    if key == "blur" and isinstance(value, bool):
        return float(value)
    if (section, key) == ("mask", "threshold"):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 255:
            raise ValueError("a grey value above 0 and below 255")
        return value / 255
    return convert(value, options()[target].kind)
