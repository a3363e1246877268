"""A run directory that version 0.1 wrote is resumed, found finished, and used for prediction."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments import training
from experiments.cli import parse
from experiments.machine import Clock
from experiments.predict import load

SAVED = Path(__file__).parents[1] / "data" / "run_0_1"


@pytest.fixture
def old_run(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(SAVED, tmp_path / "run")
    return tmp_path / "run"


def rows(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row for row in lines if row.get("kind") not in ("start", "time")]


def train(run, *words):
    text = io.StringIO()
    progress = training.train(parse([f"--run_dir={run}", *words]), Console(file=text, width=200), Clock())
    return progress, text.getvalue()


def test_a_finished_run_needs_no_space_and_trains_nothing(old_run, monkeypatch):
    monkeypatch.setattr(training, "free_megabytes", lambda path: 0.0)
    before = rows(old_run)
    progress, text = train(old_run)
    assert progress.epoch == 2 and "continuing after step 20" in text
    assert rows(old_run) == before


def test_a_longer_run_continues_where_the_old_one_ended(old_run):
    before = rows(old_run)
    progress, text = train(old_run, "--train.epochs=3")
    assert "continuing after step 20, epoch 2" in text
    after = rows(old_run)
    assert after[: len(before)] == before and [row["step"] for row in after[len(before) :]] == [*range(21, 31), 30]
    # The old code continued to this loss; the order of sums may differ between machines.
    assert progress.history[-1]["val_loss"] == pytest.approx(0.83124327, rel=1e-4)
    with (old_run / "train_losses.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def test_its_weights_predict(old_run):
    probabilities = load(old_run)(np.zeros((40, 24, 3), np.uint8))
    assert probabilities.shape == (40, 24, 1) and ((probabilities >= 0) & (probabilities <= 1)).all()
