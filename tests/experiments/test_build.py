"""From a configuration to the optimizer and the loss."""

import jax
import jax.numpy as jnp
import optax
import pytest

from experiments import build
from experiments.config import Config, ConfigError, override
from jaxunet.losses import LOSSES


def rates(steps, **train):
    """The learning rate of the first steps of a run of five steps an epoch."""
    config = override(Config(), {f"train.{key}": value for key, value in train.items()})
    rate = build.learning_rate(config, 5)
    return [float(rate(step)) if callable(rate) else rate for step in range(steps)]


@pytest.mark.parametrize(
    ("batch", "rule", "factor"),
    [(4, "linear", 1), (64, "linear", 16), (64, "sqrt", 4), (64, "constant", 1), (1, "sqrt", 0.5)],
)
def test_the_learning_rate_belongs_to_a_batch_of_four(batch, rule, factor):
    assert rates(1, batch_size=batch, lr_rule=rule, learning_rate=3e-4) == pytest.approx([factor * 3e-4])


def test_a_warm_up_rises_evenly_from_the_first_step_to_its_last_and_stays():
    assert rates(12, warmup_epochs=1.6, learning_rate=8.0) == pytest.approx([1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 8])
    assert rates(3, warmup_epochs=0.2, learning_rate=8.0) == [8.0, 8.0, 8.0]
    assert rates(2, warmup_epochs=0.4, learning_rate=8.0, batch_size=16, lr_rule="linear") == pytest.approx([16, 32])


def test_without_options_the_optimizer_is_the_references_adam_in_values_and_in_state():
    params, grads = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([0.3, 0.1])}
    found, expected = build.optimizer(Config(), 5), optax.adam(1e-3, b1=0.9, b2=0.999, eps=1e-7)
    assert jax.tree.structure(found.init(params)) == jax.tree.structure(expected.init(params))
    updates = [tx.update(grads, tx.init(params), params)[0]["w"].tolist() for tx in (found, expected)]
    assert updates[0] == updates[1]
    assert updates[0] == pytest.approx([-1e-3, -1e-3], rel=1e-4)


def test_a_warm_up_scales_the_steps_of_adam():
    config = override(Config(), {"train.warmup_epochs": 2.0})
    params, grads = {"w": jnp.array([1.0])}, {"w": jnp.array([0.3])}
    tx = build.optimizer(config, 5)
    state = tx.init(params)
    for number in (1, 2, 3):
        updates, state = tx.update(grads, state, params)
        assert float(updates["w"][0]) == pytest.approx(-1e-3 * number / 10, rel=1e-4)


# --- the loss

HERE = __name__


def power(logits, masks, exponent=2):
    return jnp.mean(jnp.abs(jax.nn.sigmoid(logits) - masks) ** exponent)


def a_pixel(logits, masks):
    return jnp.square(logits - masks)


def test_a_users_loss_takes_its_options_by_name():
    config = override(Config(), {"train.loss": f"{HERE}:power", "train.loss_options": {"exponent": 1}})
    x, y = jnp.zeros((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1))
    assert float(build.loss(config)(x, y)) == 0.5
    with pytest.raises(ConfigError, match=rf"{HERE}:power has no option base; it has exponent$"):
        build.loss(override(config, {"train.loss_options": {"base": 1}}))


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("math:log", {}, r"train\.loss=math:log fails on logits and masks|cannot be called"),
        (
            f"{HERE}:a_pixel",
            {},
            r"returns float32\[2, 256, 256, 1\], expected one floating-point number",
        ),
        (
            f"{HERE}:power",
            {"exponent": "two"},
            rf"train\.loss={HERE}:power, exponent=two fails on .*TypeError",
        ),
        ("builtins:print", {}, r"train\.loss=builtins:print returns NoneType"),
    ],
)
def test_a_loss_that_cannot_be_trained_is_refused_before_any_data_is_read(loss, options, message):
    with pytest.raises(ConfigError, match=message):
        build.loss(override(Config(), {"train.loss": loss, "train.loss_options": options}))


def test_an_unknown_loss_lists_the_known():
    with pytest.raises(ConfigError) as caught:
        build.loss(override(Config(), {"train.loss": "tverski"}))
    assert "unknown loss; did you mean tversky?" in str(caught.value)
    assert all(name in str(caught.value) for name in (*LOSSES, "package.module:function"))


# --- augmentation


def test_augmentations_are_found_by_name_and_off_by_default():
    assert build.augmentation(Config()) is None
    assert callable(build.augmentation(override(Config(), {"train.augment": ("flip", "gamma")})))
    with pytest.raises(ConfigError, match=r"unknown augmentation 'flop'; did you mean flip\?; known are"):
        build.augmentation(override(Config(), {"train.augment": ("gamma", "flop")}))
