"""The network, its layers, losses and metrics have the reference's values, computed once by Keras and TensorFlow.

`goldens/make_keras.py` made the stored numbers; `goldens/rules.py` draws the same inputs for it and for these tests.
"""

import json
from collections import Counter
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxunet import UNet, metrics
from jaxunet.layers import UpConv, max_pool
from jaxunet.losses import LOSSES
from tests.goldens import rules

FOLDER = Path(__file__).parents[1] / "goldens"

# Largest absolute difference from the stored value. The sums of SSIM lose the most in float32, on both sides.
VALUE_ATOL = {
    "bce": 2e-6,
    "dice": 1e-6,
    "jaccard": 1e-6,
    "ssim": 1e-5,
    "bce_dice": 2e-6,
    "bce_jaccard": 2e-6,
    "hybrid": 1e-5,
}
# Gradients reach 2e-4 to 2e-3; the floor is for pixels that hardly count. SSIM, again, rounds the most (5e-8 measured).
EXACT_GRADIENT = {"rtol": 1e-4, "atol": 1e-9}
SSIM_GRADIENT = {"rtol": 1e-3, "atol": 5e-7}
GRADIENT_TOLERANCE = {loss: SSIM_GRADIENT if loss in ("ssim", "hybrid") else EXACT_GRADIENT for loss in rules.LOSSES}

CLIP_AWARE = ("bce", "bce_dice", "bce_jaccard", "hybrid")  # the reference clips probabilities in these
EMPTY_AWARE = ("jaccard", "bce_jaccard", "hybrid")  # the reference leaves these undefined on empty masks
CASE_LOSSES = [
    *((case, loss) for case in rules.MODERATE_CASES for loss in rules.LOSSES),
    *((case, loss) for case in rules.CLIPPED_CASE for loss in rules.LOSSES if loss not in CLIP_AWARE),
    *((case, loss) for case in rules.EMPTY_CASES for loss in rules.LOSSES if loss not in EMPTY_AWARE),
]


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module", autouse=True)
def full_precision():
    """Accelerators may multiply in fewer bits by default; parity is a claim about the arithmetic."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def goldens() -> dict[str, np.ndarray]:
    return load("losses")


@pytest.fixture(scope="module")
def ours() -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Value and gradient of every loss in every case."""

    @jax.jit
    def evaluate(logits, masks):
        return {name: jax.value_and_grad(LOSSES[name].fn)(logits, masks) for name in rules.LOSSES}

    return {case: jax.device_get(evaluate(*rules.loss_case(case))) for case in rules.CASES}


@pytest.fixture(scope="module")
def scores() -> dict[str, dict[str, np.ndarray]]:
    """Every metric in every case."""

    @jax.jit
    def evaluate(logits, masks):
        return {name: getattr(metrics, name)(logits, masks) for name in rules.METRICS}

    return {case: jax.device_get(evaluate(*rules.loss_case(case))) for case in rules.CASES}


def stored_loss(goldens: dict[str, np.ndarray], case: str, loss: str) -> tuple[np.ndarray, np.ndarray]:
    position = list(goldens["losses"]).index(loss)
    return goldens[f"{case}.losses"][position], goldens[f"{case}.gradients"][position]


def sampled(gradient: np.ndarray) -> np.ndarray:
    return gradient.ravel()[:: rules.GRADIENT_STRIDE]


# ---------------------------------------------------------------------------------------------------- the goldens


def test_rule_draws_the_inputs_that_the_goldens_were_made_from():
    stored = load("layers")
    expected = dict(zip(stored["checksum_names"], stored["checksums"].tolist(), strict=True))
    assert rules.checksums() == expected


def test_goldens_are_small_and_name_the_versions_that_made_them():
    assert sum(file.stat().st_size for file in FOLDER.iterdir() if file.is_file()) < 1_000_000
    for name in ("layers", "losses", "network", "small"):
        names = [str(version).split()[0] for version in load(name)["versions"]]
        assert names == ["python", "tensorflow", "keras", "numpy"]


def test_keras_summary_has_the_sixty_rows_of_the_reference():
    rows = json.loads((FOLDER / "summary.json").read_text(encoding="utf-8"))
    counts = Counter(row["type"] for row in rows)
    assert counts == {
        "InputLayer": 1,
        "Rescaling": 1,
        "Conv2D": 27,
        "Dropout": 13,
        "MaxPooling2D": 6,
        "Conv2DTranspose": 6,
        "Concatenate": 6,
    }
    assert sum(row["params"] for row in rows) == 31_110_001
    by_name = {row["name"]: row for row in rows}
    assert by_name["decoder2_concat"]["connected_to"] == ["decoder2_up", "encoder2_conv2"]
    assert by_name["encoder6_conv2"]["output_shape"] == [None, 4, 4, 1024]


# ---------------------------------------------------------------------------------------------------- network


def test_reference_network_has_keras_parameters_layer_by_layer():
    shapes = jax.eval_shape(UNet().init, jax.random.key(0), jnp.zeros((1, 256, 256, 3), jnp.uint8))["params"]
    ours = {name: sum(leaf.size for leaf in layer.values()) for name, layer in shapes.items()}
    stored = load("network")
    names, counts = stored["layer_names"].tolist(), stored["layer_params"].tolist()
    assert ours == dict(zip(names, counts, strict=True))
    assert sum(ours.values()) == stored["total_params"] == 31_110_001
    drawn = {name: shape.shape for name, layer in shapes.items() for shape in [layer["kernel"]]}
    assert drawn == rules.layer_shapes(rules.DOCUMENTED)


def test_reference_network_gives_keras_probabilities():
    network = rules.DOCUMENTED
    logits = jax.jit(UNet().apply)({"params": rules.weights(network)}, rules.images(network))
    stride = rules.NETWORK_STRIDE
    probabilities = jax.nn.sigmoid(logits)[:, ::stride, ::stride]
    stored = load("network")["probabilities"]
    assert stored.shape == (2, 32, 32, 1)
    assert stored.min() < 0.1 and stored.max() > 0.9, "saturated or flat outputs would prove little"
    np.testing.assert_allclose(probabilities, stored, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def small_layers() -> dict[str, np.ndarray]:
    """Activations of the small network, named as in Keras."""
    network = rules.SMALL
    model = UNet(base_filters=network.base_filters, num_layers=network.num_layers)

    @jax.jit
    def activations(params, images):
        logits, state = model.apply({"params": params}, images, capture_intermediates=True, mutable=["intermediates"])
        outputs = {name: state["intermediates"][name]["__call__"][0] for name in rules.layer_shapes(network)}
        activated = {name: nn.relu(output) if "_conv" in name else output for name, output in outputs.items()}
        activated["head"] = jax.nn.sigmoid(logits)
        for level in range(network.num_layers):
            skip = activated[f"encoder{level}_conv2"]
            activated[f"encoder{level}_pool"] = max_pool(skip)
            activated[f"decoder{level}_concat"] = jnp.concatenate([activated[f"decoder{level}_up"], skip], axis=-1)
        return activated

    return jax.device_get(activations(rules.weights(network), rules.images(network)))


def test_small_network_has_every_layer_that_keras_has(small_layers):
    assert set(small_layers) == set(load("small")) - {"versions"}


@pytest.mark.parametrize(
    "name",
    [
        *rules.layer_shapes(rules.SMALL),
        *(f"encoder{level}_pool" for level in range(rules.SMALL.num_layers)),
        *(f"decoder{level}_concat" for level in range(rules.SMALL.num_layers)),
    ],
)
def test_small_network_equals_keras_at_layer(small_layers, name):
    np.testing.assert_allclose(small_layers[name], load("small")[name], rtol=1e-5, atol=2e-6)


# ---------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize(("case", "loss"), CASE_LOSSES)
def test_loss_has_the_value_of_the_reference_and_gradient(ours, goldens, case, loss):
    value, gradient = ours[case][loss]
    stored_value, stored_gradient = stored_loss(goldens, case, loss)
    np.testing.assert_allclose(value, stored_value, rtol=0, atol=VALUE_ATOL[loss])
    np.testing.assert_allclose(sampled(gradient), stored_gradient, **GRADIENT_TOLERANCE[loss])


def test_cross_entropy_is_exact_where_the_reference_clips(ours, goldens):
    drawn, masks = rules.loss_case("clipped")
    logits, true = drawn.astype(np.float64), masks.astype(np.float64)
    exact = np.mean(np.logaddexp(0, logits) - logits * true)
    high = np.float32(1) - np.float32(1e-7)  # rounds to 1 - 1.19e-7
    prob = np.clip(1 / (1 + np.exp(-logits)), 1e-7, high)
    clipped = -np.mean(true * np.log(prob) + (1 - true) * np.log1p(-prob))
    value, gradient = ours["clipped"]["bce"]
    stored_value, stored_gradient = stored_loss(goldens, "clipped", "bce")
    np.testing.assert_allclose(stored_value, clipped, rtol=1e-5)
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    assert value - stored_value > 0.1

    wrong = sampled((np.abs(drawn) > 17) & ((drawn > 0) != (masks > 0)))
    assert wrong.sum() > 5
    assert np.all(stored_gradient[wrong] == 0), "beyond the clip the reference's loss no longer learns"
    np.testing.assert_allclose(np.abs(sampled(gradient)[wrong]), 1 / drawn.size, rtol=1e-6)


@pytest.mark.parametrize("case", rules.EMPTY_CASES)
def test_jaccard_of_empty_masks_is_smoothed_by_one_where_the_reference_is_undefined(ours, goldens, case):
    logits, masks = rules.loss_case(case)
    assert not masks.any()
    predicted = np.sum(1 / (1 + np.exp(-logits.astype(np.float64))))
    jaccard = predicted / (predicted + 1)
    bce, ssim = (stored_loss(goldens, case, loss)[0] for loss in ("bce", "ssim"))
    expected = {"jaccard": jaccard, "bce_jaccard": (bce + jaccard) / 2, "hybrid": (bce + ssim + jaccard) / 3}
    for loss in EMPTY_AWARE:
        value, gradient = ours[case][loss]
        np.testing.assert_allclose(value, expected[loss], rtol=0, atol=VALUE_ATOL[loss])
        assert np.all(np.isfinite(gradient))


def test_reference_jaccard_of_empty_masks_is_one_or_nan_and_teaches_nothing(goldens):
    value, gradient = stored_loss(goldens, "empty", "jaccard")
    assert value == 1 and np.all(gradient == 0)
    for loss in EMPTY_AWARE:
        value, gradient = stored_loss(goldens, "underflow", loss)
        assert np.isnan(value) and np.all(np.isnan(gradient))


@pytest.mark.parametrize("loss", EMPTY_AWARE)
def test_gradient_on_empty_masks_pushes_every_probability_down(ours, loss):
    assert np.all(ours["empty"][loss][1] > 0)


# ---------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("case", rules.MODERATE_CASES | rules.CLIPPED_CASE)
@pytest.mark.parametrize("metric", rules.METRICS)
def test_metric_has_the_value_of_the_reference(scores, goldens, case, metric):
    stored = dict(zip(goldens["metrics"], goldens[f"{case}.metrics"], strict=True))[metric]
    np.testing.assert_allclose(scores[case][metric], stored, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", rules.EMPTY_CASES)
def test_metrics_of_empty_masks_are_ones_of_the_reference_or_nan_where_undefined(scores, goldens, case):
    stored = dict(zip(goldens["metrics"], goldens[f"{case}.metrics"], strict=True))
    for metric in ("accuracy", "dice_coef", "specificity"):
        np.testing.assert_allclose(scores[case][metric], stored[metric], rtol=0, atol=1e-6)
    assert stored["sensitivity"] == 0
    assert np.isnan(scores[case]["sensitivity"]), "without a true pixel sensitivity is undefined"
    if case == "underflow":
        assert stored["precision"] == 0 and np.isnan(stored["jaccard_coef"])
        assert np.isnan(scores[case]["precision"]), "without a predicted pixel precision is undefined"
        assert scores[case]["jaccard_coef"] == 1
    else:
        assert stored["precision"] == scores[case]["precision"] == 0
        assert stored["jaccard_coef"] == scores[case]["jaccard_coef"] == 0


# ---------------------------------------------------------------------------------------------------- single layers


def test_max_pool_gives_the_gradient_of_a_tie_to_the_pixel_that_keras_gives_it_to():
    stored = load("layers")

    @jax.jit
    def pool(values, cotangent):
        pooled, pull = jax.vjp(max_pool, values)
        return pooled, *pull(cotangent)

    pooled, gradient = pool(rules.pool_input(), rules.pool_cotangent())
    np.testing.assert_array_equal(pooled, stored["pool"])
    np.testing.assert_array_equal(gradient, stored["pool_gradient"])


def test_up_convolution_and_its_gradients_equal_keras_without_a_flip():
    stored = load("layers")
    x, kernel, bias = rules.upconv_input()
    layer = UpConv(features=kernel.shape[-1])

    def energy(x, kernel, bias):
        output = layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)
        return jnp.sum(output**2) / 2, output

    gradients, output = jax.jit(jax.grad(energy, argnums=(0, 1, 2), has_aux=True))(x, kernel, bias)
    np.testing.assert_allclose(output, stored["upconv"], rtol=1e-5, atol=1e-6)
    for name, gradient in zip(("input", "kernel", "bias"), gradients, strict=True):
        np.testing.assert_allclose(gradient, stored[f"upconv_{name}_gradient"], rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- optimizer


def adam_points(scaled_epsilon: bool) -> np.ndarray:
    """Three Adam steps on the quadratic in float64, `[3, 8]`.

    Keras applies eps before the second moment's bias is corrected, which is an eps of 1e-7 / sqrt(1 - 0.999^t) after it
    (3.2e-6 at the first step, 1.3e-7 at the thousandth); optax applies it after.
    """
    curvature, point = (array.astype(np.float64) for array in rules.quadratic())
    first, second, points = np.zeros(8), np.zeros(8), []
    for step in (1, 2, 3):
        gradient = curvature * point
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        epsilon = 1e-7 / np.sqrt(1 - 0.999**step) if scaled_epsilon else 1e-7
        point = point - 1e-3 * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + epsilon)
        points.append(point)
    return np.stack(points)


def test_adam_differs_from_keras_by_the_place_of_epsilon_alone():
    keras = load("layers")["points"]
    curvature, start = rules.quadratic()
    optimizer = optax.adam(1e-3, b1=0.9, b2=0.999, eps=1e-7)
    point = jnp.asarray(start)
    state, points = optimizer.init(point), []

    @jax.jit
    def step(point, state):
        updates, state = optimizer.update(curvature * point, state)
        return optax.apply_updates(point, updates), state

    for _ in range(3):
        point, state = step(point, state)
        points.append(point)
    ours = np.stack(points)
    rounding = 2e-7  # three roundings of values just below 1, 6e-8 each
    np.testing.assert_allclose(keras, adam_points(scaled_epsilon=True), rtol=0, atol=rounding)
    np.testing.assert_allclose(ours, adam_points(scaled_epsilon=False), rtol=0, atol=rounding)
    # The relative difference of a step is at most 3.2e-6 / |gradient|: of 3e-3 walked, 1e-6 for gradients from 1e-2 ...
    strong = curvature >= 1e-2
    np.testing.assert_allclose(ours[:, strong], keras[:, strong], rtol=0, atol=1e-6 + rounding)
    # ... while gradients near eps move several times as far as in the reference.
    weak = curvature <= 1e-6
    assert np.all((1 - ours[:, weak]) > 2 * (1 - keras[:, weak]))
