"""Keras with TensorFlow: the network of the reference, its step as one `tf.function`."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from experiments.bench.workload import ADAM, CHANNELS, LEARNING_RATE, Weights, Workload, images_and_masks, weights


def network(work: Workload) -> keras.Model:
    """The reference's U-Net, channels last; it returns logits, which the losses take."""

    def block(tensor: Any, path: str, level: int) -> Any:
        for number in (1, 2):
            tensor = layers.Conv2D(
                work.filters(level),
                3,
                padding="same",
                activation="relu",
                kernel_initializer="he_normal",
                name=f"{path}{level}_conv{number}",
            )(tensor)
            if number == 1 and level:
                tensor = layers.Dropout(work.dropout_rate * level)(tensor)
        return tensor

    inputs = layers.Input((work.size, work.size, CHANNELS), dtype="uint8")
    tensor, skips = layers.Rescaling(1 / 255)(inputs), []
    for level in range(work.num_layers):
        skips.append(block(tensor, "encoder", level))
        tensor = layers.MaxPooling2D(2)(skips[-1])
    tensor = block(tensor, "encoder", work.num_layers)
    for level in reversed(range(work.num_layers)):
        up = layers.Conv2DTranspose(work.filters(level), 2, strides=2, name=f"decoder{level}_up")(tensor)
        tensor = block(layers.Concatenate()([up, skips[level]]), "decoder", level)
    return keras.Model(inputs, layers.Conv2D(1, 1, dtype="float32", name="head")(tensor))


def fill(model: keras.Model, drawn: Weights) -> None:
    """Copies weights: Keras stores up-convolutions as `[h, w, out, in]`."""
    for name, leaf in drawn.items():
        kernel = leaf["kernel"].transpose(0, 1, 3, 2) if name.endswith("_up") else leaf["kernel"]
        model.get_layer(name).set_weights([kernel, leaf["bias"]])


def bce(masks: Any, logits: Any) -> Any:
    """Binary cross-entropy."""
    return ops.mean(tf.nn.sigmoid_cross_entropy_with_logits(masks, logits))


def hybrid(masks: Any, logits: Any) -> Any:
    """Mean of BCE, SSIM loss (with the defaults of `tf.image.ssim`, as in the reference) and Jaccard loss."""
    probs = ops.sigmoid(logits)
    overlap = ops.sum(probs * masks)
    jaccard = 1 - overlap / (ops.sum(probs) + ops.sum(masks) - overlap)
    return (bce(masks, logits) + 1 - ops.mean(tf.image.ssim(masks, probs, max_val=1.0)) + jaccard) / 3


LOSSES = {"bce": bce, "hybrid": hybrid}


def serve(**arguments: Any) -> dict[str, Callable[..., Any]]:
    """Keras; the arguments are those of `Workload`."""
    work = Workload(**arguments)
    gpus = tf.config.list_physical_devices("GPU")
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if work.dtype == "bfloat16" else "float32")
    model, loss = network(work), LOSSES[work.loss]
    fill(model, weights(work))
    optimizer = keras.optimizers.Adam(LEARNING_RATE, ADAM["b1"], ADAM["b2"], ADAM["eps"])
    optimizer.build(model.trainable_variables)
    images, masks = map(tf.constant, images_and_masks(work))
    masks = tf.cast(masks, tf.float32)

    @tf.function(jit_compile=bool(gpus))  # what Keras chooses for `compile(jit_compile="auto")`
    def train_step() -> Any:
        with tf.GradientTape() as tape:
            value = loss(masks, model(images, training=True))
        gradients = tape.gradient(value, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return value

    @tf.function(jit_compile=bool(gpus))
    def predict_step() -> Any:
        return ops.sigmoid(model(images, training=False))

    def train(steps: int) -> float:
        for _ in range(steps):
            value = train_step()
        return float(value)

    def predict(steps: int) -> None:
        for _ in range(steps):
            probabilities = predict_step()
        float(probabilities[0, 0, 0, 0])  # waits for the device

    def value() -> float:
        logits = model(images, training=False)
        return float(loss(masks, logits) if work.task == "train" else ops.mean(ops.sigmoid(logits)))

    def memory() -> dict[str, int] | None:
        return {"bytes": tf.config.experimental.get_memory_info("GPU:0")["peak"]} if gpus else None

    return {
        "describe": lambda: {
            "platform": "gpu" if gpus else "cpu",
            "device": "GPU:0" if gpus else "CPU:0",
            "version": f"keras {keras.__version__}, tensorflow {tf.__version__}",
            "parameters": model.count_params(),
        },
        "value": value,
        "run": train if work.task == "train" else predict,
        "memory": memory,
    }
