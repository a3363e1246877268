"""One step on 1, 2, 4 and 8 devices is one and the same step: loss and metrics are of the global batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxunet import UNet
from jaxunet.checkpoint import Checkpoints, abstract_like
from jaxunet.convolution import conv3x3
from jaxunet.losses import LOSSES, dice_loss
from jaxunet.sharding import (
    batch_sharding,
    global_batch,
    make_mesh,
    replicate,
    replicate_from_host,
    replicated,
    split_largest_axes,
    split_rows,
)
from jaxunet.step import compile_eval_step, compile_predict_step, compile_train_step, state_sharding
from tests.helpers import tiny

NETWORK = UNet(base_filters=2, num_layers=1, dropout_rate=0.4)
PIXELWISE = tiny.Pixelwise()
# Plain gradient descent: Adam divides each gradient by its size, and with it the rounding of those that are zero.
DESCENT = optax.sgd(0.1)


def lopsided_batch() -> dict[str, np.ndarray]:
    """Eight images, tumour in the sixth only: on eight devices, seven see none."""
    batch = tiny.batch(8)
    batch["mask"][np.arange(8) != 5] = 0
    return batch


@functools.cache
def compiled(devices: int):
    mesh = make_mesh(jax.devices()[:devices])
    step = compile_train_step(mesh, loss=LOSSES["hybrid"].fn, seed=3)

    def run(batch):
        state = replicate(tiny.state(NETWORK, DESCENT), mesh)
        result = step(state, global_batch(batch, mesh))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))  # donated
        return result

    return run


@functools.cache
def one_step(devices: int):
    state, result = compiled(devices)(lopsided_batch())
    for leaf in jax.tree.leaves((state, result)):
        assert len(leaf.sharding.device_set) == devices
        assert leaf.sharding.is_fully_replicated
    return jax.device_get((state.params, result))


def test_tests_run_on_eight_devices():
    assert len(jax.devices()) == 8


@pytest.mark.parametrize("shape", [(8, 16, 6, 16), (8, 16, 6, 32), (8, 4, 4, 64)])  # strips, one product, tiny images
def test_the_kernel_gradient_of_a_divided_batch_is_that_of_the_whole(shape):
    rng = np.random.default_rng(0)
    images, cotangent = rng.normal(size=(2, *shape)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, shape[3], shape[3])).astype(np.float32)

    def gradient(devices):
        mesh = make_mesh(jax.devices()[:devices])
        rows, whole = split_rows(mesh), replicated(mesh)
        slopes = jax.jit(
            lambda x, k, g: jax.vjp(lambda x, k: conv3x3((x,), k, jnp.zeros(k.shape[-1])), x, k)[1](g),
            in_shardings=(rows, whole, rows),
            out_shardings=(rows, whole),
        )
        return slopes(images, kernel, cotangent)

    for found, expected in zip(gradient(8), gradient(1), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_a_step_on_many_devices_is_the_step_on_one(devices):
    params, result = one_step(devices)
    expected_params, expected = one_step(1)
    assert float(result["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-6)
    assert float(result["grad_norm"]) == pytest.approx(float(expected["grad_norm"]), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, expected_params)
    # Row by row the same dropout: another mask would move these sums by whole pixels.
    np.testing.assert_allclose(result["sums"].predicted, expected["sums"].predicted, rtol=1e-5)
    for name in ("tp", "fp", "fn", "tn"):
        np.testing.assert_array_equal(getattr(result["sums"], name), getattr(expected["sums"], name))


def test_the_step_moved_the_parameters_and_dropout_differs_between_rows():
    params, _ = one_step(1)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, tiny.params(NETWORK))
    assert max(jax.tree.leaves(moved)) > 1e-3  # else the comparison above says little
    batch = lopsided_batch()
    batch["image"][:] = batch["image"][0]
    _, result = compiled(1)(batch)
    assert len(set(result["sums"].predicted.tolist())) == 8


@pytest.mark.parametrize("kind", ["weighted", "plain"])
def test_evaluation_on_many_devices_is_that_on_one_with_padding(kind):
    def plain(logits, masks):
        return dice_loss(logits, masks)

    model, batch = UNet(base_filters=4, num_layers=0), tiny.batch(8)
    batch["weight"][5:] = 0
    params, results = tiny.params(model), []
    for devices in (1, 8):
        mesh = make_mesh(jax.devices()[:devices])
        evaluate = compile_eval_step(mesh, apply_fn=model.apply, loss=dice_loss if kind == "weighted" else plain)
        results.append(jax.device_get(evaluate(replicate(params, mesh), global_batch(batch, mesh), rows=5)))
    (loss, sums), (expected, expected_sums) = results[1], results[0]
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), sums, expected_sums)


def test_predictions_stay_on_the_device_of_their_image():
    model, mesh = UNet(base_filters=2, num_layers=0), make_mesh()
    params, images = tiny.params(model), tiny.batch(8)["image"]
    predict = compile_predict_step(mesh, apply_fn=model.apply)
    probabilities = predict(replicate(params, mesh), global_batch({"image": images}, mesh)["image"])
    assert probabilities.sharding.is_equivalent_to(split_rows(mesh), 4)
    np.testing.assert_allclose(
        probabilities, jax.nn.sigmoid(model.apply({"params": params}, images)), rtol=1e-5, atol=1e-7
    )


def squares(logits, masks, *, weight):
    return jnp.mean(weight[:, None, None, None] * (jax.nn.sigmoid(logits) - masks) ** 2)


def step_of(mesh, inputs, rows):
    """A step and the loss before it, of a batch that holds its slices or names them by their row."""
    options = {"loss": squares, "batch_sharding": batch_sharding(inputs, mesh) if rows else None}
    state = replicate(tiny.state(PIXELWISE, DESCENT), mesh)
    loss, _ = compile_eval_step(mesh, apply_fn=PIXELWISE.apply, **options)(state.params, inputs, rows=8)
    step = compile_train_step(mesh, seed=3, **options).lower(state, inputs).compile()
    state, result = step(state, inputs)
    return jax.device_get((state.params, result, loss)), step.as_text()


@functools.cache
def step_of_pixels():
    mesh = make_mesh(jax.devices()[:1])
    return step_of(mesh, global_batch({n: lopsided_batch()[n] for n in ("image", "mask", "weight")}, mesh), False)[0]


@functools.cache
def step_of_rows(devices: int):
    mesh, batch, order = make_mesh(jax.devices()[:devices]), lopsided_batch(), np.array([5, 7, 2, 0, 1, 3, 6, 4])
    pixels = {name: np.ones((9, *batch[name].shape[1:]), np.uint8) for name in ("image", "mask")}
    for name, values in pixels.items():
        values[order] = batch[name]  # row 8 belongs to nobody
    inputs = global_batch({"row": order.astype(np.int32), "weight": batch["weight"]}, mesh)
    return step_of(mesh, inputs | {"pixels": replicate_from_host(pixels, mesh)}, True)


@pytest.mark.parametrize("devices", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4)), 8])
def test_slices_named_by_their_row_give_the_step_of_the_slices_and_none_travels(devices):
    found, text = step_of_rows(devices)
    if devices == 1:
        jax.tree.map(np.testing.assert_array_equal, found, step_of_pixels())
    else:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, step_of_pixels())
        assert "all-reduce(" in text
        assert tiny.travelling(text) <= 8  # a number an image, for the metrics
    assert float(found[1]["grad_norm"]) > 0.01


@functools.cache
def steps_of_adam(devices: int, split: bool):
    """Three steps; the state stays on its devices."""
    mesh = make_mesh(jax.devices()[:devices])
    state = tiny.state(
        PIXELWISE, optax.adam(1e-3, eps=1e-3)
    )  # of 1e-7, it would blow up the rounding of zero gradients
    places = state_sharding(state, mesh, split_optimizer=split)
    state = jax.device_put(state, places)
    step = compile_train_step(mesh, loss=squares, seed=3, state_sharding=places)
    for seed in range(3):
        state, _ = step(state, global_batch(tiny.batch(8, seed=seed), mesh))
    return state


@pytest.mark.parametrize("devices", [pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 4)] + [8])
def test_a_divided_optimizer_gives_the_same_parameters_in_a_part_of_the_memory(devices):
    state, expected = steps_of_adam(devices, split=True), steps_of_adam(1, split=False)
    for found, wanted in ((state.params, expected.params), (state.opt_state, expected.opt_state)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *jax.device_get((found, wanted)))
    moments = jax.tree.leaves((state.opt_state[0].mu, state.opt_state[0].nu))
    sizes = [(leaf.addressable_shards[0].data.size, leaf.size) for leaf in moments]
    assert all(
        part * devices == whole for part, whole in sizes if whole > 1
    )  # the bias of the last layer is one number
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves((state.params, state.step)))


def test_a_divided_optimizer_is_restored_on_other_devices_and_whole(tmp_path):
    saved = steps_of_adam(8, split=True)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(3, {"opt_state": saved.opt_state}, {})
        for devices, split in ((1, False), (4, True), (2, False), (8, True)):
            mesh = make_mesh(jax.devices()[:devices])
            places = {"opt_state": state_sharding(saved, mesh, split_optimizer=split).opt_state}
            tree, _ = checkpoints.restore(abstract_like({"opt_state": saved.opt_state}, places))
            jax.tree.map(np.testing.assert_array_equal, *jax.device_get((tree["opt_state"], saved.opt_state)))
            found = jax.tree.map(lambda leaf, place: leaf.sharding.is_equivalent_to(place, leaf.ndim), tree, places)
            assert all(jax.tree.leaves(found))


def test_arrays_are_divided_along_their_largest_axis_that_divides():
    shapes = {"kernel": (3, 3, 16, 32), "tie": (8, 8), "odd": (3, 3, 12, 9), "bias": (4,), "scalar": ()}
    leaves = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    specs = {name: tuple(sharding.spec) for name, sharding in split_largest_axes(leaves, make_mesh()).items()}
    assert specs == {"kernel": (None, None, None, "data"), "tie": ("data",), "odd": (), "bias": (), "scalar": ()}


def test_the_mesh_has_one_automatic_axis_over_all_devices_in_order():
    mesh = make_mesh()
    assert mesh.axis_names == ("data",)
    assert mesh.axis_types == (AxisType.Auto,)
    assert list(mesh.devices) == jax.devices()
    assert list(make_mesh(jax.devices()[::-1]).devices) == jax.devices()
    assert replicated(mesh).spec == PartitionSpec()
    assert split_rows(mesh).spec == PartitionSpec("data")


def test_global_batch_splits_rows_in_order_and_keeps_dtypes():
    mesh = make_mesh(jax.devices()[:4])
    batch = global_batch({"image": np.arange(16, dtype=np.uint8).reshape(8, 2), "weight": np.ones(8, np.float32)}, mesh)
    assert (batch["image"].dtype, batch["weight"].dtype) == (jnp.uint8, jnp.float32)
    for index, shard in enumerate(sorted(batch["image"].addressable_shards, key=lambda s: s.device.id)):
        np.testing.assert_array_equal(shard.data, np.arange(4 * index, 4 * index + 4).reshape(2, 2))


def test_global_batch_refuses_rows_that_do_not_divide():
    with pytest.raises(ValueError, match=r"batch\['mask'\] has 6 rows, which do not divide among 4 devices"):
        global_batch({"image": np.zeros((8, 2)), "mask": np.zeros((6, 2))}, make_mesh(jax.devices()[:4]))


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize(
    ("channels", "side"),
    [(2, 8), (16, 8), (64, 8), (32, 12)],  # XLA's own gradient, strips in a loop, tiny images, four rows at once
)
def test_convolutions_have_their_gradients_inside_of_shard_map(channels, side, check_vma):
    mesh = make_mesh(jax.devices()[:2])
    x, kernel = (
        jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(4, side, side, channels), (3, 3, channels, 64)])
    )
    split, whole = PartitionSpec("data"), PartitionSpec()

    def size(parameters, x):
        return jnp.sum(jnp.sin(conv3x3((x,), *parameters)))

    def of_a_part(parameters, x):
        slopes = jax.grad(size)(parameters, x)
        return slopes if check_vma else jax.lax.psum(slopes, "data")  # a checked map knows that a sum is due

    parts = jax.shard_map(of_a_part, mesh=mesh, in_specs=(whole, split), out_specs=whole, check_vma=check_vma)
    parameters = kernel, jnp.zeros(64)
    expected, found = (jax.jit(f)(parameters, x) for f in (jax.grad(size), parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * abs(b).max()), found, expected)


def test_the_network_trains_inside_of_shard_map():
    def of_a_part(params, image):
        apply = functools.partial(NETWORK.apply, rngs={"dropout": jax.random.key(1)})
        return jax.grad(lambda params: jnp.mean(apply({"params": params}, image, train=True)))(params)

    image = jnp.zeros((2, 8, 8, 3))
    params = NETWORK.init(jax.random.key(0), image)["params"]
    mesh, split = make_mesh(jax.devices()[:2]), PartitionSpec("data")
    found = jax.jit(jax.shard_map(of_a_part, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=PartitionSpec()))(
        params, image
    )
    assert np.abs(found["head"]["bias"] - 2) < 1e-5  # 1 on each device
