from pathlib import Path

import pytest

from experiments.workflow import closing_lines


@pytest.mark.parametrize("kind", ["synthetic", "kaggle"])
def test_the_last_lines_name_score_data_files_and_what_comes_next(kind):
    result = {
        "dataset": {"title": "Squares", "kind": kind},
        "pixels": {"dice": 0.75},
        "flair_threshold": {"pixel_dice": 0.25},
    }
    text = closing_lines(result, Path("runs/x"))
    assert "Squares" in text and "0.7500 (the best single FLAIR threshold: 0.2500)" in text
    assert "python -m experiments.predict --run_dir=runs/x --infer.images=FOLDER" in text
    assert ("make train" in text) == (kind == "synthetic")
