"""An evaluation is the same on any number of devices and in any batches, and keeps few masks in memory."""

import json
import math
import shutil
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.build import load_run
from experiments.config import EvalConfig, override, read_run
from experiments.evaluation import (
    BatchMeasures,
    Observations,
    evaluate_run,
    measure_batch,
    measure_volume,
    stack_slices,
    without_nan,
)
from experiments.evaluation_tables import patient_table
from jaxunet.metrics import LesionCounts, above, lesion_counts, pixel_sums, probability_histogram
from jaxunet.surface import surface_scores
from tests.helpers.squares import ENTRIES, Slices, evaluated, figures

RUN = Path(__file__).parents[1] / "data" / "run_0_1"


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


def test_figures_are_those_of_the_slices():
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


def test_what_is_undefined_is_null_in_json_at_every_depth():
    result = figures(*evaluated(1, 5)) | {"further": [math.inf, {"x": [math.nan, 1.5]}]}
    read = json.loads(json.dumps(without_nan(result), allow_nan=False))
    assert read["further"] == [None, {"x": [None, 1.5]}]
    assert read["pixels"]["dice"] == result["pixels"]["dice"]


def leaves(value, path=""):
    """Every leaf of nested JSON with its path."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{path}/{key}")
    else:
        yield path, value


def test_a_run_of_version_0_1_has_the_scores_that_version_0_1_computed(tmp_path):
    shutil.copytree(RUN, tmp_path / "run")
    (tmp_path / "run" / "evaluation.json").unlink()
    config = override(read_run(tmp_path / "run"), {"data.cache_dir": str(tmp_path / "cache")})
    evaluate_run(load_run(tmp_path / "run", config), progress=False)
    read = [json.loads((place / "evaluation.json").read_text()) for place in (RUN, tmp_path / "run")]
    expected, found = (dict(leaves(result)) for result in read)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        assert found[path] == (pytest.approx(value, rel=1e-5) if number else value), path
    names = {"evaluation.json", "evaluation_patients.csv", "evaluation_reliability.png", "evaluation_gallery.png"}
    assert names <= {path.name for path in (tmp_path / "run").iterdir()}


RNG = np.random.default_rng(0)


MASKS = RNG.random((9, 8, 8, 1)) < 0.2


LOGITS = (RNG.normal(size=MASKS.shape) + 3 * MASKS - 1.5).astype(np.float32)


MEASURE = jax.jit(measure_batch)


NINE = [types.SimpleNamespace(patient=p, slice=s, site="") for p, s in zip("aaabbbbcc", range(9), strict=True)]


@pytest.fixture(scope="module")
def whole() -> BatchMeasures:
    return jax.device_get(MEASURE(LOGITS, MASKS, weight=np.ones(9, np.float32)))


def batches(whole: BatchMeasures, order: list[int], size: int):
    """Rows in an order, in batches of a size, the last one filled up with rows that must not count."""
    histogram = jax.device_get(probability_histogram(LOGITS[:1], MASKS[:1]))
    for start in range(0, len(order), size):
        rows = np.array((order[start : start + size] + [0] * size)[:size])
        sums = type(whole.sums)(*(values[rows] for values in whole.sums))
        yield BatchMeasures(sums, histogram, whole.prediction[rows], whole.mask[rows]), len(order[start : start + size])


def test_a_batch_is_measured_with_the_functions_of_the_library(whole):
    np.testing.assert_array_equal(whole.prediction, above(LOGITS, 0.5))
    np.testing.assert_array_equal(whole.mask, MASKS)
    for found, expected in zip(whole.sums, pixel_sums(LOGITS, MASKS), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    for found, expected in zip(whole.histogram, probability_histogram(LOGITS, MASKS), strict=True):
        np.testing.assert_array_equal(found, expected)
    some = jax.device_get(MEASURE(LOGITS, MASKS, weight=(np.arange(9) > 4).astype(np.float32), threshold=0.9))
    assert some.sums.tp.sum() == (some.prediction & MASKS)[5:].sum()
    assert sum(counts.sum() for counts in some.histogram) == MASKS[5:].size


@settings(max_examples=10)
@given(order=st.permutations(range(9)), size=st.integers(1, 9), iou=st.sampled_from([None, 0.3]))
def test_any_order_and_batch_size_gives_the_lesions_and_outlines_of_the_whole_volumes(whole, order, size, iou):
    options = EvalConfig(lesion_iou=iou, tolerance=2.0, spacing=(4.0, 1.0, 0.5), empty="skip")
    seen = Observations([NINE[i] for i in order], volumes=True, options=options)
    sums = [seen.add_batch(batch, rows) for batch, rows in batches(whole, order, size)]
    assert np.concatenate([part.tp for part in sums]).tolist() == whole.sums.tp[order].tolist()
    pairs = [(whole.prediction[i, :, :, 0], MASKS[i, :, :, 0]) for i in order]
    assert seen.lesions == [lesion_counts(prediction, mask, iou=iou) for prediction, mask in pairs]
    rule = {"tolerance": 2.0, "empty": "skip"}
    flat = [surface_scores(prediction, mask, spacing=(1.0, 0.5), **rule) for prediction, mask in pairs]
    np.testing.assert_equal(seen.surfaces, flat)  # NaN equals NaN
    patients = {"a": slice(0, 3), "b": slice(3, 7), "c": slice(7, 9)}
    assert set(seen.volumes) == set(patients)
    for patient, rows in patients.items():
        volume, mask = whole.prediction[rows, :, :, 0], MASKS[rows, :, :, 0]
        expected = surface_scores(volume, mask, spacing=options.spacing, **rule)._asdict()
        found = lesion_counts(volume, mask, iou=iou)._asdict()
        assert seen.volumes[patient] == {f"lesions_{name}": count for name, count in found.items()} | expected


def test_only_the_masks_of_patients_under_way_are_kept(whole):
    seen, kept = Observations(NINE, volumes=True, options=EvalConfig()), []
    for batch, rows in batches(whole, list(range(9)), 2):
        seen.add_batch(batch, rows)
        kept.append({patient: len(slices) for patient, slices in seen._waiting.items()})
    assert kept == [{"a": 2}, {"b": 1}, {"b": 3}, {"c": 1}, {}]


def test_without_volumes_no_mask_is_kept(whole):
    seen = Observations(NINE, volumes=False, options=EvalConfig())
    for batch, rows in batches(whole, list(range(9)), 4):
        seen.add_batch(batch, rows)
        assert not seen._waiting
    assert not seen.volumes
    assert len(seen.lesions) == 9


def test_histograms_of_batches_are_added_up(whole):
    seen = Observations(NINE, volumes=False, options=EvalConfig())
    for start in range(0, 9, 2):
        weight = (np.arange(9) >= start) & (np.arange(9) < start + 2)
        part = jax.device_get(MEASURE(LOGITS, MASKS, weight=weight.astype(np.float32)))
        seen.add_batch(part, min(2, 9 - start))
    for found, expected in zip(seen.histogram, whole.histogram, strict=True):
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, expected)


def test_slices_are_stacked_by_position_and_a_gap_separates():
    planes = [np.full((2, 3), k) for k in (7, 5, 6, 9)]
    assert stack_slices([7, 5, 6, 9], planes)[:, 0, 0].tolist() == [5, 6, 7, 0, 9]
    assert stack_slices([3, 10**9], planes[:2])[:, 0, 0].tolist() == [7, 0, 5]  # however wide
    assert stack_slices([4], planes[:1]).shape == (1, 2, 3)


def test_a_lesion_through_slices_is_one_and_through_a_gap_two():
    plane = np.zeros((4, 4), bool)
    plane[1:3, 1:3] = True
    for positions, lesions in (([1, 2, 3], 1), ([1, 2, 4], 2)):
        volume = stack_slices(positions, [plane] * 3)
        found = measure_volume(volume, volume, EvalConfig())
        assert [found[f"lesions_{name}"] for name in LesionCounts._fields] == [lesions] * 4
        assert (found["hausdorff"], found["surface_dice"], found["outcome"]) == (0, 1, "both")
