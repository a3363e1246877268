"""Computes the goldens of the scores with scikit-learn, which is no dependency of the project.

Made with Python 3.11, scikit-learn 1.9.1 and NumPy 2.4.6; the file names its versions. To make it again, in an
environment of its own::

    python3.11 -m venv /tmp/sklearn && /tmp/sklearn/bin/pip install scikit-learn==1.9.1
    /tmp/sklearn/bin/python tests/goldens/make_sklearn.py

Predictions and masks come from `score_rules.py`, which the tests share, so that only scores are stored. A pixel is
positive where its probability is above one half. Where scikit-learn lets the caller choose what 0/0 is, the choice is
here; where it does not (MCC, kappa, balanced accuracy) its own answer is stored, and the tests say where ours differs.
"""

import platform
import warnings
from pathlib import Path

import numpy as np
import score_rules
import sklearn
from sklearn import metrics as m
from sklearn.calibration import calibration_curve

PATH = Path(__file__).with_name("sklearn.npz")
NAN = np.nan

SCORES = {
    "accuracy": m.accuracy_score,
    "balanced_accuracy": m.balanced_accuracy_score,
    "dice": lambda *a, **k: m.f1_score(*a, **k, zero_division=1.0),
    "jaccard": lambda *a, **k: m.jaccard_score(*a, **k, zero_division=1.0),
    "f2": lambda *a, **k: m.fbeta_score(*a, **k, beta=2, zero_division=1.0),
    "f0.5": lambda *a, **k: m.fbeta_score(*a, **k, beta=0.5, zero_division=1.0),
    "sensitivity": lambda *a, **k: m.recall_score(*a, **k, zero_division=NAN),
    "specificity": lambda *a, **k: m.recall_score(*a, **k, pos_label=0, zero_division=NAN),
    "precision": lambda *a, **k: m.precision_score(*a, **k, zero_division=NAN),
    "npv": lambda *a, **k: m.precision_score(*a, **k, pos_label=0, zero_division=NAN),
    "mcc": m.matthews_corrcoef,
    "kappa": m.cohen_kappa_score,
}

RANKINGS = {
    "auroc": m.roc_auc_score,
    "average_precision": m.average_precision_score,
    "brier": m.brier_score_loss,
}

BINS = 15


def scores(true: np.ndarray, predicted: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Returns every score of flat 0/1 arrays, in the order of `SCORES`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that do not occur
        return np.array([f(true, predicted, sample_weight=weight) for f in SCORES.values()], np.float64)


def rankings(true: np.ndarray, probability: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what scikit-learn says of flat masks and probabilities at all thresholds, and the reliability curve."""
    observed, predicted = calibration_curve(true, probability, n_bins=BINS, strategy="uniform")
    return {
        "rankings": np.array([f(true, probability) for f in RANKINGS.values()], np.float64),
        "observed": observed,
        "predicted": predicted,
    }


def main() -> None:
    """Computes all goldens and writes them beside this script."""
    versions = np.array(
        [f"python {platform.python_version()}", f"scikit-learn {sklearn.__version__}", f"numpy {np.__version__}"]
    )
    arrays = {"versions": versions, "scores": np.array(list(SCORES)), "rankings": np.array(list(RANKINGS))}
    for name in (*score_rules.CASES, *score_rules.DEGENERATE):
        probability, mask = score_rules.case(name)
        true, predicted = mask.ravel().astype(int), (probability > 0.5).ravel().astype(int)
        arrays[f"{name}.scores"] = scores(true, predicted)
        print(f"{name:>16}: " + " ".join(f"{k} {v:.4f}" for k, v in zip(SCORES, arrays[f"{name}.scores"], strict=True)))
        if name in score_rules.CASES:
            arrays |= {f"{name}.{key}": value for key, value in rankings(true, probability.ravel()).items()}
    for name, counts in score_rules.COUNTS.items():
        true, predicted = np.array([1, 0, 1, 0]), np.array([1, 1, 0, 0])
        arrays[f"{name}.scores"] = scores(true, predicted, np.array(counts, np.float64))
        print(f"{name:>16}: " + " ".join(f"{k} {v:.4f}" for k, v in zip(SCORES, arrays[f"{name}.scores"], strict=True)))
    probability, mask = score_rules.fine()
    arrays |= {f"fine.{key}": value for key, value in rankings(mask.astype(int), probability).items()}
    logits, mask = score_rules.binned()
    binned = rankings(mask.ravel().astype(int), 1 / (1 + np.exp(-logits.ravel())))
    arrays |= {f"binned.{key}": value for key, value in binned.items()}
    for name in ("fine", "binned"):
        print(f"{name:>16}: {dict(zip(RANKINGS, arrays[f'{name}.rankings'].round(4).tolist(), strict=True))}")
    np.savez_compressed(PATH, **arrays)
    print(f"{PATH.name}: {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
