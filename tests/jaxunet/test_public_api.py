"""The public names are these, each is described, and importing them touches no device."""

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxunet
from jaxunet.losses import LOSSES

MODULES = ["jaxunet"] + [module.name for module in pkgutil.walk_packages(jaxunet.__path__, "jaxunet.")]


def public_members() -> list[tuple[str, object]]:
    """Functions and classes written in the package, and the methods of its classes, by full name."""
    members = []
    for name in MODULES:
        for attribute, value in vars(importlib.import_module(name)).items():
            if attribute.startswith("_") or getattr(value, "__module__", None) != name:
                continue
            if inspect.isfunction(value) or inspect.isclass(value):
                members.append((f"{name}.{attribute}", value))
            if inspect.isclass(value):
                members += [
                    (f"{name}.{attribute}.{method}", function)
                    for method, function in vars(value).items()
                    if not method.startswith("_") and inspect.isfunction(function) and function.__module__ == name
                ]
    return members


def test_the_public_names_are_these():
    assert sorted(jaxunet.__all__) == jaxunet.__all__
    assert jaxunet.__all__ == [
        "TrainState",
        "UNet",
        "abstract_state",
        "augment",
        "checkpoint",
        "compiler",
        "distance",
        "eval_step",
        "init_state",
        "layers",
        "losses",
        "metrics",
        "predict_step",
        "sharding",
        "step",
        "surface",
        "train_step",
    ]
    assert all(hasattr(jaxunet, name) for name in jaxunet.__all__)
    assert all(hasattr(jaxunet.losses, name) for name in jaxunet.losses.__all__)
    assert all(hasattr(jaxunet.metrics, name) for name in jaxunet.metrics.__all__)


def test_names_that_do_not_change():
    assert list(inspect.signature(jaxunet.UNet).parameters)[:2] == ["base_filters", "num_layers"]
    model = jaxunet.UNet(base_filters=16, num_layers=6, num_classes=1, dropout_rate=0.08, dtype=jnp.float32)
    assert model == jaxunet.UNet()
    call = inspect.signature(jaxunet.UNet.__call__).parameters
    assert list(call) == ["self", "images", "train"]
    assert call["train"].default is False
    assert set(LOSSES) >= {"bce", "dice", "jaccard", "ssim", "bce_dice", "bce_jaccard", "hybrid"}
    for name, entry in LOSSES.items():
        assert getattr(jaxunet.losses, f"{name}_loss") is entry.fn
        assert f"{name}_loss" in jaxunet.losses.__all__
    for name in ("accuracy", "dice_coef", "jaccard", "sensitivity", "specificity", "precision"):
        assert list(inspect.signature(getattr(jaxunet.metrics, name)).parameters) == ["logits", "masks", "weight"]
    for name in ("PixelSums", "add", "pixel_sums", "score_table", "lesion_counts", "probability_histogram"):
        assert name in jaxunet.metrics.__all__
    for name, score in jaxunet.metrics.SCORES.items():
        assert getattr(jaxunet.metrics, score.__name__) is score, name
        assert score.__name__ in jaxunet.metrics.__all__
    for name in ("CheckpointError", "Checkpoints", "save_weights", "load_weights"):
        assert hasattr(jaxunet.checkpoint, name)


def test_parameter_names_do_not_change():
    shapes = jax.eval_shape(jaxunet.UNet(num_layers=2).init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"]
    assert set(shapes) == {
        "head",
        *(f"encoder{level}_conv{number}" for level in (0, 1, 2) for number in (1, 2)),
        *(f"decoder{level}_conv{number}" for level in (0, 1) for number in (1, 2)),
        *(f"decoder{level}_up" for level in (0, 1)),
    }
    assert all(set(layer) == {"kernel", "bias"} for layer in shapes.values())
    assert shapes["decoder1_up"]["kernel"].shape == (2, 2, 64, 32)
    assert shapes["decoder1_conv1"]["kernel"].shape == (3, 3, 64, 32)


@pytest.mark.parametrize(
    ("name", "member"), public_members(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_public_function_and_class_is_described(name, member):
    text = inspect.getdoc(member)
    assert text, name
    assert text[0].isupper() or text[0] == "`", name
    assert text.splitlines()[0].rstrip().endswith((".", ":", ";", "`")) or "." in text, name
    if inspect.isclass(member) and "Attributes:" in text:
        for field in getattr(member, "__dataclass_fields__", {}):
            if field not in {"parent", "name"}:  # flax adds these
                assert f"{field}:" in text, f"{name}.{field}"


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_described(name):
    assert importlib.import_module(name).__doc__


def test_importing_starts_no_backend_and_changes_no_setting():
    script = """
import json, os, warnings
import jax
from jax._src import xla_bridge
before, environment = dict(jax.config.values), dict(os.environ)
import jaxunet
print(json.dumps({
    "backends": xla_bridge.backends_are_initialized(),
    "settings": [name for name, value in jax.config.values.items() if before.get(name, value) != value],
    "environment": [name for name in os.environ if environment.get(name) != os.environ[name]],
    "above": [name for name in ("data_pipeline", "experiments") if name in __import__("sys").modules],
}))
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    assert json.loads(result.stdout) == {"backends": False, "settings": [], "environment": [], "above": []}


def test_the_package_is_typed():
    assert (Path(jaxunet.__file__).parent / "py.typed").exists()
