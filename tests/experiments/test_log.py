"""The records of a run survive a kill, and undefined scores stay empty."""

import json

from experiments.log import RunLog


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
