"""A run that is killed and started again ends as one that was never interrupted, bit for bit."""

import json
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from programs import TINY, environment, interrupt, killed, run

from experiments import build
from experiments.config import read_run
from jaxunet.checkpoint import Checkpoints, abstract_like

pytestmark = pytest.mark.timeout(600)

ARGS = (*TINY, "--run_dir=run", "--train.save_minutes=0.0005")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    cache, cwd = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("whole")
    done = run("train", *ARGS, cwd=cwd, env=environment(cache))
    assert done.returncode == 0, done.stdout + done.stderr
    return cache, cwd / "run"


def rows(run_dir: Path) -> list[dict]:
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def checkpoint(run_dir: Path, which: str):
    config = read_run(run_dir)
    state = jax.eval_shape(
        lambda: build.init_state(
            build.model(config), build.optimizer(config), seed=0, image_shape=build.image_shape(config)
        )
    )
    tree = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpoints(run_dir / "checkpoints" / which, keep=None) as checkpoints:
        return checkpoints.restore(abstract_like(tree if which == "last" else state.params, sharding))


def same_run(a: Path, b: Path) -> None:
    for which in ("last", "best"):
        (tree_a, record_a), (tree_b, record_b) = checkpoint(a, which), checkpoint(b, which)
        assert record_a == record_b  # early-stopping count, best epoch and the whole history
        for x, y in zip(jax.tree.leaves(tree_a), jax.tree.leaves(tree_b), strict=True):
            np.testing.assert_array_equal(x, y)
    for name in ("train_losses.csv", "train_metrics.csv", "metrics.jsonl"):
        assert (a / name).read_text() == (b / name).read_text(), name


def steps_per_epoch(run_dir: Path) -> int:
    return len(json.loads((run_dir / "manifest.json").read_text())["split"]["train"]) // 8


def test_a_run_killed_at_five_moments_ends_like_an_uninterrupted_one(uninterrupted, tmp_path):
    cache, whole = uninterrupted
    mine, epoch = tmp_path / "run", steps_per_epoch(whole)

    def finished(step):
        return any(row["step"] >= step for row in rows(mine))

    def saving(which, step):
        return lambda: (
            finished(step) and any("tmp" in p.name for p in (mine / "checkpoints" / which).iterdir() if p.is_dir())
        )

    moments = {
        "before anything is saved": lambda: (mine / "checkpoints" / "last").is_dir(),
        "in the first epoch": lambda: finished(2),
        "in a save of the full state": saving("last", 3),
        "in evaluation": lambda: finished(epoch),
        "in a save of the best weights": saving("best", 2 * epoch),
    }
    for moment, when in moments.items():
        code, output = interrupt(ARGS, when, signal.SIGKILL, cwd=tmp_path, env=environment(cache))
        assert killed(code), f"not killed {moment}: {output}"
    done = run("train", *ARGS, cwd=tmp_path, env=environment(cache))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on after step" in done.stdout
    same_run(whole, mine)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_finishes_the_step_saves_and_the_same_command_goes_on(uninterrupted, tmp_path, number):
    cache, whole = uninterrupted
    mine = tmp_path / "run"
    code, output = interrupt(ARGS, lambda: len(rows(mine)) >= 4, number, cwd=tmp_path, env=environment(cache))
    assert code == 75, output
    assert "the same command goes on" in output
    assert "Traceback" not in output
    done = run("train", *ARGS, cwd=tmp_path, env=environment(cache))
    assert done.returncode == 0, done.stdout + done.stderr
    same_run(whole, mine)


def test_a_finished_run_prints_its_table_again_and_trains_nothing(uninterrupted):
    cache, whole = uninterrupted
    before = {p: p.stat().st_mtime_ns for p in (whole / "checkpoints").rglob("*")}
    done = run("train", *ARGS, cwd=whole.parent, env=environment(cache))
    assert done.returncode == 0, done.stderr
    assert "3 epochs" in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in (whole / "checkpoints").rglob("*")}


def test_another_configuration_is_refused_and_changes_nothing(uninterrupted):
    cache, whole = uninterrupted
    before = (whole / "config.json").read_text()
    done = run("train", *ARGS, "--train.learning_rate=0.5", cwd=whole.parent, env=environment(cache))
    assert done.returncode == 2
    assert "train.learning_rate: 0.001 in the run, 0.5 asked" in done.stderr
    assert (whole / "config.json").read_text() == before


def test_another_data_set_is_refused(uninterrupted):
    cache, whole = uninterrupted
    manifest = whole / "manifest.json"
    text = manifest.read_text()
    changed = json.loads(text)
    changed["dataset"]["fingerprint"] = "0" * 64
    manifest.write_text(json.dumps(changed))
    try:
        done = run("train", *ARGS, cwd=whole.parent, env=environment(cache))
    finally:
        manifest.write_text(text)
    assert done.returncode == 1
    assert "the data set has changed" in done.stderr


def test_a_directory_that_is_no_run_is_left_alone(uninterrupted, tmp_path):
    cache, _ = uninterrupted
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    done = run("train", *ARGS, cwd=tmp_path, env=environment(cache))
    assert done.returncode == 2
    assert "thesis.txt" in done.stderr
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["thesis.txt"]
