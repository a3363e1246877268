"""What training decides between steps: early stopping, the best epoch, warnings, the log after a kill."""

import io
import json
import os
import signal
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from data_pipeline.source import DataError
from experiments import build, train
from experiments.clock import Clock
from experiments.config import Config, ConfigError, override
from experiments.feed import Feed
from experiments.log import Meter, RunLog
from experiments.program import changing_threads_often
from experiments.progress import Progress
from experiments.signals import StopRequest, anywhere
from jaxunet.metrics import PixelSums
from jaxunet.sharding import make_mesh


def run_epochs(losses, patience=10, **kwargs):
    progress, better = Progress(), []
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
    progress = Progress()
    progress.add({"loss": 1.0, "sensitivity": 0.5})
    progress.add({"loss": 2.0, "sensitivity": float("nan")})
    assert progress.means()["loss"] == 1.5
    assert progress.means()["sensitivity"] == 0.5
    assert progress.means()["precision"] is None


def test_progress_survives_json():
    progress, _ = run_epochs([0.5, 1 / 3])
    progress.add({"loss": 0.1})
    copy = Progress(**json.loads(json.dumps(progress.__dict__)))
    assert copy == progress


def collapse(epochs, loss=0.5, empty=True):
    trainer = SimpleNamespace(
        validate=lambda state: ({"loss": loss}, empty),
        best=SimpleNamespace(save=lambda *args: None),
        config=SimpleNamespace(train=SimpleNamespace(patience=10, metrics=("loss", "val_loss"))),
        clock=Clock(),
    )
    log = SimpleNamespace(epoch=lambda history: None, time=lambda row: None)
    text, progress = io.StringIO(), Progress()
    for step in range(epochs):
        train.end_epoch(trainer, SimpleNamespace(params=None), step, progress, log, Console(file=text))
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
        program=SimpleNamespace(
            mesh=make_mesh(jax.devices()[:1]),
            train_step=lambda state, batch: (SimpleNamespace(step=state.step + 1), metrics),
        ),
        feed=lambda step: Feed(batches(), lambda batch: batch),
        clock=Clock(),
        last=SimpleNamespace(latest=None),
        save=lambda state, step, progress: saved.append((state.step, step, len(synced))),
    )
    log = SimpleNamespace(step=lambda row: None, time=lambda row: None, sync=lambda: synced.append(True))
    with pytest.raises(DataError, match="b_1"):
        train.fit(trainer, SimpleNamespace(step=0), Progress(), log, Console(file=io.StringIO()))
    assert saved == [(3, 3, 1)]


def power(logits, masks, exponent=2):
    return jnp.mean(jnp.abs(jax.nn.sigmoid(logits) - masks) ** exponent)


def a_pixel(logits, masks):
    return jnp.square(logits - masks)


def test_a_loss_of_ones_own_takes_its_options_by_name():
    config = override(Config(), {"train.loss": "test_train:power", "train.loss_options": {"exponent": 1}})
    x, y = jnp.zeros((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1))
    assert float(build.loss(config)(x, y)) == 0.5
    with pytest.raises(ConfigError, match=r"test_train:power has no option base; it has exponent$"):
        build.loss(override(config, {"train.loss_options": {"base": 1}}))


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("math:log", {}, r"train\.loss=math:log fails on logits and masks|cannot be called"),
        ("test_train:a_pixel", {}, r"returns float32\[2, 256, 256, 1\], expected one floating-point number"),
        ("test_train:power", {"exponent": "two"}, r"train\.loss=test_train:power, exponent=two fails on .*TypeError"),
        ("builtins:print", {}, r"train\.loss=builtins:print returns NoneType"),
    ],
)
def test_a_loss_that_cannot_be_trained_is_said_before_any_data_is_read(loss, options, message):
    with pytest.raises(ConfigError, match=message):
        build.loss(override(Config(), {"train.loss": loss, "train.loss_options": options}))


def test_the_first_signal_asks_and_the_second_ctrl_c_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest().listening() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_single_process_hears_itself_at_every_step():
    assert anywhere([True, False], step=7) == [True, False]


def test_rows_after_the_checkpoint_and_half_written_ones_are_dropped_on_resuming(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.4}\n{"step": 3, "loss": 0.3}\n{"step": 4, "lo')
    log = RunLog(tmp_path, eval_dir=tmp_path, columns=("loss", "val_loss"), title="t", step=2)
    log.step({"step": 3, "epoch": 1, "loss": 0.25})
    log.close()
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [0.5, 0.4, 0.25]


def test_a_silent_log_writes_nothing(tmp_path):
    log = RunLog(tmp_path, eval_dir=tmp_path / "eval", columns=("loss", "val_loss"), title="t", step=0, silent=True)
    log.step({"step": 1, "epoch": 1, "loss": 0.5})
    log.epoch([{"step": 1, "epoch": 1, "loss": 0.5, "val_loss": 0.4}])
    log.sync()
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_csv_leaves_an_undefined_score_empty(tmp_path):
    log = RunLog(tmp_path, eval_dir=tmp_path, columns=("sensitivity", "val_sensitivity"), title="t", step=0)
    log.epoch([{"step": 1, "epoch": 1, "loss": 0.5, "val_loss": 0.4, "sensitivity": None, "val_sensitivity": 0.25}])
    log.close()
    assert (tmp_path / "train_metrics.csv").read_text() == "epoch,sensitivity,val_sensitivity\n1,,0.25\n"
    assert (tmp_path / "train_losses.csv").read_text() == "epoch,loss,val_loss\n1,0.5,0.4\n"


def test_where_there_is_no_terminal_a_line_comes_at_most_so_often():
    text = io.StringIO()
    console = Console(file=text, force_terminal=False)
    with Meter(console, total=1000, done=0, images=4, seconds_a_line=3600) as meter:
        for step in range(1, 100):
            meter.update(step, "loss 0.5")
    assert text.getvalue() == ""
    with Meter(console, total=10, done=0, images=4, seconds_a_line=0) as meter:
        meter.update(1, "loss 0.5")
        meter.update(2, "loss 0.4")
    assert "step 2 of 10: loss 0.4" in text.getvalue()
    assert "images/s" in text.getvalue()


def test_threads_change_as_seldom_as_before_once_the_files_are_read():
    before = sys.getswitchinterval()
    with pytest.raises(DataError), changing_threads_often():
        assert sys.getswitchinterval() < before
        raise DataError("no file")
    assert sys.getswitchinterval() == before
