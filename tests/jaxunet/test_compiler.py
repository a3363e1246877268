"""The options for XLA move convolutions, and only those, to another routine; all leave the values as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunet import UNet, compiler
from jaxunet.convolution import conv3x3
from jaxunet.losses import bce_loss
from jaxunet.sharding import make_mesh
from jaxunet.step import compile_eval_step, compile_predict_step, compile_train_step

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, 32, 32, 32)).astype(np.float32)
KERNEL = RNG.normal(size=(3, 3, 32, 32)).astype(np.float32)
BIAS = RNG.normal(size=32).astype(np.float32)


@pytest.fixture(autouse=True)
def _ask_the_compiler_again():
    compiler.compiler_options.cache_clear()
    yield
    compiler.compiler_options.cache_clear()


def offloaded(program: jax.stages.Wrapped, *args: object) -> tuple[int, int]:
    """Convolutions and all operations that a compiled program hands to YNNPACK."""
    text = program.lower(*args).compile().as_text()
    bodies = [body for body in text.split("\n\n") if body.lstrip().startswith("%fused_computation")]
    called = {name.split(",")[0] for line in text.splitlines() if "%ynn" in line for name in line.split("calls=")[1:]}
    inside = [body for body in bodies if body.split()[0] in called]
    return sum(" convolution(" in body for body in inside), len(called)


def test_convolutions_stay_out_of_ynnpack_and_products_do_not():
    if offloaded(jax.jit(conv3x3), (IMAGES,), KERNEL, BIAS)[0] == 0:
        pytest.skip("this XLA hands no convolution to YNNPACK on this processor, whatever it is told")
    options = compiler.compiler_options("cpu")
    assert options is not None
    convolve = jax.jit(conv3x3, compiler_options=options)
    assert offloaded(convolve, (IMAGES,), KERNEL, BIAS)[0] == 0
    for function in (lambda x: x.reshape(-1, 32) @ KERNEL[0, 0], lambda x: (x * x).sum((1, 2))):
        assert offloaded(jax.jit(function, compiler_options=options), IMAGES) == offloaded(jax.jit(function), IMAGES)


def test_every_compiled_step_is_given_the_options(monkeypatch):
    options, mesh, jit, given = compiler.compiler_options("cpu"), make_mesh(jax.devices()[:1]), jax.jit, []

    def noted(function, **arguments):
        given.append(arguments.get("compiler_options"))
        return jit(function, **arguments)

    monkeypatch.setattr(jax, "jit", noted)
    compile_train_step(mesh, loss=bce_loss, seed=0)
    compile_eval_step(mesh, apply_fn=UNet().apply, loss=bce_loss)
    compile_predict_step(mesh, apply_fn=UNet().apply)
    assert given == [options] * 3


def test_values_are_the_same():
    options = compiler.compiler_options("cpu")
    with_options = jax.jit(conv3x3, compiler_options=options)((IMAGES,), KERNEL, BIAS)
    np.testing.assert_allclose(with_options, jax.jit(conv3x3)((IMAGES,), KERNEL, BIAS), rtol=1e-5, atol=1e-4)


def test_other_devices_get_no_options():
    assert compiler.compiler_options("gpu") is None
    assert compiler.compiler_options("tpu") is None


@pytest.mark.parametrize(
    "unknown", [{"xla_of_another_version": "1"}, {"xla_cpu_experimental_ynn_fusion_type": "ANOTHER"}]
)
def test_a_version_of_xla_without_an_option_does_without(monkeypatch, unknown):
    monkeypatch.setattr(compiler, "CPU_OPTIONS", unknown)
    assert compiler.compiler_options("cpu") is None
    assert jax.jit(lambda: jnp.ones(()), compiler_options=compiler.compiler_options("cpu"))() == 1


def test_an_option_that_this_xla_knows_is_given_without_those_that_it_does_not(monkeypatch):
    known = {"xla_backend_optimization_level": "2"}
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(compiler, "CPU_OPTIONS", {"xla_of_another_version": "1", **known})
    assert compiler.compiler_options("cpu") == known


def test_what_the_user_gives_in_xla_flags_is_left_alone(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=3")
    assert "xla_backend_optimization_level" not in (compiler.compiler_options("cpu") or {})
    compiler.compiler_options.cache_clear()
    monkeypatch.delenv("XLA_FLAGS")
    assert compiler.compiler_options("cpu")["xla_backend_optimization_level"] == "2"
