"""Computes the goldens of `test_keras_parity.py` with Keras and TensorFlow, which are no dependency of the project.

Made with Python 3.11, TensorFlow 2.21.0 (CPU), Keras 3.15.1 and NumPy 2.4.6; every file names its versions. To make
them again, in an environment of its own::

    python3.11 -m venv /tmp/keras && /tmp/keras/bin/pip install tensorflow-cpu==2.21.0 keras==3.15.1
    /tmp/keras/bin/python tests/goldens/make_keras.py

Written from the reference's topology and formulas. Weights, images, logits and masks come from `rules.py`, which the
test shares, so that only outputs are stored. The computed layers, losses and metrics are those of Keras wherever Keras
has them. Last digits may change from machine to machine: look at the printed summary before replacing a golden.
"""

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before the import: it silences the start-up notices

import keras
import numpy as np
import rules
import tensorflow as tf
from keras import layers, ops

FOLDER = Path(__file__).parent
EPSILON = 1e-7  # Keras' own: clip of probabilities, and the denominators of the counted metrics


# ---------------------------------------------------------------------------------------------------- network


def build(network: rules.Network) -> keras.Model:
    """Returns the reference's U-Net; its layers carry the names that the project uses."""
    filters = [network.base_filters * 2**level for level in range(network.num_layers + 1)]

    def convolve(tensor, name, count):
        return layers.Conv2D(count, 3, padding="same", activation="relu", kernel_initializer="he_normal", name=name)(
            tensor
        )

    def block(tensor, stage, level):
        tensor = convolve(tensor, f"{stage}{level}_conv1", filters[level])
        tensor = layers.Dropout(network.dropout_rate * level, name=f"{stage}{level}_dropout")(tensor)
        return convolve(tensor, f"{stage}{level}_conv2", filters[level])

    shape = (network.height, network.width, network.channels)
    inputs = layers.Input(shape, name="input")
    tensor = layers.Rescaling(1 / 255, name="scaling")(inputs)
    skips = []
    for level in range(network.num_layers):
        tensor = block(tensor, "encoder", level)
        skips.append(tensor)
        tensor = layers.MaxPooling2D(2, name=f"encoder{level}_pool")(tensor)
    tensor = block(tensor, "encoder", network.num_layers)
    for level in reversed(range(network.num_layers)):
        up = layers.Conv2DTranspose(filters[level], 2, strides=2, padding="same", name=f"decoder{level}_up")(tensor)
        tensor = layers.Concatenate(name=f"decoder{level}_concat")([up, skips[level]])
        tensor = block(tensor, "decoder", level)
    outputs = layers.Conv2D(network.classes, 1, activation="sigmoid", name="head")(tensor)
    return keras.Model(inputs, outputs)


def fill(model: keras.Model, drawn: rules.Weights) -> None:
    """Writes the rule's weights into the model; Keras keeps up-convolution kernels as `[h, w, out, in]`."""
    for name, weight in drawn.items():
        kernel = weight["kernel"].transpose(0, 1, 3, 2) if name.endswith("_up") else weight["kernel"]
        model.get_layer(name).set_weights([kernel, weight["bias"]])


def summary(model: keras.Model) -> list[dict]:
    """Returns one row a layer, in Keras' order: name, type, output shape, parameters, sources of its input."""
    rows = []
    for layer in model.layers:
        sources = [tensor._keras_history.operation.name for tensor in layer._inbound_nodes[0].input_tensors]
        rows.append(
            {
                "name": layer.name,
                "type": type(layer).__name__,
                "output_shape": list(layer.output.shape),
                "params": layer.count_params(),
                "connected_to": sources,
            }
        )
    return rows


def network_goldens() -> dict[str, np.ndarray]:
    """Returns the full network's probabilities at every 8th pixel; writes `summary.json` on the way."""
    network = rules.DOCUMENTED
    model = build(network)
    fill(model, rules.weights(network))
    rows = summary(model)
    lines = ",\n".join(json.dumps(row) for row in rows)  # one layer a line, so that a difference reads as one
    (FOLDER / "summary.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    probabilities = model(rules.images(network).astype(np.float32), training=False).numpy()
    low, middle, high = np.quantile(probabilities, [0.01, 0.5, 0.99])
    print(f"full network: {model.count_params()} parameters, {len(rows)} layers, {low:.3f} / {middle:.3f} / {high:.3f}")
    stride = rules.NETWORK_STRIDE
    weighted = [row for row in rows if row["params"]]
    return {
        "probabilities": probabilities[:, ::stride, ::stride],
        "layer_names": np.array([row["name"] for row in weighted]),
        "layer_params": np.array([row["params"] for row in weighted]),
        "total_params": np.array(model.count_params()),
    }


def small_goldens() -> dict[str, np.ndarray]:
    """Returns the output of every layer of the small network that computes something, activations applied."""
    network = rules.SMALL
    model = build(network)
    fill(model, rules.weights(network))
    probe = keras.Model(model.input, [layer.output for layer in model.layers[1:]])
    outputs = probe(rules.images(network).astype(np.float32), training=False)
    named = {layer.name: output.numpy() for layer, output in zip(model.layers[1:], outputs, strict=True)}
    print(f"small network: {len(named)} layers, head {named['head'].min():.3f} .. {named['head'].max():.3f}")
    return {name: output for name, output in named.items() if name != "scaling" and not name.endswith("_dropout")}


# ---------------------------------------------------------------------------------------------------- losses


def dice_coef(true, prob):
    """Soft Dice of the whole batch, smoothed by 1."""
    return (2 * ops.sum(true * prob) + 1) / (ops.sum(true) + ops.sum(prob) + 1)


def jaccard(true, prob):
    """Soft Jaccard index of the whole batch, unsmoothed: 0 / 0 is NaN."""
    return ops.sum(true * prob) / ops.sum(true + prob - true * prob)


def bce(true, prob):
    """Keras' binary cross-entropy, which clips probabilities at 1e-7."""
    return keras.losses.BinaryCrossentropy()(true, prob)


def ssim_loss(true, prob):
    """One minus the mean structural similarity of the images."""
    scores = tf.image.ssim(true, prob, max_val=1.0, filter_size=11, filter_sigma=1.5, k1=0.01, k2=0.03)
    return 1 - tf.reduce_mean(scores)


LOSSES: dict[str, Callable] = {
    "bce": bce,
    "dice": lambda true, prob: 1 - dice_coef(true, prob),
    "jaccard": lambda true, prob: 1 - jaccard(true, prob),
    "ssim": ssim_loss,
    "bce_dice": lambda true, prob: (bce(true, prob) + 1 - dice_coef(true, prob)) / 2,
    "bce_jaccard": lambda true, prob: (bce(true, prob) + 1 - jaccard(true, prob)) / 2,
    "hybrid": lambda true, prob: (bce(true, prob) + ssim_loss(true, prob) + 1 - jaccard(true, prob)) / 3,
}


def share(counted, total):
    """Returns counted / total with the reference's epsilon: 0 where there is nothing to count."""
    return ops.sum(counted) / (ops.sum(total) + EPSILON)


METRICS: dict[str, Callable] = {
    "accuracy": lambda true, prob: ops.mean(keras.metrics.binary_accuracy(true, prob, threshold=0.5)),
    "dice_coef": dice_coef,
    "jaccard_coef": jaccard,
    # on rounded probabilities; one half rounds to 0
    "sensitivity": lambda true, prob: share(true * ops.round(prob), true),
    "specificity": lambda true, prob: share((1 - true) * (1 - ops.round(prob)), 1 - true),
    "precision": lambda true, prob: share(true * ops.round(prob), ops.round(prob)),
}


def loss_goldens() -> dict[str, np.ndarray]:
    """Returns per case the losses, their gradients with respect to the logits, and the metrics, all in float32."""
    arrays: dict[str, np.ndarray] = {"losses": np.array(list(LOSSES)), "metrics": np.array(list(METRICS))}
    assert tuple(LOSSES) == rules.LOSSES
    assert tuple(METRICS) == rules.METRICS
    for case in rules.CASES:
        drawn, masks = rules.loss_case(case)
        logits, true = tf.constant(drawn), tf.constant(masks, tf.float32)
        values, gradients = [], []
        for loss in LOSSES.values():
            with tf.GradientTape() as tape:
                tape.watch(logits)
                value = loss(true, tf.sigmoid(logits))
            values.append(value.numpy())
            gradients.append(tape.gradient(value, logits).numpy().ravel()[:: rules.GRADIENT_STRIDE])
        prob = tf.sigmoid(logits)
        arrays[f"{case}.losses"] = np.array(values, np.float32)
        arrays[f"{case}.gradients"] = np.array(gradients, np.float32)
        arrays[f"{case}.metrics"] = np.array([metric(true, prob).numpy() for metric in METRICS.values()], np.float32)
        print(f"{case:>13}: " + " ".join(f"{name} {value:.6f}" for name, value in zip(LOSSES, values, strict=True)))
        scores = zip(METRICS, arrays[f"{case}.metrics"], strict=True)
        print(" " * 15 + " ".join(f"{name} {score:.6f}" for name, score in scores))
    return arrays


# ---------------------------------------------------------------------------------------------------- single layers


def layer_goldens() -> dict[str, np.ndarray]:
    """Returns a max-pool's output and the gradient of its ties, and an up-convolution's output and gradients."""
    values = tf.constant(rules.pool_input())
    with tf.GradientTape() as tape:
        tape.watch(values)
        pooled = layers.MaxPooling2D(2)(values)
    pool_gradient = tape.gradient(pooled, values, output_gradients=tf.constant(rules.pool_cotangent()))

    drawn, kernel, bias = rules.upconv_input()
    incoming = tf.constant(drawn)
    layer = layers.Conv2DTranspose(kernel.shape[-1], 2, strides=2, padding="same")
    layer.build(incoming.shape)
    layer.set_weights([kernel.transpose(0, 1, 3, 2), bias])
    with tf.GradientTape() as tape:
        tape.watch(incoming)
        outgoing = layer(incoming)
        total = tf.reduce_sum(outgoing**2) / 2
    gradients = tape.gradient(total, [incoming, *(weight.value for weight in layer.trainable_weights)])
    return {
        "pool": pooled.numpy(),
        "pool_gradient": pool_gradient.numpy(),
        "upconv": outgoing.numpy(),
        "upconv_input_gradient": gradients[0].numpy(),
        "upconv_kernel_gradient": gradients[1].numpy().transpose(0, 1, 3, 2),
        "upconv_bias_gradient": gradients[2].numpy(),
    }


def adam_goldens() -> dict[str, np.ndarray]:
    """Returns the points that three steps of Keras' Adam reach on a quadratic, `[3, 8]`."""
    curvature, start = rules.quadratic()
    point = keras.Variable(start)
    optimizer = keras.optimizers.Adam(learning_rate=1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-7)
    points = []
    for _ in range(3):
        optimizer.apply([ops.convert_to_tensor(curvature) * point], [point])
        points.append(ops.convert_to_numpy(point))
    return {"points": np.stack(points)}


def main() -> None:
    """Computes all goldens and writes them beside this script."""
    keras.utils.set_random_seed(0)  # nothing below is random; the initial weights are replaced
    versions = np.array(
        [
            f"python {platform.python_version()}",
            f"tensorflow {tf.__version__}",
            f"keras {keras.__version__}",
            f"numpy {np.__version__}",
        ]
    )
    codes = rules.checksums()
    inputs = {"checksum_names": np.array(list(codes)), "checksums": np.array(list(codes.values()), np.uint32)}
    files = {
        "network": network_goldens(),
        "small": small_goldens(),
        "losses": loss_goldens(),
        "layers": layer_goldens() | adam_goldens() | inputs,
    }
    for name, arrays in files.items():
        path = FOLDER / f"{name}.npz"
        np.savez_compressed(path, versions=versions, **arrays)
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
