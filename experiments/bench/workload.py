"""What every peer computes: the reference's network, its weights, a batch and the step.

NumPy only: each peer copies the same numbers into its own framework, so that all must find the same loss.
"""

import dataclasses

import numpy as np

CHANNELS = 3
LEARNING_RATE = 1e-3
ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-7}
"""The reference's constants of Adam."""

SSIM = {"window": 11, "sigma": 1.5, "c1": 0.01**2, "c2": 0.03**2}
"""Window and constants of the structural similarity in the hybrid loss, for values from 0 to 1."""

Weights = dict[str, dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Workload:
    """A task on a batch.

    Attributes:
      task: "train" (forward, loss, backward, Adam; dropout on) or "predict" (probabilities).
      loss: "bce" or "hybrid", the mean of BCE, SSIM loss and Jaccard loss.
      size: height and width of the images in pixels, a multiple of `2**num_layers`.
      batch: images per step.
      base_filters: filters at full resolution.
      num_layers: poolings.
      dropout_rate: level i has i times this rate.
      dtype: of the computation; parameters and optimizer are float32.
      compiled: whether a framework that is eager by default compiles.
    """

    task: str = "train"
    loss: str = "bce"
    size: int = 256
    batch: int = 4
    base_filters: int = 16
    num_layers: int = 6
    dropout_rate: float = 0.08
    dtype: str = "float32"
    compiled: bool = False

    def filters(self, level: int) -> int:
        """Filters of a level."""
        return self.base_filters * 2**level

    @property
    def title(self) -> str:
        """What is measured, in words."""
        return f"training step, {self.loss}" if self.task == "train" else "inference"


def layer_shapes(work: Workload) -> dict[str, tuple[int, int, int, int]]:
    """Shapes `[h, w, in, out]` of all kernels, in the order of the computation, by the names of `jaxunet.UNet`."""
    shapes, incoming = {}, CHANNELS
    for level in range(work.num_layers + 1):
        count = work.filters(level)
        shapes[f"encoder{level}_conv1"] = (3, 3, incoming, count)
        shapes[f"encoder{level}_conv2"] = (3, 3, count, count)
        incoming = count
    for level in reversed(range(work.num_layers)):
        count = work.filters(level)
        shapes[f"decoder{level}_up"] = (2, 2, incoming, count)
        shapes[f"decoder{level}_conv1"] = (3, 3, 2 * count, count)
        shapes[f"decoder{level}_conv2"] = (3, 3, count, count)
        incoming = count
    shapes["head"] = (1, 1, incoming, 1)
    return shapes


def parameter_count(work: Workload) -> int:
    """Parameters of the network: 31 110 001 at the defaults."""
    return sum(int(np.prod(shape)) + shape[-1] for shape in layer_shapes(work).values())


def weights(work: Workload) -> Weights:
    """Draws `{layer: {"kernel": [h, w, in, out], "bias": [out]}}`, float32, in the layout of `jaxunet`.

    Normal, with the variance that keeps activations at one scale: 2 / fan-in before a ReLU, 1 / fan-in elsewhere. One
    of the four taps of an up-convolution reaches an output pixel.
    """
    rng, drawn = np.random.default_rng(0), {}
    for name, (height, width, incoming, outgoing) in layer_shapes(work).items():
        variance = 2 / (height * width * incoming) if "_conv" in name else 1 / incoming
        kernel = rng.standard_normal((height, width, incoming, outgoing), np.float32) * np.float32(variance**0.5)
        drawn[name] = {"kernel": kernel, "bias": rng.uniform(-0.1, 0.1, outgoing).astype(np.float32)}
    return drawn


def images_and_masks(work: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Draws bright discs in noise, `uint8[B, H, W, 3]`, and the discs, `uint8[B, H, W, 1]` in {0, 1}."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[: work.size, : work.size]
    centres = rng.uniform(0.3, 0.7, (work.batch, 2, 1, 1)) * work.size
    radii = rng.uniform(0.1, 0.25, (work.batch, 1, 1)) * work.size
    mask = (y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2 < radii**2
    image = rng.integers(0, 100, (work.batch, work.size, work.size, CHANNELS)) + 120 * mask[..., None]
    return image.astype(np.uint8), mask[..., None].astype(np.uint8)


def gaussian() -> np.ndarray:
    """The normalised window of the structural similarity along one axis, float32 `[window]`."""
    offsets = np.arange(SSIM["window"]) - (SSIM["window"] - 1) / 2
    window = np.exp(-(offsets**2) / (2 * SSIM["sigma"] ** 2))
    return (window / window.sum()).astype(np.float32)
