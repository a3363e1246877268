"""Losses are timed with their gradients and compared with those of other libraries."""

import jax
import pytest

from experiments.bench import losses
from experiments.bench.options import LossesOptions
from experiments.bench.workload import Workload, images_and_masks
from experiments.config import ConfigError
from jaxunet.losses import LOSSES

QUICK = ("--rounds=2", "--seconds=0.02")


def test_a_loss_is_timed(here):
    out, content = here("losses", "--size=16", "--batch=2", "--only=dice,bce", *QUICK)
    assert [row["loss"] for row in content["results"] if row["suite"] == losses.OURS] == ["bce", "dice"]
    assert all(min(row["step_seconds"]["rounds"]) > 0 for row in content["results"])
    assert " dice " in out
    assert " focal " not in out


def test_an_unknown_loss_is_refused_with_the_known():
    with pytest.raises(ConfigError, match=r"^only: unknown 'dise'; known are bce, .* hybrid"):
        losses.main(LossesOptions(only=("dise",)))


def test_a_loss_is_compared_with_that_of_another_library(here, monkeypatch):
    suites = {
        losses.OURS: losses.SUITES[losses.OURS],
        "other": ("tests.helpers.bench_worker:slower_dice", ()),
        "none": ("nobody:losses", ("not_there",)),
    }
    monkeypatch.setattr(losses, "SUITES", suites)
    out, content = here("losses", "--size=16", "--batch=2", "--only=dice,bce", *QUICK)
    ratios = {(row["suite"], row["loss"]): row["ours_to_theirs"] for row in content["results"]}
    assert ratios[losses.OURS, "bce"] is ratios[losses.OURS, "dice"] is None
    assert 0 < ratios["other", "dice"] < 1
    assert "jaxunet is at least as fast in 1 of 1 comparisons" in out
    assert "absent: none (not_there not installed)" in out


def test_losses_are_timed_and_one_that_cannot_be_is_named(here):
    out, content = here("losses", "--size=8", "--batch=2", "--only=bce,ssim,dice", *QUICK)
    assert [row["loss"] for row in content["results"] if row["suite"] == losses.OURS] == ["bce", "dice"]
    assert all(len(row["step_seconds"]["rounds"]) == 2 for row in content["results"])
    assert all(min(row["step_seconds"]["rounds"]) > 0 for row in content["results"])
    masks = images_and_masks(Workload(size=8, batch=2))[1]
    logits = jax.random.normal(jax.random.key(0), masks.shape)
    assert content["results"][0]["value"] == pytest.approx(float(LOSSES["bce"].fn(logits, masks)), rel=1e-6)
    assert list(content["failed"]) == ["jaxunet ssim"]
    assert "failed: jaxunet failed in value: ValueError" in out


@pytest.mark.slow
def test_every_loss_can_be_timed(here):
    _, content = here("losses", "--size=192", "--batch=1", "--rounds=1", "--seconds=0.001")
    assert [row["loss"] for row in content["results"] if row["suite"] == losses.OURS] == list(LOSSES)
    assert content["failed"] == {}
