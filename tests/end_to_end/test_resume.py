"""A run that is killed and started again ends as one that was never interrupted, bit for bit."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import build
from experiments.config import ConfigError, read_run
from experiments.run_directory import claim, saved_split
from jaxunet.checkpoint import Checkpoints, abstract_like
from jaxunet.step import abstract_state
from tests.helpers.programs import TINY, environment, interrupt, killed, run

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
    optimizer = build.optimizer(config, 100)  # of any number of steps: their arrays are the same
    state = abstract_state(build.model(config), optimizer, image_shape=build.image_shape(config))
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
    for name in ("train_losses.csv", "train_metrics.csv"):
        assert (a / name).read_text() == (b / name).read_text(), name
    results = [[row for row in rows(run) if row.get("kind") not in ("start", "time")] for run in (a, b)]
    assert results[0] == results[1]  # all but how long it took


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
    assert "continuing after step" in done.stdout
    same_run(whole, mine)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_the_same_command_goes_on(uninterrupted, tmp_path, number):
    cache, whole = uninterrupted
    mine = tmp_path / "run"
    code, output = interrupt(ARGS, lambda: len(rows(mine)) >= 4, number, cwd=tmp_path, env=environment(cache))
    assert code == 75, output
    assert "the same command resumes the run" in output
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


@pytest.mark.slow
def test_a_run_may_go_on_with_its_slices_kept_elsewhere_and_ends_bit_for_bit_the_same(uninterrupted, tmp_path):
    cache, whole = uninterrupted
    for kept, epochs in (("memory", 1), ("device", 3)):
        args = (*ARGS, f"--data.cache={kept}", f"--train.epochs={epochs}")
        done = run("train", *args, cwd=tmp_path, env=environment(cache))
        assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing after step" in done.stdout
    same_run(whole, tmp_path / "run")


def test_a_run_records_where_its_time_went(uninterrupted):
    _, whole = uninterrupted
    start, *epochs = (row for row in rows(whole) if row.get("kind") in ("start", "time"))
    assert start["kind"] == "start" and start["step"] == 1
    assert 0 < start["import"] < start["first_step"] and 0 < start["compile"] < start["first_step"]
    assert [row["epoch"] for row in epochs] == [1, 2, 3]
    assert all(row["seconds"] > 0 and 0 <= row["waited"] <= 1 for row in epochs)


@pytest.mark.slow
def test_a_run_goes_on_with_a_divided_optimizer_on_another_number_of_devices(uninterrupted, tmp_path):
    cache, _ = uninterrupted
    args = (*TINY, "--run_dir=run", "--train.accumulate=2", "--train.lr_rule=sqrt", "--train.warmup_epochs=1.5")
    starts = {
        "plain": [(1, "--train.epochs=2")],
        "divided": [
            (4, "--train.epochs=1", "--train.shard_optimizer", "--model.remat", "--data.cache=device"),
            (2, "--train.epochs=2", "--train.shard_optimizer"),
        ],
    }
    for name, commands in starts.items():
        (tmp_path / name).mkdir()
        for devices, *options in commands:
            done = run("train", *args, *options, cwd=tmp_path / name, env=environment(cache, devices))
            assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing after step" in done.stdout
    (expected, record), (found, found_record) = (checkpoint(tmp_path / name / "run", "last") for name in starts)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert found_record["best_loss"] == pytest.approx(record["best_loss"], rel=1e-3)


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


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_leads_to_the_same_end(uninterrupted, tmp_path):
    cache, whole = uninterrupted
    mine = tmp_path / "run"
    shutil.copytree(whole, mine)
    last = mine / "checkpoints" / "last"
    older, newest = sorted((int(p.name) for p in last.iterdir() if p.name.isdigit()), key=int)
    flip_a_bit_of_the_arrays(last / str(newest))
    done = run("train", *ARGS, cwd=tmp_path, env=environment(cache))
    assert done.returncode == 0, done.stderr
    assert f"checkpoint {newest} in" in done.stdout and f"set aside as {newest}.corrupt" in done.stdout
    assert f"continuing after step {older}" in done.stdout
    same_run(whole, mine)

    for step in last.iterdir():
        if step.name.isdigit():
            flip_a_bit_of_the_arrays(step)
    for _ in range(2):  # the second start finds none at all, and must not begin afresh
        done = run("train", *ARGS, cwd=tmp_path, env=environment(cache))
        assert done.returncode == 4, done.stdout
        assert "no undamaged checkpoint is left" in done.stderr
    flip_a_bit_of_the_arrays(next(p for p in (mine / "checkpoints" / "best").iterdir() if p.name.isdigit()))
    done = run("evaluate", "--run_dir=run", cwd=tmp_path, env=environment(cache))
    assert done.returncode == 4 and "is damaged" in done.stderr


def flip_a_bit_of_the_arrays(checkpoint: Path) -> None:
    largest = max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    largest.write_bytes(content)


def test_the_split_of_a_run_is_the_one_it_began_with(uninterrupted, tmp_path):
    cache, whole = uninterrupted
    mine = tmp_path / "run"
    shutil.copytree(whole, mine)
    changed = json.loads((mine / "manifest.json").read_text())
    names = changed["split"]
    names["train"][0], names["val"][0] = names["val"][0], names["train"][0]  # as if drawn by another NumPy
    (mine / "manifest.json").write_text(json.dumps(changed))
    config = read_run(mine)
    data = build.dataset(dataclasses.replace(config, data=dataclasses.replace(config.data, cache_dir=str(cache))))
    drawn, begun = build.data_split(config, data), saved_split(mine, data)
    assert begun.train != drawn.train
    assert [data.entries[i].name for i in begun.train] == names["train"]
    assert begun.whole_volumes and begun.test == drawn.test


def test_results_sent_elsewhere_replace_nothing_that_is_not_of_the_run(uninterrupted, tmp_path):
    _, whole = uninterrupted
    other = tmp_path / "other"
    other.mkdir()
    (other / "manifest.json").write_text(
        json.dumps({**json.loads((whole / "manifest.json").read_text()), "id": "another"})
    )
    results = tmp_path / "results"
    for _ in range(2):
        claim(results, whole, ["a.csv"])
    (results / "a.csv").write_text("mine")
    with pytest.raises(ConfigError, match=f"holds the results of {whole.absolute()}"):
        claim(results, other, ["a.csv"])
    users = tmp_path / "users"
    users.mkdir()
    (users / "a.csv").write_text("kept")
    with pytest.raises(ConfigError, match=r"holds a\.csv of something else"):
        claim(users, whole, ["a.csv"])
    assert sorted(p.name for p in users.iterdir()) == ["a.csv"]
    claim(users, whole, ["b.csv"])  # no file of that name is there


def test_a_directory_that_is_no_run_is_left_alone(uninterrupted, tmp_path):
    cache, _ = uninterrupted
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    done = run("train", *ARGS, cwd=tmp_path, env=environment(cache))
    assert done.returncode == 2
    assert "thesis.txt" in done.stderr
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["thesis.txt"]
