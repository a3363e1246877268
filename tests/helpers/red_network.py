"""A stand-in for a trained network: tumour is where the image is red."""

from pathlib import Path

import jax
import numpy as np
from PIL import Image

from experiments.build import Run
from experiments.config import Config, override
from experiments.predictor import Predictor
from jaxunet.sharding import make_mesh

SIZE = (16, 32)


class RedIsTumour:
    """Stands in for a network: the probability is high where the first channel is, the weight shifts it."""

    def __init__(self, classes=1):
        self.classes = classes

    def apply(self, variables, images):
        logits = (images[..., :1].astype("float32") - 128) / 8 + variables["params"]["shift"]
        return jax.numpy.concatenate([logits * (-1) ** k for k in range(self.classes)], axis=-1)


def run_of(directory, *, shift=0.0, classes=1, channels=3, **options):
    config = override(
        Config(),
        {
            "model.image_height": SIZE[0],
            "model.image_width": SIZE[1],
            "model.image_channels": channels,
            "model.num_classes": classes,
            **{f"infer.{name}": str(value) if isinstance(value, Path) else value for name, value in options.items()},
        },
    )
    manifest = {"dataset": {"title": "SYNTHETIC"}}
    params = {"shift": np.float32(shift)}
    return Run(directory, config, RedIsTumour(classes), params, make_mesh(), manifest, {})


def predictor(*, batch_size=8, classes=1, channels=3):
    return Predictor(
        RedIsTumour(classes), {"shift": np.float32(0)}, image_shape=(*SIZE, channels), batch_size=batch_size
    )


def red(size=SIZE, box=(4, 10, 5, 20)):
    image = np.zeros((*size, 3), np.uint8)
    image[..., 1] = 50
    image[box[0] : box[1], box[2] : box[3], 0] = 255
    return image


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def pixels(path):
    return np.asarray(Image.open(path))
