"""An evaluation is the same on any number of devices and in any batches, and prints what it averages over."""

import functools
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.loader import eval_batches
from experiments.evaluate import _finite, evaluate_batches, print_table
from experiments.feed import Feed, Kept
from experiments.figures import lesion_figures, patient_table, probability_figures, summarise, surface_figures
from experiments.measure import Observations, Options, measure
from jaxunet.losses import bce_loss
from jaxunet.sharding import make_mesh
from jaxunet.step import compile_eval_step

NAMES = [(patient, k, site) for patient, site in (("p", "S1"), ("q", "S1"), ("r", "S2")) for k in range(1, 7)]
ENTRIES = [types.SimpleNamespace(patient=p, slice=k, site=s, name=f"{p}_{k}") for p, k, s in NAMES]


class Slices:
    """18 slices of 16x16, two of three without tumour."""

    entries = ENTRIES

    def __len__(self) -> int:
        return len(ENTRIES)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(index)
        mask = np.zeros((16, 16, 1), np.uint8)
        if index % 3 == 0:
            mask[4:9, 3:11] = 1
        image = rng.integers(0, 150, (16, 16, 3)) + 90 * mask
        return {"image": image.astype(np.uint8), "mask": mask, "patient": index // 6, "slice": index}


def network(variables, images):
    """Brightness is the logit."""
    return variables["params"] * (images[..., :1].astype(jnp.float32) - 130) / 10


@functools.cache
def evaluated(devices: int, size: int) -> tuple:
    mesh = make_mesh(jax.devices()[:devices])
    step = compile_eval_step(mesh, apply_fn=network, loss=bce_loss, measure=measure)
    seen = Observations(ENTRIES, volumes=True)
    batches = eval_batches(Slices(), range(18), batch_size=size, threads=0)
    feed = Feed(batches, Kept(Slices(), range(18), cache="none", threads=0, mesh=mesh).put)
    options = {"count": 18, "batch_size": size, "take": seen.take}
    return evaluate_batches(step, jnp.float32(1), feed, **options), seen


def figures(evaluation, seen: Observations) -> dict:
    return {
        **summarise(evaluation, ENTRIES, whole_volumes=True),
        "lesions": lesion_figures(seen.lesions, seen.volumes, iou=None),
        "surfaces": surface_figures(seen.surfaces, seen.volumes, Options()),
        "probabilities": probability_figures(seen.histogram),
    }


@pytest.mark.parametrize(("devices", "size"), [(1, 5), (2, 4), (4, 8), (8, 16)])
def test_figures_do_not_depend_on_devices_batches_and_padding(devices, size):
    found, expected = figures(*evaluated(devices, size)), figures(*evaluated(1, 1))
    assert found["loss"]["value"] == pytest.approx(expected["loss"]["value"], rel=1e-6)
    for name in ("loss", "batches"):  # these depend on the batch, and say so
        assert found.pop(name)["batch_size"] == size
        expected.pop(name)
    np.testing.assert_equal(found, expected)  # exactly: they come from integers; NaN equals NaN
    runs = evaluated(devices, size), evaluated(1, 1)
    table, expected_table = (patient_table(run, ENTRIES, volumes=seen.volumes) for run, seen in runs)
    assert table == expected_table


def test_figures_are_those_of_the_slices(capsys):
    evaluation, seen = evaluated(1, 5)
    data = [Slices()[i] for i in range(18)]
    predicted = np.stack([one["image"][..., :1].astype(int) > 130 for one in data])
    actual = np.stack([one["mask"] == 1 for one in data])
    found = figures(evaluation, seen)
    expected = 2 * (predicted & actual).sum() / (predicted.sum() + actual.sum())
    assert found["pixels"]["dice"] == pytest.approx(expected, rel=1e-15)
    assert found["tumour_images"] == 6
    assert found["false_positive_slices"]["false"] == (predicted & ~actual).any((1, 2, 3))[~actual.any((1, 2, 3))].sum()
    assert found["lesions"]["volumes"]["actual"] == 6  # each lies in one slice, two slices of a patient have one


def printed(capsys, *, empty="perfect", whole_volumes=True, **changes) -> tuple[dict, str]:
    evaluation, seen = evaluated(1, 5)
    result = figures(evaluation, seen) | {
        "dataset": {"title": "Squares"},
        "split": {"by": "patient", "part": "test"},
        "threshold": 0.5,
        "loss_name": "bce",
        "flair_threshold": {"threshold": 3, "pixel_dice": 0.25},
    }
    result |= summarise(evaluation, ENTRIES, whole_volumes=whole_volumes, empty=empty)
    if not whole_volumes:
        del result["patients"]
    print_table(result | changes)
    return result, capsys.readouterr().out


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_what_is_undefined_is_null_in_json_at_every_depth():
    result = figures(*evaluated(1, 5)) | {"further": [math.inf, {"x": [math.nan, 1.5]}]}
    read = json.loads(json.dumps(_finite(result), allow_nan=False))
    assert read["further"] == [None, {"x": [None, 1.5]}]
    assert read["pixels"]["dice"] == result["pixels"]["dice"]


@pytest.mark.parametrize("empty", ["perfect", "skip"])
def test_the_table_names_what_each_column_averages_over(capsys, empty):
    result, text = printed(capsys, empty=empty)
    for words in (
        "Squares: test part of the patient split",
        "batches of 5",
        "mean of 18 slices",
        "mean of 6 tumour slices",
        "mean of 3 patient volumes",
        "false-positive slices a patient",
        "26 neighbours, any overlap",
        "outlines of volumes (pixels): HD95 mean",
        "AUROC",
        "predicting nothing",
    ):
        assert words in text
    assert ("in no mean" in text) == (empty == "skip")
    (line,) = (line for line in text.splitlines() if line.strip().startswith("dice "))
    assert [f"{result[level]['dice']['macro']:.4f}" for level in ("slices", "tumour_slices")] == line.split()[2:4]
    assert [line.split()[:3] for line in text.splitlines() if line.strip()[:2] in ("S1", "S2")] == [
        ["S1", "2", "12"],
        ["S2", "1", "6"],
    ]


def test_only_the_mean_as_published_is_called_documented(capsys):
    of_32 = {"batches": {"batch_size": 32, "dice_coef": 0.5}}
    assert "batches of 32 (documented)" in printed(capsys, **of_32)[1]
    assert "(documented)" not in printed(capsys)[1]
    assert "(documented)" not in printed(capsys, **of_32, threshold=0.4)[1]


def test_a_mean_says_what_it_leaves_out(capsys):
    _, text = printed(capsys)
    assert "undefined, so left out of the mean: sensitivity in 12 of 18 slices\n" in text
    assert "mean: dice" not in text
    assert "mean: accuracy" not in text
    assert "mean: dice in 12 of 18 slices\n" in printed(capsys, empty="skip")[1]


def test_selected_slices_print_no_volume_figure(capsys):
    _, text = printed(capsys, whole_volumes=False)
    assert "patient volumes" not in text
    assert "no volume figure" in text
