"""Training: the best epoch, early stopping, warnings, and what is saved when a slice cannot be read."""

import io
import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from data_pipeline.source import DataError
from experiments import training
from experiments.config import Config, override
from experiments.machine import Clock
from experiments.prefetch import Prefetcher
from experiments.training import Pace, RunProgress
from jaxunet.metrics import PixelSums
from jaxunet.sharding import make_mesh


def run_epochs(losses, patience=10, **kwargs):
    progress, better = RunProgress(), []
    for step, loss in enumerate(losses, 1):
        progress.add({"loss": loss + 0.5, "sensitivity": float("nan")})
        better.append(progress.close_epoch(step, {"loss": loss}, empty=False, patience=patience))
    return progress, better


def test_the_best_epoch_has_the_lowest_validation_loss_and_a_tie_keeps_the_first():
    progress, better = run_epochs([0.5, 0.3, 0.4, 0.3])
    assert better == [True, True, False, False]
    assert (progress.best_epoch, progress.best_loss, progress.stale_epochs) == (2, 0.3, 2)


def test_training_stops_after_patience_epochs_without_a_lower_loss():
    assert not run_epochs([0.3, 0.4, 0.5], patience=3)[0].stopped
    assert "3 epochs" in run_epochs([0.3, 0.4, 0.5, 0.3], patience=3)[0].stopped


def test_an_epochs_score_is_the_mean_over_the_batches_that_define_it():
    progress = RunProgress()
    progress.add({"loss": 1.0, "sensitivity": 0.5})
    progress.add({"loss": 2.0, "sensitivity": float("nan")})
    assert progress.means()["loss"] == 1.5
    assert progress.means()["sensitivity"] == 0.5
    assert progress.means()["precision"] is None


def test_progress_survives_json():
    progress, _ = run_epochs([0.5, 1 / 3])
    progress.add({"loss": 0.1})
    copy = RunProgress(**json.loads(json.dumps(progress.__dict__)))
    assert copy == progress


def collapse(epochs, loss=0.5, empty=True):
    trainer = SimpleNamespace(
        validate=lambda state: ({"loss": loss}, empty),
        best=SimpleNamespace(save=lambda *args: None),
        config=SimpleNamespace(train=SimpleNamespace(patience=10, metrics=("loss", "val_loss"))),
        clock=Clock(),
    )
    log = SimpleNamespace(epoch=lambda history: None, time=lambda row: None)
    text, progress = io.StringIO(), RunProgress()
    for step in range(epochs):
        training.end_epoch(trainer, SimpleNamespace(params=None), step, progress, log, Console(file=text))
    return text.getvalue()


def test_three_validation_epochs_without_a_positive_pixel_print_a_warning_once():
    assert "warning" not in collapse(2)
    assert collapse(5).count("warning") == 1
    assert "--train.learning_rate" in collapse(3)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_validation_loss_that_is_not_finite_prints_a_warning(loss):
    assert f"warning: the validation loss is {loss}" in collapse(1, loss=loss, empty=False)
    assert "warning" not in collapse(1, empty=False)


def test_steps_before_a_slice_that_cannot_be_read_are_saved():
    def batches():
        for _ in range(3):
            yield {name: np.zeros(1) for name in ("image", "mask", "weight")}
        raise DataError("slice b_1 cannot be read")

    saved, synced = [], []
    sums = PixelSums(*(np.ones(2) for _ in PixelSums._fields))
    metrics = {"finite": True, "loss": jnp.float32(0.5), "sums": sums, "grad_norm": 1.0}
    trainer = SimpleNamespace(
        config=override(Config(), {"train.patience": 1}),
        total=8,
        steps_per_epoch=8,
        steps=SimpleNamespace(
            mesh=make_mesh(jax.devices()[:1]),
            train_step=lambda state, batch: (SimpleNamespace(step=state.step + 1), metrics),
        ),
        batches=lambda step: Prefetcher(batches(), lambda batch: batch),
        clock=Clock(),
        last=SimpleNamespace(latest=None),
        save=lambda state, step, progress: saved.append((state.step, step, len(synced))),
    )
    log = SimpleNamespace(step=lambda row: None, time=lambda row: None, sync=lambda: synced.append(True))
    with pytest.raises(DataError, match="b_1"):
        training.fit(trainer, SimpleNamespace(step=0), RunProgress(), log, Console(file=io.StringIO()))
    assert saved == [(3, 3, 1)]


def test_nan_is_the_best_loss_only_until_a_number_appears():
    progress = RunProgress()
    losses = [math.nan, 0.5, math.nan, 0.4]
    best = [progress.close_epoch(i, {"loss": loss}, empty=False, patience=9) for i, loss in enumerate(losses, 1)]
    assert best == [True, True, False, True]
    assert progress.best_epoch == 4 and progress.best_loss == 0.4


def test_without_any_number_the_first_epoch_is_kept_and_training_stops_early():
    progress = RunProgress()
    best = [progress.close_epoch(i, {"loss": math.nan}, empty=False, patience=3) for i in range(1, 5)]
    assert best == [True, False, False, False]
    assert progress.best_epoch == 1 and progress.stopped
    assert progress.close_epoch(5, {"loss": 0.7}, empty=False, patience=3)


def paced(monkeypatch, seconds, total=10_000, platform="cpu"):
    """The speeds and the text of four steps that take some seconds each."""
    now, text = [0.0], io.StringIO()
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    devices = SimpleNamespace(flat=[SimpleNamespace(platform=platform)])
    trainer = SimpleNamespace(
        config=override(Config(), {"train.batch_size": 4}),
        total=total,
        steps=SimpleNamespace(mesh=SimpleNamespace(devices=devices)),
    )
    pace, speeds = Pace(trainer, Console(file=text, width=200)), []
    for step in range(1, 5):
        speeds.append(pace.update(step))
        now[0] += seconds
    return speeds, text.getvalue()


def test_the_speed_leaves_the_first_step_out(monkeypatch):
    speeds, text = paced(monkeypatch, 0.5, total=100)
    assert speeds == ["", "0.5 s per step, 8 images/s", "0.5 s per step, 8 images/s", "0.5 s per step, 8 images/s"]
    assert text == ""


def test_a_long_run_on_a_cpu_says_once_how_long_it_takes_and_how_to_shorten_it(monkeypatch):
    text = paced(monkeypatch, 2.0)[1]
    assert text.startswith("all epochs take about 5.6 hours at 2 s per step; --config=demo trains in minutes")
    assert text.count("hours") == 1
    assert paced(monkeypatch, 2.0, platform="gpu")[1] == ""
