"""The rule by which weights, images, logits and masks of the goldens are drawn: NumPy only.

The script that makes the goldens and the test that reads them both call these functions, so that only OUTPUTS are
stored. A generator is seeded by the name of what it draws, so the order of drawing does not matter. Only uniform
draws, the four operations and square roots are used: their bits are the same on every machine, which those of
``exp`` or of a normal draw need not be. Layouts are those of `jaxunet`: convolution kernels `[h, w, in, out]`,
up-convolution kernels `[2, 2, in, out]` in the unflipped order.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

NETWORK_STRIDE = 8  # the full network's probabilities are stored at every 8th pixel, in both directions
GRADIENT_STRIDE = 3  # loss gradients are stored at every 3rd element of the flattened array
CASE_SHAPE = (32, 40)  # at least 11 each way, which SSIM needs; not square, so that swapped axes show

# (name, batch size); what each of them holds is described at `loss_case`.
MODERATE_CASES = {"random": 2, "random_batch": 4, "blob": 2, "inverse": 2, "one_pixel": 2, "one_image": 4, "tie": 2}
CLIPPED_CASE = {"clipped": 2}
EMPTY_CASES = {"empty": 2, "underflow": 2}
CASES = MODERATE_CASES | CLIPPED_CASE | EMPTY_CASES

LOSSES = ("bce", "dice", "jaccard", "ssim", "bce_dice", "bce_jaccard", "hybrid")
METRICS = ("accuracy", "dice_coef", "jaccard_coef", "sensitivity", "specificity", "precision")

Weights = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Network:
    """The sizes of a network and the rule's constants for it.

    Attributes:
      height: input height, pixels.
      width: input width, pixels.
      base_filters: filters at level 0.
      num_layers: poolings.
      channels: input channels.
      classes: output channels.
      dropout_rate: rate per level; dropout is off where the goldens are computed.
      batch: images drawn.
      head_gain: multiplies the head's kernel; the logits' spread.
      head_bias: the head's bias; the logits' centre.
    """

    height: int
    width: int
    base_filters: int
    num_layers: int
    channels: int = 3
    classes: int = 1
    dropout_rate: float = 0.08
    batch: int = 2
    head_gain: float = 1.0
    head_bias: float = 0.0


DOCUMENTED = Network(height=256, width=256, base_filters=16, num_layers=6, head_gain=2.5, head_bias=2.3)
SMALL = Network(height=16, width=24, base_filters=2, num_layers=2, head_gain=6, head_bias=0.4)


def generator(name: str) -> np.random.Generator:
    """Returns the generator that belongs to a name."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def uniform(rng: np.random.Generator, shape: tuple[int, ...], limit: float) -> np.ndarray:
    """Draws float32 values of `shape` in [-limit, limit)."""
    values = rng.random(shape, dtype=np.float32)
    values *= np.float32(2 * limit)
    values -= np.float32(limit)
    return values


def layer_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Returns the kernel shape of every layer that has weights, by name, in the order of computation."""
    filters = [network.base_filters * 2**level for level in range(network.num_layers + 1)]
    shapes: dict[str, tuple[int, ...]] = {}
    incoming = network.channels
    for level, count in enumerate(filters):
        shapes[f"encoder{level}_conv1"] = (3, 3, incoming, count)
        shapes[f"encoder{level}_conv2"] = (3, 3, count, count)
        incoming = count
    for level in reversed(range(network.num_layers)):
        count = filters[level]
        shapes[f"decoder{level}_up"] = (2, 2, incoming, count)
        shapes[f"decoder{level}_conv1"] = (3, 3, 2 * count, count)
        shapes[f"decoder{level}_conv2"] = (3, 3, count, count)
        incoming = count
    shapes["head"] = (1, 1, incoming, network.classes)
    return shapes


def weights(network: Network) -> Weights:
    """Draws `{layer: {"kernel": float32, "bias": float32}}`.

    Uniform with the variance that keeps activations of one size (2 / fan-in before a ReLU, 1 / fan-in elsewhere; an
    up-convolution's output pixel is reached by one of its four taps). Biases are not zero, so that they are tested.
    """
    drawn: Weights = {}
    for name, shape in layer_shapes(network).items():
        rng = generator(f"{network.num_layers} {network.base_filters} {name}")
        height, width, incoming, outgoing = shape
        limit = (6 / (height * width * incoming)) ** 0.5 if "_conv" in name else (3 / incoming) ** 0.5
        kernel = uniform(rng, shape, limit)
        bias = uniform(rng, (outgoing,), 0.1)
        if name == "head":
            kernel *= np.float32(network.head_gain)
            bias += np.float32(network.head_bias)
        drawn[name] = {"kernel": kernel, "bias": bias}
    return drawn


def images(network: Network) -> np.ndarray:
    """Draws `uint8[batch, height, width, channels]`: flat patches of several sizes and noise, 0 and 255 included."""
    rng = generator(f"images {network.height} {network.width}")
    shape = (network.batch, network.height, network.width, network.channels)
    total = rng.integers(-40, 41, shape)
    for patch in (network.height // 4, network.height // 8):
        rows, columns = -(-network.height // patch), -(-network.width // patch)
        grid = rng.integers(0, 160, (network.batch, rows, columns, network.channels))
        grid = grid.repeat(patch, axis=1).repeat(patch, axis=2)
        total = total + grid[:, : network.height, : network.width]
    return np.clip(total, 0, 255).astype(np.uint8)


def discs(rng: np.random.Generator, batch: int) -> np.ndarray:
    """Draws the signed distance in pixels to the edge of a disc, positive inside: `float32[batch, 32, 40, 1]`."""
    height, width = CASE_SHAPE
    rows, columns = np.mgrid[:height, :width]
    distances = []
    for _ in range(batch):
        row, column, radius = rng.integers(8, height - 8), rng.integers(8, width - 8), rng.integers(4, 8)
        distances.append(radius - np.sqrt((rows - row) ** 2 + (columns - column) ** 2))
    return np.stack(distances)[..., None].astype(np.float32)


def loss_case(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Draws the logits `float32[B, 32, 40, 1]` and the mask `uint8[B, 32, 40, 1]` of a case.

    random, random_batch: unrelated logits and masks. blob: a disc and a prediction near it. inverse: a disc and the
    opposite prediction. one_pixel: one true pixel an image. one_image: a disc in one image of four. tie: a quarter of
    the logits are exactly 0, probability one half. In these every probability lies within [2e-3, 1 - 2e-3].
    clipped: a blob so sure of itself, and wrong at its edge, that the clip of the probabilities at 1e-7 bites.
    empty: no true pixel. underflow: no true pixel and probabilities of exactly 0 in float32.
    """
    batch = CASES[name]
    shape = (batch, *CASE_SHAPE, 1)
    rng = generator(f"case {name}")
    noise = uniform(rng, shape, 4)
    if name in ("random", "random_batch"):
        return noise, (rng.random(shape, dtype=np.float32) < 0.3).astype(np.uint8)
    if name == "empty":
        return noise - np.float32(2), np.zeros(shape, np.uint8)
    if name == "underflow":
        return noise - np.float32(150), np.zeros(shape, np.uint8)
    if name == "one_pixel":
        masks = np.zeros(shape, np.uint8)
        for index in range(batch):
            masks[index, rng.integers(CASE_SHAPE[0]), rng.integers(CASE_SHAPE[1])] = 1
        return noise - np.float32(2), masks
    distance = discs(rng, batch)
    masks = (distance > 0).astype(np.uint8)
    logits = np.clip(distance + noise / 2, -5, 5)
    if name == "inverse":
        logits = -logits
    elif name == "one_image":
        masks[1:] = 0
    elif name == "tie":
        logits = np.where(rng.random(shape, dtype=np.float32) < 0.25, np.float32(0), logits)
    elif name == "clipped":
        logits = np.clip(distance - np.float32(2), -1, 1) * np.float32(25) + noise
    return logits.astype(np.float32), masks


def pool_input() -> np.ndarray:
    """Draws `float32[2, 6, 8, 3]` of few distinct values, so that most pooling windows hold a tie."""
    values = generator("pool").integers(0, 3, (2, 6, 8, 3)).astype(np.float32)
    values[1, :4] = 0  # flat background: the common tie
    return values


def pool_cotangent() -> np.ndarray:
    """Draws the gradient that reaches the pooled output, `float32[2, 3, 4, 3]`."""
    return uniform(generator("pool cotangent"), (2, 3, 4, 3), 1)


def upconv_input() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws `x float32[2, 3, 4, 5]`, a kernel `[2, 2, 5, 3]` (in, out; unflipped) and a bias `[3]`."""
    rng = generator("up-convolution")
    return uniform(rng, (2, 3, 4, 5), 1), uniform(rng, (2, 2, 5, 3), 1), uniform(rng, (3,), 1)


def quadratic() -> tuple[np.ndarray, np.ndarray]:
    """Returns curvature and start, `float32[8]`, of sum(curvature * w ** 2) / 2: gradients from 1e-7 to 1."""
    curvature = np.array([1, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7], np.float32)
    return curvature, np.ones(8, np.float32)


def checksum(arrays: Iterable[np.ndarray]) -> int:
    """Returns the CRC-32 of the arrays' bytes: shows at once whether a NumPy draws other numbers."""
    code = 0
    for array in arrays:
        code = zlib.crc32(np.ascontiguousarray(array).data, code)
    return code


def checksums() -> dict[str, int]:
    """Returns one checksum for every set of inputs that the rule draws."""
    codes = {f"case {name}": checksum(loss_case(name)) for name in CASES}
    codes["layers"] = checksum((pool_input(), pool_cotangent(), *upconv_input(), *quadratic()))
    for name, network in (("documented", DOCUMENTED), ("small", SMALL)):
        drawn = weights(network)
        codes[name] = checksum((images(network), *(array for layer in drawn.values() for array in layer.values())))
    return codes
