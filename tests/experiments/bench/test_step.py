"""The step compared with its peers: equal losses, consistent figures, a table on the terminal and in the docs."""

import json
import math
import os

import numpy as np
import pytest

from experiments import machine
from experiments.bench import results, rounds, step
from experiments.bench.options import StepOptions
from experiments.bench.rounds import Participant
from experiments.bench.workload import Workload, layer_shapes, parameter_count

QUICK = ("--size=16", "--base_filters=2", "--num_layers=1", "--rounds=2", "--seconds=0.02")


@pytest.fixture(scope="module")
def compared(tmp_path_factory, bench):
    """A run of both JAX peers without dropout, with the table of a page."""
    place = tmp_path_factory.mktemp("step")
    before, after = results.marks("step")
    (place / "page.md").write_text(f"above\n\n{before}\nold table\n{after}\n\nbelow\n", encoding="utf-8")
    words = ("--only=jaxunet,flax", "--task=train", "--loss=hybrid", "--dropout_rate=0", "--batch=2")
    done = bench(*QUICK, *words, "--json=figures.json", "--write_docs", "--docs=page.md", cwd=place)
    return place, done.stdout, json.loads((place / "figures.json").read_text())


@pytest.mark.slow
def test_plain_flax_finds_the_same_losses_step_after_step(compared):
    _, _, content = compared
    library, plain = content["results"]
    assert len(set(library["losses"])) == len(library["losses"]) == 1 + rounds.WARM_UP  # it learns
    np.testing.assert_allclose(plain["losses"], library["losses"], rtol=1e-5)
    np.testing.assert_allclose([library["losses"][0], plain["value"]], library["value"], rtol=1e-5)


def products(work):
    """Shape of each kernel and the pixels of the batch that it is applied to."""
    for name, shape in layer_shapes(work).items():
        level = 0 if name == "head" else int(name[7]) + name.endswith("_up")
        yield shape, work.batch * (work.size >> level) ** 2


@pytest.mark.slow
def test_the_figures_are_what_they_are_called(compared):
    _, _, content = compared
    assert (content["format"], content["command"]) == (results.FORMAT, "step")
    assert content["options"]["batch"] == [2]
    assert [(row["task"], row["contender"]) for row in content["results"]] == [("train", "jaxunet"), ("train", "flax")]
    assert content["failed"] == content["absent"] == {}
    assert 0 <= content["idle_cpu_share"] < 0.5
    work = Workload(size=16, base_filters=2, num_layers=1, batch=2)
    for row in content["results"]:
        assert row["parameters"] == parameter_count(work)
        assert len(row["step_seconds"]["rounds"]) == 2
        low, high = row["step_seconds"]["range"]
        assert 0 < low <= row["step_seconds"]["median"] <= high
        assert row["images_per_second"] == pytest.approx(2 / row["step_seconds"]["median"])
        assert row["first_step_seconds"] > low  # it compiles
        assert 4 * row["parameters"] < row["memory_bytes"] < row["process_peak_bytes"]
        share = row["network_flops"] / row["step_seconds"]["median"] / content["peaks"]["matmul_float32"]
        assert row["matmul_share"] == pytest.approx(share)
        share = row["bytes_accessed"] / row["step_seconds"]["median"] / content["peaks"]["copy"]
        assert row["copy_share"] == pytest.approx(share)
        assert row["memory_bytes"] > 3 * 4 * row["parameters"]  # parameters and the two moments of Adam
        forward = 2 * sum(math.prod(shape) * places for shape, places in products(work))
        assert 2.5 * forward < row["network_flops"] < 4 * forward  # and two gradients, and what is not a product
    assert content["results"][0]["ratio_to_ours"] == 1
    assert [row["ratio_interval"] for row in content["results"]] == [None, None]  # two rounds are too few


@pytest.mark.slow
def test_the_terminal_and_the_page_carry_the_figures(compared):
    place, out, content = compared
    assert "training step, hybrid, batch 2 of 16x16x3" in out
    assert "plain Flax" in out
    assert "measured peaks: float32 matmul" in out
    text = (place / "page.md").read_text(encoding="utf-8")
    assert text.startswith("above\n\n<!-- bench step -->\n")
    assert text.endswith("\n<!-- /bench step -->\n\nbelow\n")
    assert "old table" not in text
    for row in content["results"]:
        assert results.milliseconds(row["step_seconds"]["median"]) in text


@pytest.mark.slow
def test_new_processes_for_each_turn_measure_inference_too(tmp_path, bench):
    words = ("--only=jaxunet,flax", "--task=predict", "--batch=2", "--no_resident", "--json=p.json")
    done = bench(*QUICK, *words, cwd=tmp_path)
    library, plain = json.loads((tmp_path / "p.json").read_text())["results"]
    assert (len(library["step_seconds"]["rounds"]), len(plain["step_seconds"]["rounds"])) == (2, 2)
    assert plain["value"] == pytest.approx(library["value"], rel=1e-5)  # mean probability
    assert "inference, batch 2 of 16x16x3" in done.stdout


def test_a_ratio_stands_next_to_its_interval():
    facts = {"memory": None, "process_peak_bytes": 1, "first_step_seconds": 1.0}
    library, plain = (
        Participant(name, Workload(), {}, True, 1.0, 1.0, seconds=seconds, facts=facts)
        for name, seconds in (("jaxunet", [1.0, 2.0, 1.0, 1.0, 1.0, 1.0]), ("flax", [3.0, 4.0, 2.5, 3.5, 3.0, 2.0]))
    )
    peaks = {"matmul_float32": 1.0, "copy": 1.0}
    of_library, of_plain = (step.row(one, [library, plain]) | step.shares(one, 1.0, peaks) for one in (library, plain))
    assert (of_plain["ratio_to_ours"], of_plain["ratio_interval"]) == (2.75, (2.0, 3.5))
    assert step.cells(of_plain)[3:5] == ["2.75", "2.00 to 3.50"]
    assert step.cells(of_library)[3:5] == ["1.00", "-"]
    assert len(step.cells(of_library)) == len(step.COLUMNS)


def test_processes_that_compile_together_share_the_processors_and_keep_the_users_caches(monkeypatch):
    variables = ("JAX_COMPILATION_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS")
    for name in variables:
        monkeypatch.delenv(name, raising=False)

    def given(**options):
        (one,) = step.participants(Workload(), ["jaxunet"], StepOptions(**options), "here")
        return dict(one.environment)

    caches = {"JAX_COMPILATION_CACHE_DIR": "here/xla", "TORCHINDUCTOR_CACHE_DIR": "here/inductor"}
    assert given() == caches
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert given(together=True) == caches | {"TORCHINDUCTOR_COMPILE_THREADS": str(rounds.PROCESSORS)}
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "kept")
    assert given() == {"TORCHINDUCTOR_CACHE_DIR": "here/inductor"}


def test_first_steps_that_may_find_compiled_programs_are_marked_in_the_report():
    content = {
        "machine": {"processor": "2 x CPU", "device": "cpu", "platform": "cpu"},
        "peaks": {"copy": 1e9},
        "results": [],
        "absent": {},
        "failed": {},
        "keep_freed_memory": True,
        "idle_cpu_share": 0.0,
    }
    note = "first steps may find programs compiled before: JAX_COMPILATION_CACHE_DIR is set"
    assert note in step.notes({**content, "kept_caches": ["JAX_COMPILATION_CACHE_DIR"]})
    assert note not in step.notes({**content, "kept_caches": []})
    assert "memory: all peers keep freed memory (experiments.machine)" in step.notes({**content, "kept_caches": []})


def test_all_peers_keep_freed_memory_on_request():
    def environment(**options):
        (one,) = step.participants(Workload(), ["pytorch"], StepOptions(**options), "here")
        return one.environment

    assert machine.ALLOCATOR_ENVIRONMENT.items() <= environment(keep_freed_memory=True).items()
    assert not machine.ALLOCATOR_ENVIRONMENT.keys() & environment().keys()
