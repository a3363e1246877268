"""From configuration to objects: the only place where a name becomes a function."""

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

import data_pipeline
from data_pipeline.prepare import prepare
from data_pipeline.prepared import Prepared
from data_pipeline.source import Source
from data_pipeline.splits import Split, split
from experiments.config import Config, ConfigError, data_paths, read_run
from experiments.fields import suggest
from experiments.run_directory import read_manifest
from jaxunet.augment import AUGMENTATIONS, Augment, compose
from jaxunet.checkpoint import Checkpoints, abstract_like
from jaxunet.losses import LOSSES, averaged
from jaxunet.model import UNet
from jaxunet.sharding import make_mesh, replicated
from jaxunet.step import abstract_state, with_context


def model(config: Config) -> UNet:
    """Returns the network."""
    m = config.model
    return UNet(
        base_filters=m.base_filters,
        num_layers=m.num_layers,
        num_classes=m.num_classes,
        dropout_rate=m.dropout_rate,
        dtype=jnp.dtype(m.dtype),
        remat=m.remat,
    )


def image_shape(config: Config) -> tuple[int, int, int]:
    """Returns `(H, W, C)` of one image."""
    return config.model.image_height, config.model.image_width, config.model.image_channels


BASE_BATCH = 4
"""The reference's batch size, for which its learning rate was chosen."""


def learning_rate(config: Config, steps_per_epoch: int) -> optax.ScalarOrSchedule:
    """Returns the step size: a number, or with a warm-up a function of the step.

    Larger batches have less noise and allow larger steps: in proportion for plain gradient descent (Goyal et al. 2017,
    arXiv 1706.02677, who also warm up), with the square root for Adam (Malladi et al. 2022, arXiv 2205.10287).
    """
    t = config.train
    growth = {"constant": 1.0, "linear": t.batch_size / BASE_BATCH, "sqrt": (t.batch_size / BASE_BATCH) ** 0.5}
    full = t.learning_rate * growth[t.lr_rule]
    steps = round(t.warmup_epochs * steps_per_epoch)
    return optax.linear_schedule(full / steps, full, steps - 1) if steps > 1 else full


def optimizer(config: Config, steps_per_epoch: int) -> optax.GradientTransformation:
    """Returns Adam with the reference's constants.

    Keras applies epsilon after a different form of the bias correction, so the first steps differ by less than 1e-6 of
    the parameters' scale.
    """
    return optax.adam(learning_rate(config, steps_per_epoch), b1=0.9, b2=0.999, eps=1e-7)


def loss(config: Config) -> Callable[..., jax.Array]:
    """Returns a loss by its name in `LOSSES` or its import path `package.module:function`, with its options bound.

    It is first evaluated on shapes alone, so that its errors appear before any data is read.

    Raises:
      ConfigError: there is no such loss, it takes no such option, fails, or does not return a scalar.
    """
    name, options = config.train.loss, config.train.loss_options
    if ":" not in name and name not in LOSSES:
        raise ConfigError(
            f"train.loss={name!r}: unknown loss{suggest(name, LOSSES)}; known are {', '.join(LOSSES)}, "
            "or 'package.module:function' for your own function"
        )
    fn = LOSSES[name].fn if name in LOSSES else _import_loss(name)
    try:
        parameters = inspect.signature(fn).parameters.values()
    except ValueError as error:
        raise ConfigError(f"train.loss={name!r} cannot be called on logits and masks: {error}") from error
    named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    named += [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][2:]  # after logits and masks
    known = [option for option in named if option not in ("weight", "patient", "step")]
    unknown = sorted(options.keys() - set(known))
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise ConfigError(
            f"train.loss_options: {name} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}"
        )
    options = dict(options)
    if "reduce" in named:
        fn = averaged(fn, options.pop("reduce", "batch"))
    bound = partial(fn, **options) if options else fn
    _try_loss(bound, config)
    return bound


def augmentation(config: Config) -> Augment | None:
    """Returns the augmentations of the training step, composed; None if there are none.

    Raises:
      ConfigError: an unknown name.
    """
    names = config.train.augment
    if unknown := [name for name in names if name not in AUGMENTATIONS]:
        raise ConfigError(
            f"train.augment: unknown augmentation {unknown[0]!r}{suggest(unknown[0], AUGMENTATIONS)}; "
            f"known are {', '.join(AUGMENTATIONS)}"
        )
    return compose({name: {} for name in names})


def _try_loss(fn: Callable[..., jax.Array], config: Config) -> None:
    height, width, _ = image_shape(config)
    logits = jax.ShapeDtypeStruct((2, height, width, config.model.num_classes), jnp.float32)
    masks, weight = jax.ShapeDtypeStruct(logits.shape, jnp.uint8), jax.ShapeDtypeStruct((2,), jnp.float32)
    patient, step = jax.ShapeDtypeStruct((2,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    given = "".join(f", {key}={value}" for key, value in config.train.loss_options.items())
    try:
        call = with_context(fn)
        context = {"weight": weight, "patient": patient, "step": step}
        result = jax.eval_shape(lambda x, y, kwargs: call(x, y, **kwargs), logits, masks, context)
    except Exception as error:  # a user's function may raise anything
        raise ConfigError(
            f"train.loss={config.train.loss}{given} fails on logits and masks of shape {logits.shape}: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}\n"
            "JAXUNET_TRACEBACK=1 shows where"
        ) from error
    shape, dtype = getattr(result, "shape", None), getattr(result, "dtype", None)
    if shape != () or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ConfigError(
            f"train.loss={config.train.loss}{given} returns {dtype or type(result).__name__}{list(shape or ())}, "
            "expected one floating-point number"
        )


def _import_loss(path: str) -> Callable[..., jax.Array]:
    module, _, attribute = path.partition(":")
    try:
        fn = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"train.loss={path!r} cannot be imported ({error}); expected package.module:function "
            "with the module on the Python path"
        ) from error
    if not callable(fn):
        raise ConfigError(f"train.loss={path!r} is of type {type(fn).__name__}, expected a function")
    return fn


def source(config: Config) -> Source:
    """Opens the slices that the configuration names.

    Raises:
      ConfigError: the network has more classes than the masks.
      DataError: files are missing or damaged.
    """
    if config.model.num_classes != 1:
        raise ConfigError(
            f"model.num_classes={config.model.num_classes}, but every source has masks of 1 class; "
            "train from Python with your own masks"
        )
    d = config.data
    folders = [("train", d.train_images, d.train_masks), ("test", d.test_images, d.test_masks)]
    pairs = [(subset, images, masks) for subset, images, masks in folders if images and masks]
    height, width, channels = image_shape(config)
    return data_pipeline.open_source(
        d.root,
        data_pipeline.SourceOptions(
            size=(height, width),
            channels=channels,
            resize=d.resize,
            mask_threshold=d.mask_threshold,
            phantom_patients=d.phantom_patients,
        ),
        pairs=pairs or None,
    )


def dataset(config: Config, *, progress: bool = True) -> Prepared:
    """Prepares the slices of `source(config)`, or finds them prepared in the cache."""
    return prepare(source(config), config.data.cache_dir, datasets=[*data_paths(config).values()], progress=progress)


def data_split(config: Config, data: Prepared) -> Split:
    """Divides the prepared slices."""
    d = config.data
    return split(data.entries, by=d.split, slices=d.slices, seed=d.split_seed, test_sites=d.test_sites)


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished or running training, read back.

    Attributes:
      directory: the run directory.
      config: its configuration.
      model: the network.
      params: the parameters of the best checkpoint, on every device of `mesh`.
      mesh: all devices.
      manifest: the content of `manifest.json`.
      best: the record of the best checkpoint: epoch, step and validation loss.
    """

    directory: Path
    config: Config
    model: UNet
    params: Any
    mesh: Mesh
    manifest: dict[str, Any]
    best: dict[str, Any]


def load_run(run_dir: str | Path, config: Config | None = None) -> Run:
    """Reads a run directory and its best checkpoint.

    Args:
      run_dir: the run directory.
      config: the configuration to use instead of the saved one (with other `eval` or `infer` options).

    Raises:
      ConfigError: there is no run.
      CheckpointError: it has no checkpoint yet, or a damaged one.
    """
    directory = Path(run_dir)
    config = config or read_run(directory)
    manifest = read_manifest(directory)
    network, mesh = model(config), make_mesh()
    abstract = abstract_state(network, optax.identity(), image_shape=image_shape(config)).params
    with Checkpoints(directory / "checkpoints" / "best", keep=None) as best:
        params, record = best.restore(abstract_like(abstract, replicated(mesh)))
    return Run(directory, config, network, params, mesh, manifest, record)
