"""The table of proofs: its contents, and that it detects a wrong loss."""

import json

import pytest

from experiments.config import ConfigError
from jaxunet.losses import LOSSES
from tests.helpers import loss_proof as program
from tests.oracles import losses as oracle

SMALL = ["--size=16", "--batch=2", "--rounds=1"]


@pytest.mark.slow
def test_it_proves_what_it_is_asked_for(capsys, tmp_path):
    file = tmp_path / "proof.json"
    assert program.main(["--only", "dice", "cl_dice", *SMALL, f"--json={file}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if line.strip() and line.split()[0] in LOSSES}
    assert list(rows) == ["dice", "cl_dice"]
    assert "within the tolerances" in lines[-1]
    proof = json.loads(file.read_text())
    for name, found in proof.items():
        assert 0 < found["value_error"] < 1e-6, name
        # finite differences may step over a jump of a piecewise gradient
        assert 0 < found["gradient_error"] < (1e-2 if LOSSES[name].piecewise else 1e-5), name
        assert found["milliseconds"] > 0
        assert not found["problems"]
    assert proof["cl_dice"]["empty"] == "no gradient"
    assert {"MONAI", "segmentation_models.pytorch"} <= proof["dice"]["peers"].keys()
    assert 0 < max(proof["dice"]["peers"].values()) < 1e-6


def test_it_names_a_loss_that_is_wrong(monkeypatch, capsys):
    right = oracle.ORACLES["bce"]
    monkeypatch.setitem(oracle.ORACLES, "bce", lambda *args, **kwargs: 1.001 * right(*args, **kwargs))
    with pytest.raises(program.DisagreementError, match=r"bce: value in random: .*, float64 ") as error:
        program.main(["--only", "bce", *SMALL])
    assert error.value.exit_code == 3
    assert "bce: gradient in random" in str(error.value)
    assert "bce" in capsys.readouterr().out  # the table comes first


def test_it_refuses_what_cannot_be(tmp_path):
    (tmp_path / "there.json").write_text("")
    with pytest.raises(ConfigError) as error:
        program.main(["--only", "dise", "--size=10", "--rounds=0", f"--json={tmp_path / 'there.json'}"])
    for word in ("'dise'", "size=10: must be at least 11", "rounds=0: must be at least 1", "exists already"):
        assert word in str(error.value)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_all_losses_are_proven(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # where names of losses are not folded
    assert program.main(SMALL) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert set(LOSSES) <= set(rows)


@pytest.mark.parametrize("name", ["bce", "lovasz_sigmoid", "label_smoothing_bce", "cl_dice"])
def test_what_an_empty_mask_teaches_is_seen(name):
    expected = {
        "bce": "down",
        "lovasz_sigmoid": "down in part",
        "label_smoothing_bce": "down",
        "cl_dice": "no gradient",
    }
    assert program.on_empty(name) == expected[name]
