"""The programs as a user runs them: what they leave behind, what they say, how they fail."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from experiments.predict import load
from tests.helpers.programs import TINY, environment, run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    return environment(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def finished(place, env):
    done = run("workflow", *TINY, "--train.epochs=2", "--run_dir=run", cwd=place, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_the_workflow_leaves_everything_it_promises(finished, place):
    run_dir = place / "run"
    for name in (
        "config.json",
        "manifest.json",
        "metrics.jsonl",
        "train_losses.csv",
        "train_losses.png",
        "train_metrics.csv",
        "train_metrics.png",
        "evaluation.json",
        "evaluation_patients.csv",
        "evaluation_reliability.png",
        "evaluation_gallery.png",
        "predictions/mini_test/contact_sheet.png",
    ):
        assert (run_dir / name).stat().st_size > 0, name
    assert list((run_dir / "tensorboard").iterdir())
    inputs = list((run_dir / "mini_test" / "image").iterdir())
    assert 1 <= len(inputs) <= 10
    assert len(list((run_dir / "predictions" / "mini_test").glob("*_overlay.png"))) == len(inputs)


def test_synthetic_data_are_named_on_screen_and_in_every_record(finished, place):
    assert finished.stdout.count("SYNTHETIC PHANTOMS") >= 3
    for name in ("manifest.json", "evaluation.json"):
        assert "SYNTHETIC" in json.loads((place / "run" / name).read_text())["dataset"]["title"]


def test_it_says_devices_split_parameters_and_steps_before_it_starts(finished):
    start = finished.stdout[: finished.stdout.index("epoch 1:")]
    for words in ("1 x cpu", "training,", "parameters", "steps", "patient:"):
        assert words in start


def test_it_ends_with_the_baseline_the_run_directory_and_the_next_commands(finished):
    end = finished.stdout[-900:]
    for words in ("FLAIR threshold", "run directory: run", "experiments.predict", "make train CONFIG=dice"):
        assert words in end


def test_csv_files_have_the_documented_columns(finished, place):
    names = ("train_losses.csv", "train_metrics.csv")
    read = {n: list(csv.reader((place / "run" / n).read_text().splitlines())) for n in names}
    assert read["train_losses.csv"][0] == ["epoch", "loss", "val_loss"]
    assert read["train_metrics.csv"][0] == ["epoch", "dice_coef", "val_dice_coef"]
    assert [row[0] for row in read["train_losses.csv"][1:]] == ["1", "2"]


def test_the_manifest_names_every_slice_of_the_split_once(finished, place):
    split = json.loads((place / "run" / "manifest.json").read_text())["split"]
    parts = [set(split[p]) for p in ("train", "val", "test")]
    patients = [{name.rpartition("_")[0] for name in part} for part in parts]
    assert all(parts)
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert len(set.union(*patients)) == sum(map(len, patients))


def test_evaluate_needs_the_run_directory_only_and_repeats_itself(finished, place, env):
    before = (place / "run" / "evaluation.json").read_text()
    done = run("evaluate", "--run_dir=run", cwd=place, env=env)
    assert done.returncode == 0, done.stderr
    assert (place / "run" / "evaluation.json").read_text() == before
    assert "patient volumes" in done.stdout
    assert "batches of 32 (reference)" in done.stdout


@pytest.mark.slow
def test_evaluate_on_the_validation_part_agrees_with_training(finished, place, env):
    done = run("evaluate", "--run_dir=run", "--eval.split=val", "--eval.batch_size=8", cwd=place, env=env)
    assert done.returncode == 0, done.stderr
    result = json.loads((place / "run" / "evaluation_val.json").read_text())
    losses = np.genfromtxt(place / "run" / "train_losses.csv", delimiter=",", skip_header=1)
    assert result["loss"]["value"] == pytest.approx(losses[:, 2].min(), rel=1e-6)


def test_load_gives_probabilities_of_the_images_size(finished, place):
    probabilities = load(place / "run")(np.zeros((2, 50, 40, 3), np.uint8))
    assert probabilities.shape == (2, 50, 40, 1)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()


def test_the_best_weights_are_those_of_the_lowest_validation_loss(finished, place):
    losses = np.genfromtxt(place / "run" / "train_losses.csv", delimiter=",", skip_header=1)
    best = json.loads((place / "run" / "evaluation.json").read_text())["checkpoint"]
    assert best["epoch"] == 1 + int(losses[:, 2].argmin())
    assert best["val_loss"] == losses[:, 2].min()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "scaled"])
def test_a_loss_of_ones_own_is_trained_by_its_import_path(place, env, name):
    (place / "mine.py").write_text(
        "from jaxunet.losses import bce_loss\n"
        "def plain(logits, masks):\n    return bce_loss(logits, masks)\n"
        "def scaled(logits, masks, *, factor=1.0):\n    return factor * bce_loss(logits, masks)\n"
    )
    options = ["--train.loss_options.factor=1000.0"] if name == "scaled" else []
    args = (*TINY, "--train.epochs=1", f"--train.loss=mine:{name}", *options, f"--run_dir={name}")
    done = run("train", *args, cwd=place, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = map(json.loads, (place / name / "metrics.jsonl").read_text().splitlines())
    first = next(row["loss"] for row in rows if "loss" in row)
    assert 100 < first < 10000 if options else 0.1 < first < 10  # cross-entropy of an untrained network


def test_an_unknown_option_of_a_loss_is_named(place, env):
    done = run("train", *TINY, "--train.loss_options.alpha=0.3", "--run_dir=no", cwd=place, env=env)
    assert done.returncode == 2
    assert "alpha" in done.stderr
    assert not (place / "no").exists()


def test_a_non_finite_loss_stops_the_run_with_exit_3_and_keeps_the_last_good_state(place, env):
    (place / "broken.py").write_text(
        "import jax.numpy as jnp\nfrom jaxunet.losses import bce_loss\n"
        "def nan_loss(logits, masks):\n"
        "    return bce_loss(logits, masks) + jnp.where(logits.mean() > -1e9, jnp.nan, 0.0)\n"
    )
    done = run("train", *TINY, "--train.loss=broken:nan_loss", "--run_dir=nan", cwd=place, env=env)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "non-finite loss" in done.stderr
    assert "at step 1" in done.stderr
    assert "phantom_" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((place / "nan" / "checkpoints" / "last").iterdir())


def test_a_batch_that_does_not_divide_among_devices_is_refused(place, tmp_path):
    done = run("train", *TINY, "--train.batch_size=6", cwd=place, env=environment(tmp_path, devices=4))
    assert done.returncode == 2
    assert "train.batch_size=6 does not divide among 4 devices; use 4 or 8" in done.stderr


def test_a_missing_root_is_an_error_and_never_the_synthetic_set(place, env):
    done = run("train", *TINY, "--data.root=nowhere", cwd=place, env=env)
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert "SYNTHETIC" not in done.stdout


def test_a_run_directory_of_an_older_format_is_refused(finished, place, env):
    manifest = place / "run" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"format": 1', '"format": 0'))
    try:
        done = run("evaluate", "--run_dir=run", cwd=place, env=env)
    finally:
        manifest.write_text(text)
    assert done.returncode == 2
    assert "format version 0" in done.stderr


def test_two_trainings_in_one_directory_are_refused(finished, place, env):
    import fcntl

    with (place / "run" / "run.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run("train", *TINY, "--train.epochs=2", "--run_dir=run", cwd=place, env=env)
    assert done.returncode == 2
    assert "in use by process" in done.stderr


def test_a_full_disk_is_said_at_the_start(monkeypatch, tmp_path):
    import shutil
    from types import SimpleNamespace

    import jax.numpy as jnp

    from experiments.training import check_space
    from jaxunet.checkpoint import CheckpointError

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    state = SimpleNamespace(step=jnp.zeros(()), params={"w": jnp.zeros(10**6)}, opt_state=())
    last = SimpleNamespace(latest=None)
    trainer = SimpleNamespace(last=last)
    with pytest.raises(CheckpointError, match=r"need 20\.0 MB, 1\.0 MB are free"):
        check_space(trainer, state, tmp_path)
    last.latest = 5  # what is kept lies there already; the next state and the next best weights do not
    with pytest.raises(CheckpointError, match=r"need 8\.0 MB, 1\.0 MB are free"):
        check_space(trainer, state, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", ["bce", "dice"])
def test_the_documented_ini_files_run_through_every_program(place, env, name, request):
    folder = place / f"ini_{name}"
    folder.mkdir()
    words = ("split", "BrainTumor", "--synthetic", "--phantom_patients=8", "--size", "256", "256")
    split = run("data_pipeline", *words, cwd=folder, env=env)
    assert split.returncode == 0, split.stderr
    ini = (request.path.parents[1] / "data" / f"{name}.ini").read_text()
    (folder / f"{name}.ini").write_text(ini)
    args = (f"--config={name}.ini", "--train.epochs=1", "--model.base_filters=2")
    said = {}
    for program in ("train", "evaluate", "infer", "summary"):
        done = run(program, *args, cwd=folder, env=env, timeout=600)
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"
        said[program] = done.stdout
    assert ("60 layers" in said["train"]) == (name == "dice"), "show_summary"
    assert "60 layers" in said["summary"]
    column = {"bce": "accuracy", "dice": "dice_coef"}[name]
    home = folder / name
    assert (home / "eval" / "train_metrics.csv").read_text().startswith(f"epoch,{column},val_{column}\n1,")
    for file in ("train_losses.csv", "train_losses.png", "train_metrics.png", "evaluation.json"):
        assert (home / "eval" / file).exists(), file
    assert {"config.json", "manifest.json", "checkpoints"} <= {path.name for path in (home / "models").iterdir()}
    images = sorted(p.stem for p in (folder / "BrainTumor" / "mini_test").iterdir())
    assert len(images) == 10
    merged = home / {"bce": "masks", "dice": "merged"}[name]
    for image in images:
        for path in (
            home / "masks" / f"{image}_probability.png",
            home / "masks" / f"{image}_mask.png",
            merged / f"{image}_overlay.png",
        ):
            with Image.open(path) as picture:
                assert picture.size == (256, 256)
