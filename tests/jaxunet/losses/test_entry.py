"""The declared properties of every loss in `LOSSES`: a new loss is tested as soon as it is registered.

Without an oracle in tests/oracles these tests fail.
"""

import functools
import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxunet import losses
from jaxunet.losses import CONTRACT, LOSSES, entry
from jaxunet.losses.entry import Family
from jaxunet.step import with_context
from tests.oracles import losses as oracle

SHAPE = (3, 16, 24, 2)
DRAWN_SHAPES = [(1, 11, 13, 1), (2, 24, 17, 2), (4, 40, 40, 1)]

for_each_loss = pytest.mark.parametrize("name", LOSSES)


def draw(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Logits and masks of one random kind: from harmless to saturated, masks empty, full, of one pixel, soft."""
    rng = np.random.default_rng(seed)
    scale = rng.choice([0.1, 2.0, 30.0, 1e4])
    z = rng.normal(size=shape).clip(-1, 1) * scale
    g = np.zeros(shape)
    kind = rng.choice(["empty", "full", "one pixel", "rectangle", "random", "soft"])
    if kind == "full":
        g[:] = 1
    elif kind == "one pixel":
        g[tuple(rng.integers(shape))] = 1
    elif kind == "rectangle":
        top, left = rng.integers(shape[1]), rng.integers(shape[2])
        g[:, top : top + 8, left : left + 8] = 1
    elif kind == "random":
        g = rng.random(shape) < rng.random()
    elif kind == "soft":
        g = rng.random(shape)
    logits = rng.choice(["noise", "constant", "perfect", "inverse"], p=[0.55, 0.15, 0.15, 0.15])
    if logits == "constant":
        z = np.full(shape, rng.choice([-scale, 0, scale]))
    elif logits == "perfect":
        z = scale * (2 * g - 1)
    elif logits == "inverse":
        z = scale * (1 - 2 * g)
    return z.astype(np.float32), np.asarray(g, np.float32)


def logit(p: np.ndarray) -> np.ndarray:
    """Logits of probabilities; certain ones become 1e4 away from zero."""
    with np.errstate(divide="ignore"):
        return np.clip(np.log(p) - np.log1p(-p), -1e4, 1e4).astype(np.float32)


def example(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits and masks of an unremarkable batch."""
    z = np.random.default_rng(seed).normal(scale=2, size=SHAPE).astype(np.float32)
    g = np.zeros(SHAPE, np.float32)
    g[:, 4 : 8 + seed, 6:15] = 1
    return z, g


class Result(typing.NamedTuple):
    """Results of one compiled program of a loss."""

    value: np.ndarray
    gradient: np.ndarray
    image: np.ndarray
    patient: np.ndarray
    skip: np.ndarray
    skip_gradient: np.ndarray
    skip_image: np.ndarray


@functools.cache
def program(name: str):
    """One compilation per loss, shared by the tests of this file: one per test would take minutes."""
    fn = LOSSES[name].fn

    def run(z, g, weight, patient):
        loss = functools.partial(fn, weight=weight)
        return Result(
            *jax.value_and_grad(loss)(z, g),
            loss(z, g, reduce="image"),
            loss(z, g, reduce="patient", patient=patient),
            *jax.value_and_grad(functools.partial(loss, empty="skip"))(z, g),
            loss(z, g, reduce="image", empty="skip"),
        )

    return jax.jit(run)


def call(name: str, z: np.ndarray, g: np.ndarray, weight: np.ndarray | None = None, patient=(70, 5, 70)) -> Result:
    """Runs the program on arrays of `SHAPE`; a weight of samples is spread over their pixels."""
    weight = np.ones(len(z), np.float32) if weight is None else weight
    if weight.ndim == 1:
        weight = np.broadcast_to(weight[:, None, None, None], (*SHAPE[:3], 1))
    arrays = (np.asarray(array, np.float32) for array in (z, g, weight))
    return jax.tree.map(np.asarray, program(name)(*arrays, np.array(patient, np.int32)))


@functools.cache
def mapped(name: str, shape: tuple[int, ...]):
    """Value and gradient of many examples at once, of `(logits, masks, weight)`."""
    del shape  # one compilation per shape
    return jax.jit(jax.vmap(jax.value_and_grad(lambda z, g, w: LOSSES[name].fn(z, g, weight=w))))


def test_a_loss_is_entered_by_its_function_alone(monkeypatch):
    monkeypatch.setattr(entry, "LOSSES", {})

    @entry.register("region", range=(0, 1), symmetric=True)
    def mean_error_loss(logits, masks, *, weight=None, reduce="batch", patient=None, empty="perfect", scale=2.0):
        """Mean absolute error.

        Formula: `scale
        mean|p - g|`

        Source: nobody 2000,
        eq. 1.
        """
        return scale * jnp.mean(jnp.abs(jax.nn.sigmoid(logits) - masks))

    found = entry.LOSSES["mean_error"]
    assert (found.fn, found.family, found.range, found.symmetric) == (mean_error_loss, "region", (0, 1), True)
    assert (found.formula, found.source, found.options) == ("scale mean|p - g|", "nobody 2000, eq. 1", {"scale": 2.0})
    z = jnp.zeros((1, 2, 2, 1))
    assert float(found(z, z, scale=3.0)) == float(mean_error_loss(z, z, scale=3.0)) == 1.5
    value = with_context(found)(z, z, weight=jnp.ones(1), patient=None, step=0)  # as a step calls it
    assert float(value) == 1
    with pytest.raises(ValueError, match="there is a loss 'mean_error' already"):
        entry.register("region", range=(0, 1))(mean_error_loss)
    undescribed = entry.Loss(lambda logits, masks: 0, "region", (0, 1))
    assert undescribed.formula == undescribed.source == ""


@for_each_loss
def test_it_is_described_and_has_an_oracle(name):
    loss = LOSSES[name]
    assert loss.fn.__module__.split(".")[:3] == ["jaxunet", "losses", loss.family]
    assert loss.family in typing.get_args(Family)
    assert loss.perfect in {"zero", "lowest", "elsewhere"}
    assert all((loss.formula, loss.source, loss.on_empty, loss.fn.__doc__))
    assert "Source:" in loss.fn.__doc__
    assert all(f"{option}:" in loss.fn.__doc__ or f"`{option}`" in loss.fn.__doc__ for option in loss.options)
    assert loss.fn.__name__ == f"{name}_loss"
    assert getattr(losses, loss.fn.__name__) is loss.fn
    assert name in oracle.ORACLES
    parameters = list(inspect.signature(loss.fn).parameters.values())
    assert [p.name for p in parameters[:2]] == ["logits", "masks"]
    options = {p.name: p for p in parameters[2:]}
    assert {p.kind for p in options.values()} == {inspect.Parameter.KEYWORD_ONLY}
    contract = {option: options.pop(option).default for option in CONTRACT}
    assert contract == {"weight": None, "reduce": "batch", "patient": None, "empty": "perfect"}
    assert loss.options == {option: p.default for option, p in options.items()}
    assert inspect.signature(loss) == inspect.signature(loss.fn)  # a step inspects which arguments a loss takes
    assert all(loss.fn.__doc__.count(f"{heading}:") == 1 for heading in ("Formula", "Source"))
    assert not {"`", "\n"} & set(loss.formula)


@for_each_loss
def test_groups_have_the_values_they_have_alone(name):
    z, g = example()
    found = call(name, z, g)
    for row in range(3):  # alone: the others have no weight
        alone = call(name, z, g, np.eye(3, dtype=np.float32)[row])
        np.testing.assert_allclose(found.image[row], alone.value, rtol=1e-5, atol=1e-6)
    pair = call(name, z, g, np.array([1, 0, 1], np.float32))
    np.testing.assert_allclose(found.patient, [pair.value, found.image[1], 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pair.patient, [pair.value, 0, 0], rtol=1e-5, atol=1e-6)
    same = call(name, z, g, patient=(1, 1, 1))
    np.testing.assert_allclose(same.patient, [same.value, 0, 0], rtol=1e-5, atol=1e-6)


@for_each_loss
def test_a_group_without_tumour_counts_unless_it_is_skipped(name):
    z, g = example()
    g[1] = 0
    found = call(name, z, g)
    np.testing.assert_array_equal(found.skip_image == 0, [False, True, False])
    np.testing.assert_allclose(found.skip_image[::2], found.image[::2], rtol=1e-5, atol=1e-6)
    none = call(name, z, 0 * g)
    assert none.skip == 0
    assert not none.skip_gradient.any()
    np.testing.assert_allclose(call(name, *example()).skip, call(name, *example()).value, rtol=1e-6)


@for_each_loss
def test_an_empty_mask_teaches_the_empty_prediction(name):
    """Every pixel is pushed down at every level of certainty, or the entry says why not."""
    if not LOSSES[name].learns_from_empty:
        assert "no gradient" in LOSSES[name].on_empty
        return
    for level in (-6.0, -1.0, 0.0, 3.0):
        found = call(name, np.full(SHAPE, level), np.zeros(SHAPE))
        assert np.isfinite(found.value)
        assert found.gradient.sum() > 0
        assert (found.gradient >= 0).all()


@for_each_loss
@pytest.mark.parametrize("junk", [0.0, 1e4, np.nan, np.inf])
def test_weight_zero_takes_a_sample_out_of_value_and_gradient(name, junk):
    z, g = example()
    weight = np.array([1, 0, 1], np.float32)
    found = call(name, z, g, weight)
    other_z, other_g = z.copy(), g.copy()
    other_z[1], other_g[1] = junk, np.nan if np.isnan(junk) else 1
    other = call(name, other_z, other_g, weight)
    assert np.isfinite(found.value)
    for one, another in zip(found, other, strict=True):
        np.testing.assert_array_equal(one, another)  # to the bit
    assert not found.gradient[1].any()
    assert found.gradient[0].any()


@for_each_loss
@pytest.mark.parametrize("junk", [1e4, np.nan])
def test_weight_zero_takes_a_pixel_out_of_value_and_gradient(name, junk):
    z, g = example()
    weight = np.ones((*SHAPE[:3], 1), np.float32)
    weight[:, :3, :5] = 0
    found = call(name, z, g, weight)
    other = call(name, np.where(weight == 0, junk, z), g, weight)
    assert np.isfinite(found.value)
    assert found.value == other.value
    np.testing.assert_array_equal(found.gradient, other.gradient)
    assert not np.where(weight == 0, found.gradient, 0).any()
    assert np.where(weight == 0, 0, found.gradient).any()


@for_each_loss
def test_a_batch_of_padding_alone_is_zero_and_has_no_gradient(name):
    z, g = example()
    found = call(name, z, g, np.zeros(3, np.float32))
    assert not any(values.any() for values in found)


@for_each_loss
def test_wrong_shapes_and_dtypes_are_refused_with_the_shapes(name):
    loss, z = LOSSES[name].fn, np.zeros((2, 16, 16, 1), np.float32)
    for other in ((2, 16, 16), (2, 16, 16, 2), (1, 16, 16, 1), (2, 16, 1, 16)):
        with pytest.raises(ValueError, match=r"\(2, 16, 16, 1\)") as error:
            loss(z, np.zeros(other))
        assert str(other) in str(error.value)
    with pytest.raises(ValueError, match="same shape"):
        loss(z[0], z[0])
    with pytest.raises(ValueError, match="int32"):
        loss(z.astype(np.int32), z)
    for shape in ((1,), (2, 1), (2, 16, 16), (2, 16, 16, 2)):
        with pytest.raises(ValueError, match="weight"):
            loss(z, z, weight=np.ones(shape))
    with pytest.raises(ValueError, match="expected one of 'batch', 'image', 'patient'"):
        loss(z, z, reduce="pixel")
    with pytest.raises(ValueError, match="expected one of 'perfect', 'skip'"):
        loss(z, z, empty="zero")
    with pytest.raises(ValueError, match="needs patient"):
        loss(z, z, reduce="patient")
    with pytest.raises(ValueError, match=r"\(2,\)"):
        loss(z, z, reduce="patient", patient=np.zeros(3, int))


@for_each_loss
def test_it_is_one_pure_program_in_float32_without_callbacks(name):
    z = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    text = str(jax.make_jaxpr(jax.value_and_grad(LOSSES[name].fn))(z, z))
    assert "callback" not in text
    assert "f64" not in text
    for dtype in (jnp.bfloat16, jnp.float16):
        half = jax.eval_shape(LOSSES[name].fn, jax.ShapeDtypeStruct(SHAPE, dtype), z)
        assert half.dtype == jnp.float32
    one = call(name, *example())
    again = call(name, *example())
    assert all((a == b).all() for a, b in zip(one, again, strict=True))
    assert one.value != call(name, *example(1)).value
    assert program(name)._cache_size() == 1


@for_each_loss
def test_no_nan_appears_on_the_way_at_the_extremes(name):
    for level in (-1e4, -100, 0, 100, 1e4):
        for mask in (0, 1):
            found = call(name, np.full(SHAPE, level), np.full(SHAPE, mask))
            assert all(np.isfinite(values).all() for values in found)


@for_each_loss
@pytest.mark.slow
def test_jit_gives_what_eager_gives(name):
    z, g = example()
    np.testing.assert_allclose(call(name, z, g).value, LOSSES[name].fn(z, g), rtol=1e-5)
    for dtype in (bool, np.uint8, np.int32, jnp.bfloat16):
        np.testing.assert_allclose(LOSSES[name].fn(z, g.astype(dtype)), LOSSES[name].fn(z, g), rtol=1e-6)
    with jax.debug_nans(True):
        for level in (-1e4, -100, 0, 100, 1e4):
            for mask in (0, 1):
                jax.grad(LOSSES[name].fn)(np.full(SHAPE, level, np.float32), np.full(SHAPE, mask, np.float32))


def check_properties(name: str, shape: tuple[int, ...], seed: int, count: int) -> None:
    """Of `count` random examples at once: finite, in range, no better than perfect, the same from every side."""
    rng = np.random.default_rng(seed)
    z, g = map(np.stack, zip(*(draw(int(s), shape) for s in rng.integers(2**31, size=count)), strict=True))
    ones = np.ones((count, shape[0]), np.float32)
    loss = mapped(name, shape)
    value, gradient = map(np.asarray, loss(z, g, ones))
    tolerance = 2e-4 * np.maximum(1, np.abs(value))  # SSIM of constants in float32 is the widest

    assert value.dtype == gradient.dtype == np.float32
    assert np.isfinite(value).all()
    assert np.isfinite(gradient).all()
    declared = LOSSES[name]
    lowest, highest = declared.range
    assert ((value >= lowest - 1e-6) & (value <= highest + 1e-5)).all()

    hard = np.asarray(g > 0.5, np.float32)
    any_value = np.asarray(loss(z, hard, ones)[0])
    perfect = np.asarray(loss(1e4 * (2 * hard - 1), hard, ones)[0])
    if declared.perfect == "zero":
        np.testing.assert_allclose(perfect, 0, atol=1e-5)
    if declared.perfect != "elsewhere":
        assert (perfect <= any_value + 1e-5 * np.maximum(1, np.abs(any_value))).all()
    if declared.symmetric:
        p = np.asarray(jax.nn.sigmoid(z))
        there, back = (np.asarray(loss(logit(one), other, ones)[0]) for one, other in ((p, g), (g, p)))
        both = p.any((1, 2, 3, 4)) & g.any((1, 2, 3, 4))  # an empty mask has a rule of its own
        assert (np.abs(there - back) <= tolerance)[both].all()

    mirrored = loss(z[:, :, ::-1, ::-1], g[:, :, ::-1, ::-1], ones)
    assert (np.abs(np.asarray(mirrored[0]) - value) <= tolerance).all()
    shuffled = loss(z[:, ::-1], g[:, ::-1], ones)
    assert (np.abs(np.asarray(shuffled[0]) - value) <= tolerance).all()

    if not declared.positional:
        order = rng.permutation(shape[1])
        moved = np.asarray(loss(z[:, :, order], g[:, :, order], ones)[0])
        assert (np.abs(moved - value) <= tolerance).all()
    if declared.monotone:
        better = np.where((hard == 1) & (rng.random(z.shape) < 0.2), z + abs(z) * 0.1 + 0.1, z)
        improved = np.asarray(loss(better.astype(np.float32), hard, ones)[0])
        assert (improved <= any_value + 1e-5 * np.maximum(1, any_value)).all()

    weight = np.asarray(rng.random(ones.shape) < 0.5, np.float32)
    junk = np.where(weight[..., None, None, None] == 0, rng.choice([np.nan, np.inf, 1e4]), z).astype(np.float32)
    left_out = map(np.asarray, loss(junk, g, weight))
    for found, expected in zip(left_out, map(np.asarray, loss(z, g, weight)), strict=True):
        np.testing.assert_array_equal(found, expected)


SEEDS = {"shape": st.sampled_from(DRAWN_SHAPES), "seed": st.integers(0, 2**31)}


@for_each_loss
@settings(max_examples=4, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**31))
def test_properties_hold_for_random_contents(name, seed):
    check_properties(name, DRAWN_SHAPES[0], seed, count=5)


@for_each_loss
@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(**SEEDS)
def test_properties_hold_for_ten_thousand_random_contents(name, shape, seed):
    check_properties(name, shape, seed, count=50)
