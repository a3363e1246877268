"""What every entry of `LOSSES` promises, tested for each: a new entry is tested as soon as it is listed.

It needs an oracle, tolerances and a range in `oracle.py`, or these tests fail.
"""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxunet.losses import LOSSES

SHAPE = (3, 16, 24, 2)
DRAWN_SHAPES = [(1, 11, 13, 1), (2, 24, 17, 2), (4, 40, 40, 1)]

pytestmark = pytest.mark.parametrize("name", LOSSES)


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


def example(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits and masks of an unremarkable batch."""
    z = np.random.default_rng(seed).normal(scale=2, size=SHAPE).astype(np.float32)
    g = np.zeros(SHAPE, np.float32)
    g[:, 4 : 8 + seed, 6:15] = 1
    return z, g


@functools.cache
def compiled(name: str):
    """Value and gradient, of `(logits, masks, weight)`."""
    return jax.jit(jax.value_and_grad(lambda z, g, w: LOSSES[name].fn(z, g, weight=w)))


@functools.cache
def mapped(name: str, shape: tuple[int, ...]):
    """The same of many examples at once."""
    del shape  # one compilation a shape
    return jax.jit(jax.vmap(jax.value_and_grad(lambda z, g, w: LOSSES[name].fn(z, g, weight=w))))


def test_it_is_described_and_has_an_oracle(name):
    entry = LOSSES[name]
    assert entry.family in {"distribution", "region", "structural", "boundary", "compound"}
    assert all(getattr(entry, field.name) for field in dataclasses.fields(entry))
    assert entry.fn.__name__ == f"{name}_loss"
    assert all(name in table for table in (oracle.ORACLES, oracle.VALUE_TOLERANCE, oracle.GRADIENT_TOLERANCE))
    parameters = list(inspect.signature(entry.fn).parameters.values())
    assert [p.name for p in parameters[:2]] == ["logits", "masks"]
    options = {p.name: p for p in parameters[2:]}
    assert {p.kind for p in options.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert options["weight"].default is None
    assert options["reduce"].default == "batch"


def test_its_value_per_image_is_that_of_the_image_alone(name):
    z, g = example()
    g[1] = 0

    @jax.jit
    def both(z, g):
        return LOSSES[name].fn(z, g, reduce="image"), jax.vmap(LOSSES[name].fn)(z[:, None], g[:, None])

    per_image, alone = both(z, g)
    assert per_image.shape == (len(z),)
    np.testing.assert_allclose(per_image, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("junk", [0.0, 1e4, np.nan, np.inf])
def test_weight_zero_takes_a_sample_out_of_value_and_gradient(name, junk):
    z, g = example()
    weight = np.array([1, 0, 1], np.float32)
    value, gradient = compiled(name)(z, g, weight)
    other_z, other_g = z.copy(), g.copy()
    other_z[1], other_g[1] = junk, np.nan if np.isnan(junk) else 1
    other_value, other_gradient = compiled(name)(other_z, other_g, weight)
    assert np.isfinite(value)
    assert value == other_value  # to the bit
    np.testing.assert_array_equal(gradient, other_gradient)
    assert not gradient[1].any()
    assert np.asarray(gradient[0]).any()


@pytest.mark.parametrize("junk", [1e4, np.nan])
def test_weight_zero_takes_a_pixel_out_of_value_and_gradient(name, junk):
    z, g = example()
    weight = np.ones((*SHAPE[:3], 1), np.float32)
    weight[:, :3, :5] = 0
    value, gradient = compiled(name)(z, g, weight)
    other_z = np.where(weight == 0, junk, z).astype(np.float32)
    other_value, other_gradient = compiled(name)(other_z, g, weight)
    assert np.isfinite(value)
    assert value == other_value
    np.testing.assert_array_equal(gradient, other_gradient)
    assert not np.where(weight == 0, gradient, 0).any()
    assert np.where(weight == 0, 0, gradient).any()


def test_padding_changes_neither_value_nor_gradient(name):
    z, g = example()
    value, gradient = compiled(name)(z, g, np.ones(3, np.float32))
    padding = [(0, 2), (0, 0), (0, 0), (0, 0)]
    padded = compiled(name)(np.pad(z, padding), np.pad(g, padding), np.array([1, 1, 1, 0, 0], np.float32))
    np.testing.assert_allclose(padded[0], value, rtol=1e-6)
    np.testing.assert_allclose(padded[1][:3], gradient, rtol=1e-4, atol=1e-8)
    assert not padded[1][3:].any()


def test_a_batch_of_padding_alone_is_finite_and_has_no_gradient(name):
    z, g = example()
    value, gradient = compiled(name)(z, g, np.zeros(3, np.float32))
    assert np.isfinite(value)
    assert not gradient.any()


def test_weight_one_is_no_weight(name):
    z, g = example()
    plain = LOSSES[name].fn(z, g)
    np.testing.assert_allclose(compiled(name)(z, g, np.ones(3, np.float32))[0], plain, rtol=1e-6)
    np.testing.assert_allclose(compiled(name)(z, g, np.ones((*SHAPE[:3], 1), np.float32))[0], plain, rtol=1e-6)


def test_masks_of_any_dtype_give_the_same(name):
    z, g = example()
    for dtype in (bool, np.uint8, np.int32, jnp.bfloat16):
        assert LOSSES[name].fn(z, g.astype(dtype)) == LOSSES[name].fn(z, g)


def test_wrong_shapes_and_dtypes_are_refused_with_the_shapes(name):
    loss, z = LOSSES[name].fn, jnp.zeros((2, 16, 16, 1))
    for other in ((2, 16, 16), (2, 16, 16, 2), (1, 16, 16, 1), (2, 16, 1, 16)):
        with pytest.raises(ValueError, match=r"\(2, 16, 16, 1\)") as error:
            loss(z, jnp.zeros(other))
        assert str(other) in str(error.value)
    with pytest.raises(ValueError, match="same shape"):
        loss(z[0], z[0])
    with pytest.raises(ValueError, match="int32"):
        loss(z.astype(jnp.int32), z)
    for shape in ((1,), (2, 1), (2, 16, 16), (2, 16, 16, 2)):
        with pytest.raises(ValueError, match="weight"):
            loss(z, z, weight=jnp.ones(shape))
    with pytest.raises(ValueError, match="expected one of 'batch', 'image'"):
        loss(z, z, reduce="pixel")


def test_jit_gives_what_eager_gives_and_traces_once(name):
    traces = []

    def counted(z, g):
        traces.append(1)
        return LOSSES[name].fn(z, g)

    jitted = jax.jit(counted)
    values = [jitted(*example(seed)) for seed in range(3)]
    assert len(traces) == 1
    assert len(set(map(float, values))) == 3
    np.testing.assert_allclose(values[0], LOSSES[name].fn(*example()), rtol=1e-6)


def test_it_never_calls_back_to_the_host(name):
    z = jnp.zeros(SHAPE)
    program = str(jax.make_jaxpr(jax.value_and_grad(LOSSES[name].fn))(z, z))
    assert "callback" not in program
    assert "f64" not in program


def test_no_nan_appears_on_the_way_at_the_extremes(name):
    with jax.debug_nans(True):
        for level in (-1e4, -100, 0, 100, 1e4):
            for mask in (0, 1):
                z, g = np.full(SHAPE, level, np.float32), np.full(SHAPE, mask, np.float32)
                value, gradient = compiled(name)(z, g, np.ones(3, np.float32))
                assert np.isfinite(value)
                assert np.isfinite(gradient).all()


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
    lowest, highest = oracle.RANGE[name]
    assert ((value >= lowest - 1e-6) & (value <= highest + 1e-5)).all()

    hard = np.asarray(g > 0.5, np.float32)
    any_value = np.asarray(loss(z, hard, ones)[0])
    perfect = np.asarray(loss(1e4 * (2 * hard - 1), hard, ones)[0])
    np.testing.assert_allclose(perfect, 0, atol=1e-5)
    assert (perfect <= any_value + 1e-5).all()

    mirrored = loss(z[:, :, ::-1, ::-1], g[:, :, ::-1, ::-1], ones)
    assert (np.abs(np.asarray(mirrored[0]) - value) <= tolerance).all()
    shuffled = loss(z[:, ::-1], g[:, ::-1], ones)
    assert (np.abs(np.asarray(shuffled[0]) - value) <= tolerance).all()

    if name in oracle.PIXELWISE:
        order = rng.permutation(shape[1])
        moved = np.asarray(loss(z[:, :, order], g[:, :, order], ones)[0])
        assert (np.abs(moved - value) <= tolerance).all()
        better = np.where((hard == 1) & (rng.random(z.shape) < 0.2), z + abs(z) * 0.1 + 0.1, z)
        improved = np.asarray(loss(better.astype(np.float32), hard, ones)[0])
        assert (improved <= any_value + 1e-5 * np.maximum(1, any_value)).all()

    weight = np.asarray(rng.random(ones.shape) < 0.5, np.float32)
    junk = np.where(weight[..., None, None, None] == 0, rng.choice([np.nan, np.inf, 1e4]), z).astype(np.float32)
    left_out = map(np.asarray, loss(junk, g, weight))
    for found, expected in zip(left_out, map(np.asarray, loss(z, g, weight)), strict=True):
        np.testing.assert_array_equal(found, expected)


SEEDS = {"shape": st.sampled_from(DRAWN_SHAPES), "seed": st.integers(0, 2**31)}


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(**SEEDS)
def test_properties_hold_for_random_contents(name, shape, seed):
    check_properties(name, shape, seed, count=5)


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(**SEEDS)
def test_properties_hold_for_ten_thousand_random_contents(name, shape, seed):
    check_properties(name, shape, seed, count=50)
