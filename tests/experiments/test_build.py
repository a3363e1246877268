"""From a name to an optimizer: the learning rate in every step, and the documented one where nothing is asked."""

import jax
import jax.numpy as jnp
import optax
import pytest

from experiments import build
from experiments.config import Config, override


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


def test_without_options_the_optimizer_is_the_documented_adam_in_values_and_in_state():
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
