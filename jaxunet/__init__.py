"""Brain-tumour segmentation in pure JAX: arrays in, arrays out.

Importing this package initialises no device, parses no flag and changes no global state.
"""

from jaxunet import augment, checkpoint, compiler, distance, layers, losses, metrics, sharding, step, surface
from jaxunet.model import UNet
from jaxunet.step import TrainState, abstract_state, eval_step, init_state, predict_step, train_step

__version__ = "0.1.0"

__all__ = [
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
