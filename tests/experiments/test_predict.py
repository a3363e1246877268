"""The program and `load`, on a run directory with a real network."""

import jax
import numpy as np
import pytest

from data_pipeline.console import run_program
from experiments import build, infer, predict
from tests.helpers.red_network import pixels, red, save


def test_load_gives_the_probabilities_of_the_best_checkpoint(run_dir):
    run = build.load_run(run_dir)
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8)
    logits = jax.jit(run.model.apply)({"params": run.params}, images)
    np.testing.assert_allclose(predict.load(run_dir)(images), jax.nn.sigmoid(logits), atol=1e-6)


@pytest.mark.parametrize("program", [predict, infer])
def test_the_program_predicts_a_folder(run_dir, tmp_path, capsys, program):
    save(tmp_path / "in" / "a.png", red((20, 30)))
    words = [f"--run_dir={run_dir}", f"--infer.images={tmp_path / 'in'}", f"--infer.output_dir={tmp_path / 'out'}"]
    assert run_program(program.main, words) == 0
    assert pixels(tmp_path / "out" / "a_mask.png").shape == (20, 30)
    assert "Predictions in" in capsys.readouterr().out
    assert run_program(program.main, words) == 2
    assert "exist already" in capsys.readouterr().err


def test_the_program_ends_with_1_where_a_file_failed(run_dir, tmp_path, capsys):
    save(tmp_path / "in" / "a.png", red())
    (tmp_path / "in" / "b.png").write_bytes(b"<!DOCTYPE html>")
    words = [f"--run_dir={run_dir}", f"--infer.images={tmp_path / 'in'}", f"--infer.output_dir={tmp_path / 'out'}"]
    assert run_program(predict.main, words) == 1
    error = capsys.readouterr().err
    assert "1 ok, 1 failed" in error and "b.png" in error
    assert (tmp_path / "out" / "a_mask.png").exists()


def test_the_program_says_which_option_names_the_images(run_dir, capsys):
    assert run_program(predict.main, [f"--run_dir={run_dir}"]) == 2
    assert "--infer.images=FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["none", "empty"])
def test_the_program_ends_with_1_without_images(run_dir, tmp_path, capsys, folder):
    (tmp_path / "empty").mkdir()
    assert run_program(predict.main, [f"--run_dir={run_dir}", f"--infer.images={tmp_path / folder}"]) == 1
    assert str(tmp_path / folder) in capsys.readouterr().err


def test_a_run_without_a_checkpoint_ends_with_4(run_dir, tmp_path, capsys):
    for name in ("config.json", "manifest.json"):
        (tmp_path / name).write_bytes((run_dir / name).read_bytes())
    save(tmp_path / "in" / "a.png", red())
    words = [f"--run_dir={tmp_path}", f"--infer.images={tmp_path / 'in'}"]
    assert run_program(predict.main, words) == 4
    assert "checkpoint" in capsys.readouterr().err
