"""The benchmark: contenders compute the same and take turns; every command leaves figures."""

import importlib
import json
import math
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import allocator
from experiments.bench import (
    calls,
    contenders,
    forms,
    jax_programs,
    loader,
    losses,
    machine,
    plan,
    results,
    rounds,
    scaling,
    steady,
    step,
    step_report,
    trace,
    worker,
    workers,
)
from experiments.bench.__main__ import COMMANDS, main
from experiments.bench.rounds import Seat, ValueMismatchError, check_values, compete, part, start_together
from experiments.bench.workers import Worker, WorkerError
from experiments.bench.workload import Workload, images_and_masks, layer_shapes, parameter_count
from experiments.cli import run_program
from experiments.config import ConfigError
from jaxunet import UNet
from jaxunet.losses import LOSSES
from tests.helpers.programs import environment

ROOT = Path(__file__).parents[2]
TINY = ("--size=16", "--base_filters=2", "--num_layers=1")
QUICK = ("--rounds=2", "--seconds=0.02")


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    return environment(tmp_path_factory.mktemp("cache"))


def bench(*words, cwd, env, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.bench", *words],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


# --- what is computed


def test_the_workload_is_the_documented_network():
    work = Workload()
    assert parameter_count(work) == 31_110_001
    images = jax.ShapeDtypeStruct((1, work.size, work.size, 3), "uint8")
    params = jax.eval_shape(UNet().init, jax.random.key(0), images)["params"]
    assert {name: leaf["kernel"].shape for name, leaf in params.items()} == layer_shapes(work)


def test_every_image_of_a_batch_holds_tumour():
    work = Workload(size=32, batch=3, base_filters=4, num_layers=2)
    images, masks = images_and_masks(work)
    assert images.shape == (3, 32, 32, 3)
    assert images.dtype == masks.dtype == np.uint8
    assert set(np.unique(masks)) == {0, 1}
    assert (masks.sum((1, 2, 3)) > 0).all()


@pytest.fixture(scope="module")
def compared(tmp_path_factory, env):
    """A run of both JAX contenders without dropout, the README's table included."""
    place = tmp_path_factory.mktemp("step")
    before, after = results.marks("step")
    (place / "README.md").write_text(f"above\n\n{before}\nold table\n{after}\n\nbelow\n", encoding="utf-8")
    words = ("--only=jaxunet,flax", "--task=train", "--loss=hybrid", "--dropout_rate=0", "--batch=2")
    done = bench(*TINY, *QUICK, *words, "--json=figures.json", "--write_readme", cwd=place, env=env)
    return place, done.stdout, json.loads((place / "figures.json").read_text())


@pytest.mark.slow
def test_plain_flax_finds_the_same_losses_step_after_step(compared):
    _, _, content = compared
    ours, plain = content["results"]
    assert len(set(ours["losses"])) == len(ours["losses"]) == 1 + rounds.WARM_UP  # it learns
    np.testing.assert_allclose(plain["losses"], ours["losses"], rtol=1e-5)
    np.testing.assert_allclose([ours["losses"][0], plain["value"]], ours["value"], rtol=1e-5)


def products(work):
    """Shape of each kernel and the pixels of the batch that it is applied to."""
    for name, shape in layer_shapes(work).items():
        level = 0 if name == "head" else int(name[7]) + name.endswith("_up")
        yield shape, work.batch * (work.size >> level) ** 2


@pytest.mark.slow
def test_the_figures_say_what_they_promise(compared):
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
        assert row["memory_bytes"] > 3 * 4 * row["parameters"]  # parameters and the two moments of Adam
        forward = 2 * sum(math.prod(shape) * places for shape, places in products(work))
        assert 2.5 * forward < row["network_flops"] < 4 * forward  # and two gradients, and what is no product
    assert content["results"][0]["ratio_to_ours"] == 1
    assert [row["ratio_interval"] for row in content["results"]] == [None, None]  # two rounds are too few


@pytest.mark.slow
def test_the_table_and_the_readme_carry_the_figures(compared):
    place, out, content = compared
    assert "training step, hybrid, batch 2 of 16x16x3" in out
    assert "plain Flax" in out
    assert "measured peaks: float32 matmul" in out
    text = (place / "README.md").read_text(encoding="utf-8")
    assert text.startswith("above\n\n<!-- bench step -->\n")
    assert text.endswith("\n<!-- end of bench step -->\n\nbelow\n")
    assert "old table" not in text
    for row in content["results"]:
        assert results.milliseconds(row["step_seconds"]["median"]) in text


def test_a_ratio_to_ours_stands_beside_its_interval():
    facts = {"memory": None, "process_peak_bytes": 1, "first_step_seconds": 1.0, "matmul_share": 1, "copy_share": None}
    ours, plain = (
        rounds.Seat(name, Workload(), {}, True, 1.0, 1.0, seconds=seconds, facts=facts)
        for name, seconds in (("jaxunet", [1.0, 2.0, 1.0, 1.0, 1.0, 1.0]), ("flax", [3.0, 4.0, 2.5, 3.5, 3.0, 2.0]))
    )
    of_ours, of_plain = (step.row(seat, [ours, plain]) for seat in (ours, plain))
    assert (of_plain["ratio_to_ours"], of_plain["ratio_interval"]) == (2.75, (2.0, 3.5))
    assert step_report.cells(of_plain)[3:5] == ["2.75", "2.00 to 3.50"]
    assert step_report.cells(of_ours)[3:5] == ["1.00", "-"]
    assert len(step_report.cells(of_ours)) == len(step_report.COLUMNS)


# --- who takes part


def test_who_is_not_installed_is_named_and_nobody_else_misses_them(monkeypatch):
    found = {name: contender.packages for name, contender in contenders.CONTENDERS.items()}
    assert found["monai"] == ("torch", "monai")
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda name: None if name == "torch" else object())
    present, absent = step.choose(step.Options(), "cpu")
    assert present == ["jaxunet", "flax", "keras"]
    assert absent["pytorch_compiled"] == "torch not installed"
    assert set(absent) == {"pytorch", "pytorch_compiled", "pytorch_bf16", "pytorch_bf16_compiled", "monai"}


def test_bfloat16_of_xla_takes_part_on_accelerators_or_where_it_is_asked_for():
    assert "jaxunet_bf16" not in step.choose(step.Options(), "cpu")[0]
    assert "jaxunet_bf16" in step.choose(step.Options(), "gpu")[0]
    assert step.choose(step.Options(only=("jaxunet_bf16",)), "cpu")[0] == ["jaxunet_bf16"]
    assert step.choose(step.Options(dtype=("bfloat16",)), "gpu")[0][0] == "jaxunet_bf16"


def test_a_contender_is_compared_with_ours_in_its_own_number_format_where_that_takes_part():
    present = ["jaxunet", "jaxunet_bf16", "pytorch_bf16"]
    assert contenders.baseline("pytorch_bf16", present) == "jaxunet_bf16"
    assert contenders.baseline("pytorch_bf16", ["jaxunet", "pytorch_bf16"]) == "jaxunet"
    assert contenders.baseline("flax", present) == "jaxunet"
    assert contenders.baseline("flax", ["flax"]) is None


def seat(name, value, found=(1.0, 0.9, 0.8), dropout_rate=0.0):
    facts = {"value": value, "losses": list(found), "platform": "cpu", "parameters": 1}
    return Seat(name, Workload(dropout_rate=dropout_rate), {}, True, 1.0, 60.0, facts=facts)


def test_times_of_programs_that_find_other_losses_are_never_compared():
    check_values([seat("jaxunet", 1.0), seat("flax", 1.00005), seat("pytorch_bf16", 1.01), seat("monai", 7.0)])
    with pytest.raises(ValueMismatchError, match=r"flax finds 1\.001 where jaxunet finds 1 "):
        check_values([seat("jaxunet", 1.0), seat("flax", 1.001)])
    with pytest.raises(ValueMismatchError, match="pytorch_bf16"):
        check_values([seat("jaxunet", 1.0), seat("pytorch_bf16", 1.1)])
    check_values([seat("jaxunet_bf16", 1.002), seat("flax", 1.0)])  # the reference is the one that rounds
    learning_otherwise = seat("keras", 1.0, (1.0, 0.95, 0.9))
    with pytest.raises(ValueMismatchError, match="keras"):
        check_values([seat("jaxunet", 1.0), learning_otherwise])
    check_values([seat("jaxunet", 1.0, dropout_rate=0.1), seat("keras", 1.0, (1.0, 0.95, 0.9), dropout_rate=0.1)])


# --- processes


def test_a_worker_answers_however_much_it_prints_and_says_why_it_fails(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with Worker("a worker", "tests.helpers.bench_worker:simple", {"a": 1}, environment={"TOLD": "this"}) as process:
        process.call("print")
        assert process.call("echo", value=2) == [2, {"a": 1}]
        assert process.call("environment") == "this"
        assert process.seconds < 1
        assert process.call("resident_bytes") <= process.call("process_peak_bytes") * 1.01
        with pytest.raises(WorkerError, match=r"a worker failed in fail: ValueError: too small$"):
            process.call("fail")
        assert process.call("echo", value=3)[0] == 3
        with pytest.raises(WorkerError, match="a worker died with code 7 in die"):
            process.call("die")
    with pytest.raises(WorkerError, match="failed in build: AttributeError"):
        Worker("another", "tests.helpers.bench_worker:unknown", {})


def test_a_worker_that_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with Worker("a slow one", "tests.helpers.bench_worker:simple", {}, patience=5) as process:
        process.call("echo", value=1)
        with pytest.raises(WorkerError, match="a slow one gave no answer to hang in 5 s, and was ended"):
            process.call("hang")


def test_contenders_that_start_together_take_turns_and_one_that_compiles_too_long_is_left_out(tmp_path):
    work = Workload(task="predict", size=16, base_filters=2, num_layers=1, batch=1)
    caches = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    late, *others = (Seat(name, work, caches, True, 0.01, 60.0) for name in ("jaxunet", "jaxunet", "flax"))
    start_together([late], 0.1)
    assert "gave no answer to build" in late.failure
    start_together(others, 60.0)
    assert all(seat.is_warm for seat in others)
    compete([late, *others], 3, lambda: None, stay=True)
    part([late, *others])
    assert [len(seat.seconds) for seat in (late, *others)] == [0, 3, 3]
    assert all(seat.facts["memory"]["bytes"] > 0 for seat in others)


def test_processes_that_compile_together_share_the_processors_and_keep_the_users_caches(monkeypatch):
    variables = ("JAX_COMPILATION_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS")
    for name in variables:
        monkeypatch.delenv(name, raising=False)

    def given(**options):
        (seat,) = step.seats_of(Workload(), ["jaxunet"], step.Options(**options), "here")
        return dict(seat.environment)

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
    said = "first steps may find programs compiled before: JAX_COMPILATION_CACHE_DIR is set"
    assert said in step_report.notes({**content, "kept_caches": ["JAX_COMPILATION_CACHE_DIR"]})
    assert said not in step_report.notes({**content, "kept_caches": []})


def test_whose_memory_is_kept_is_said_and_given_to_all_on_demand():
    def environment(**options):
        (seat,) = step.seats_of(Workload(), ["pytorch"], step.Options(**options), "here")
        return seat.environment

    assert allocator.ENVIRONMENT.items() <= environment(keep_freed_memory=True).items()
    assert not allocator.ENVIRONMENT.keys() & environment().keys()


def test_memory_of_a_step_is_what_the_device_counted_or_else_the_plan(monkeypatch):
    work = Workload(task="predict", size=16, base_filters=2, num_layers=1, batch=1)
    found = jax_programs.jaxunet_step(work)[1]
    for seen in (None, {}, {"peak_bytes_in_use": 10**9}):
        monkeypatch.setattr(jax, "devices", lambda seen=seen: [SimpleNamespace(memory_stats=lambda: seen)])
        memory = found.memory()
        parts = [memory[part] for part in ("arguments", "results", "temporaries", "aliases")]
        assert memory["planned"] == sum(parts)
        assert memory["arguments"] >= 4 * parameter_count(work)
        assert memory["bytes"] == (10**9 if seen else memory["planned"])


def test_processor_time_of_a_waiting_process_is_counted(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with Worker("busy", "tests.helpers.bench_worker:restless", {}) as process:
        process.call("wake")
        time.sleep(0.5)
        process.call("sleep")
        assert process.idle_cpu_seconds > 0.02
    with Worker("calm", "tests.helpers.bench_worker:simple", {}) as process:
        time.sleep(0.5)
        process.call("echo", value=1)
        assert process.idle_cpu_seconds < 0.02


# --- figures


def test_a_ratio_is_taken_within_each_round():
    assert results.ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == 2.0  # a slow round slows both
    summary = results.summarise([3.0, 1.0, 2.0, 5.0, 4.0])
    assert (summary["median"], summary["quartiles"], summary["range"]) == (3.0, [2.0, 4.0], [1.0, 5.0])
    assert results.summarise([1.5])["quartiles"] == [1.5, 1.5]


def test_the_interval_of_a_ratio_comes_from_its_order_statistics():
    ratios = np.random.default_rng(0).permutation(np.arange(1.0, 28.0))
    # of 27, the 8th and the 20th: the median lies outside with the probability of at most 7 heads or tails in 27 throws
    assert results.ratio_interval(2 * ratios, [2.0] * 27) == (8.0, 20.0)
    assert results.ratio_interval([1.0] * 5, [1.0] * 5) is None  # too few for 95 %


def test_a_readme_without_one_place_for_the_table_is_refused(tmp_path):
    path = tmp_path / "README.md"
    first, last = results.marks("step")
    for text in ("nothing", first, f"{last}\n{first}", f"{first}{first}{last}"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="has no place for the table"):
            results.write_marked(path, "step", "table")
        assert path.read_text() == text


def test_the_rate_is_that_of_the_largest_matrix_that_takes_little_time(monkeypatch):
    clock, tried = [0.0], []
    monkeypatch.setattr(machine.time, "perf_counter", lambda: clock[0])

    def prepare(side):
        tried.append(side)

        def run():
            clock[0] += 1e-9 * side**3 if side <= 512 else 1e-8 * side**3

        return run

    assert machine.matmul_rate("cpu", prepare, 1.0) == pytest.approx(2e9)  # two operations in a nanosecond
    assert tried == [256, 512, 1024]


# --- commands


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["stap"], "unknown command 'stap'; did you mean step?"),
        (["--only=torch"], "only: unknown 'torch'; known are jaxunet, "),
        (["--size=250"], "size=250: must be a positive multiple of 64 (2^num_layers)"),
        (["--rounds=0", "--batch=4,0"], "2 problems:\n  batch=4,0: must be at least 1\n  rounds=0: must be at least 1"),
        (["steady", "--steps=10"], "steps=10: must be at least four blocks of 20"),
        (["calls", "--dtype=int8"], "dtype=int8: must be float32, bfloat16 or float16"),
        (["scaling", "--loss=dise"], "loss=dise: must be bce or hybrid"),
        (["plan", "--devices=2,0", "--batch="], "2 problems:\n  devices=2,0: must be at least 1\n  batch=: must be"),
        (["plan", "--devices=8,12", "--target=README.md"], "devices=12: GPUs come in nodes of 8, must be a multiple"),
        (["losses", "--only=dise"], "only: unknown 'dise'; known are bce, "),
        (["trace", "--dropout_rate=0.2"], "dropout_rate=0.2: times num_layers it must be from 0 to below 1"),
        (
            ["--json=tests/experiments/test_bench.py"],
            "--json=tests/experiments/test_bench.py exists already: name another file",
        ),
        (["--write_readme", "--readme=pyproject.toml"], "pyproject.toml has no place for the table"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_starts(words, expected, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert run_program(main, words) == 2
    assert capsys.readouterr().err.startswith(f"error: {expected}")


def test_the_help_of_every_command_comes_without_jax_and_the_first_lists_all():
    code = (
        "import sys\nfrom experiments.bench.__main__ import COMMANDS, main\n"
        "for words in [[], *([name] for name in COMMANDS)]:\n"
        "    try: main([*words, '--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "assert not {'jax', 'matplotlib', 'torch', 'tensorflow'} & set(sys.modules), 'slow'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    for name, text in COMMANDS.items():
        assert f"{name:8} {text}" in done.stdout
        assert f"python -m experiments.bench {name}" in done.stdout


class Here:
    """A worker without a process of its own, which would spend seconds on imports."""

    def __init__(self, name, target, arguments, *, environment=None):
        self.name = name
        module, _, function = target.partition(":")
        self.functions = {
            "resident_bytes": worker.resident_bytes,
            **getattr(importlib.import_module(module), function)(**arguments),
        }

    def call(self, function, **arguments):
        start = time.perf_counter()
        try:
            result = self.functions[function](**arguments)
        except ValueError as error:
            raise WorkerError(f"{self.name} failed in {function}: ValueError: {error}") from error
        self.seconds = time.perf_counter() - start
        return json.loads(json.dumps(result))  # what a process could answer

    def close(self):
        self.functions = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """Runs a command in this process and returns what it printed and its figures."""
    for module in (losses, machine, plan, scaling, steady, trace):
        monkeypatch.setattr(module, "Worker", Here)
    monkeypatch.setattr(allocator, "keep_freed_memory", lambda: False)  # which would hold for all tests of this process
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words):
        assert run_program(main, [*words, f"--json={tmp_path / 'figures.json'}"]) == 0
        return capsys.readouterr().out, json.loads((tmp_path / "figures.json").read_text())

    return run


def test_a_loss_is_timed(here):
    out, content = here("losses", "--size=16", "--batch=2", "--only=dice,bce", *QUICK)
    assert [row["loss"] for row in content["results"] if row["suite"] == losses.OURS] == ["bce", "dice"]
    assert all(min(row["step_seconds"]["rounds"]) > 0 for row in content["results"])
    assert " dice " in out
    assert " focal " not in out


def slower_dice(size, batch):
    """A library with one loss, which takes a fifth of a second."""
    return {
        "names": lambda: {"dice": "SlowerDice"},
        "describe": dict,
        "value": lambda loss: 0.5,
        "run": lambda loss, steps: time.sleep(0.2 * steps),
        "temporary_bytes": lambda loss: None,
    }


def test_a_loss_is_compared_with_that_of_another_library(here, monkeypatch):
    suites = {**losses.SUITES, "other": ("test_bench:slower_dice", ()), "none": ("nobody:losses", ("not_there",))}
    monkeypatch.setattr(losses, "SUITES", {name: suites[name] for name in (losses.OURS, "other", "none")})
    out, content = here("losses", "--size=16", "--batch=2", "--only=dice,bce", *QUICK)
    ratios = {(row["suite"], row["loss"]): row["ours_to_theirs"] for row in content["results"]}
    assert ratios[losses.OURS, "bce"] is ratios[losses.OURS, "dice"] is None
    assert 0 < ratios["other", "dice"] < 1
    assert "ours takes at most their time in 1 of 1 comparisons" in out
    assert "absent: none (not_there not installed)" in out


def test_losses_are_timed_and_one_that_cannot_be_is_named(here):
    out, content = here("losses", "--size=8", "--batch=2", "--only=bce,ssim,dice", *QUICK)
    assert [row["loss"] for row in content["results"] if row["suite"] == losses.OURS] == ["bce", "dice"]
    assert all(len(row["step_seconds"]["rounds"]) == 2 for row in content["results"])
    assert all(min(row["step_seconds"]["rounds"]) > 0 for row in content["results"])
    masks = images_and_masks(Workload(size=8, batch=2))[1]
    logits = jax.random.normal(jax.random.key(0), masks.shape)
    assert content["results"][0]["value"] == pytest.approx(float(LOSSES["bce"].fn(logits, masks)), rel=1e-6)
    assert list(content["failed"]) == ["jaxunet ssim"]
    assert "failed: jaxunet failed in value: ValueError" in out


@pytest.mark.slow
def test_every_loss_can_be_timed(here):
    _, content = here("losses", "--size=192", "--batch=1", "--rounds=1", "--seconds=0.001")
    assert [row["loss"] for row in content["results"] if row["suite"] == losses.OURS] == list(LOSSES)
    assert content["failed"] == {}


@pytest.mark.slow
def test_scaling_exchanges_the_gradients_once(here):
    out, content = here("scaling", *TINY, *QUICK, "--devices=1,2", "--batch=1", "--loss=bce")
    one, two = content["results"]
    assert (one["devices"], one["batch"], one["collectives"], one["bytes_a_step"]) == (1, 1, [], 0)
    gradients = 4 * parameter_count(Workload(size=16, base_filters=2, num_layers=1))
    reduced = sum(found["bytes"] for found in two["collectives"] if found["kind"] == "all-reduce")
    assert gradients <= reduced <= gradients + 64  # and some scalars of the loss
    assert one["efficiency"] == 1
    assert "the devices are simulated" in out


PARAMETERS = 4 * parameter_count(Workload(size=16, base_filters=2, num_layers=1))


def test_a_plan_says_what_a_step_holds_does_and_exchanges(here):
    out, content = here("plan", *TINY, "--devices=1,2", "--batch=3", "--loss=bce")
    one, two = content["results"]
    assert [(row["devices"], row["batch"]) for row in (one, two)] == [(1, 3), (2, 6)]
    state, inputs = 3 * PARAMETERS + 2 * 4, 3 * (16 * 16 * 4 + 4)  # parameters, moments, two counts; images and weights
    assert one["memory"]["arguments"] == two["memory"]["arguments"] == state + inputs
    _, step = jax_programs.jaxunet_step(Workload(loss="bce", size=16, batch=3, base_filters=2, num_layers=1))
    assert one["memory"] == jax_programs.planned(step.compile())
    forward = 2 * sum(
        math.prod(shape) * places
        for shape, places in products(Workload(size=16, base_filters=2, num_layers=1, batch=3))
    )
    assert 2.5 * forward < one["flops"] < 4 * forward  # and two gradients, and pairs of pixels at once
    assert two["flops"] == one["flops"]
    assert one["bytes_moved"] == pytest.approx(step.bytes_accessed())
    assert (one["collectives"], one["bytes_exchanged"]) == ([], 0)
    exchanged = sum(found["bytes"] for found in two["collectives"] if found["kind"] == "all-reduce")
    assert PARAMETERS <= exchanged <= PARAMETERS + 64
    assert "planned for cpu" in out
    assert "all-reduce (f32)" in out


def test_simulated_devices_leave_the_users_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_one=1 --xla_force_host_platform_device_count=8")
    first, *_, last = workers.with_simulated_devices(2).split()
    assert first == "--xla_one=1"
    assert last == "--xla_force_host_platform_device_count=2"  # which is the one that counts


@pytest.mark.parametrize(
    ("words", "least", "most"),
    [
        (["--task=predict"], PARAMETERS + 16 * 16 * 3, 0),
        (["--shard_optimizer", "--devices=2"], 2 * PARAMETERS + 16 * 16 * 4, 0.2 * PARAMETERS),  # biases are copied
    ],
)
def test_a_plan_shows_what_options_save(here, words, least, most):
    _, content = here("plan", *TINY, "--batch=1", *words)
    (row,) = content["results"]
    assert least <= row["memory"]["arguments"] <= least + most


@pytest.mark.parametrize(
    ("words", "reason"),
    [(["--target=v0:2x2"], "target=v0:2x2: no file and no TPU topology"), (["--devices=64"], "has 8 devices, 64 were")],
)
def test_a_plan_for_what_is_not_there_is_refused(words, reason, here, capsys):
    with pytest.raises(AssertionError):
        here("plan", *TINY, *words)
    assert reason in capsys.readouterr().err


def test_the_loader_is_measured_by_stage_and_by_cache_and_beside_a_resident_batch(here, tmp_path):
    out, content = here("loader", *TINY, f"--cache_dir={tmp_path}", "--rounds=1", "--seconds=0.02", "--steps=2")
    places = [f"cache {cache}, {place}" for cache in loader.CACHES for place in ("host", "device")]
    assert [name for name in content["rates"] if name.startswith("cache")] == places
    assert all(min(found["rounds"]) > 0 for found in content["rates"].values())
    assert {name: len(found["rounds"]) for name, found in content["step_seconds"].items()} == dict.fromkeys(
        ("resident", *loader.CACHES), 2
    )
    assert f"no DataLoader: {content['absent']}" in out
    assert "over one resident batch" in out


def test_several_steps_in_one_call_are_timed_beside_calls_of_one(here):
    out, content = here("calls", *TINY, "--batch=2", "--steps=3", "--rounds=6")
    assert [len(way["rounds"]) for way in content["step_seconds"].values()] == [6, 6]
    assert list(content["step_seconds"]) == ["one step a call", "3 steps a call"]
    assert f"{content['arrays']} arrays of state a call" in out
    assert "over several a call" in out


def test_several_steps_in_one_call_are_the_same_steps():
    work = Workload(size=16, base_filters=2, num_layers=1, batch=2)
    (_, apart), (_, together) = (jax_programs.jaxunet_step(work) for _ in range(2))
    apart.train(3)
    calls.at_once(together, work, 3)()
    assert int(apart.state.step) == int(together.state.step) == 3
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), together.state.params, apart.state.params)


@pytest.mark.slow
def test_steady_shows_a_quarter_beside_another(here):
    out, content = here("steady", *TINY, "--steps=16", "--block=4", "--batch=2")
    seconds, witness = content["step_seconds"], content["witness_seconds"]
    assert len(seconds) == len(witness) == len(content["resident_bytes"]) == len(content["quarters"]) == 4
    assert content["time_ratio"] == pytest.approx(seconds[3] / witness[3] / (seconds[0] / witness[0]))
    assert f"memory: {content['bytes_at_first'] / 1e6:+.1f} MB in the first quarter, then" in out


def test_operations_of_the_same_kind_are_added_up():
    def part(label, seconds):
        return {"name": "fusion.1", "label": label, "seconds": seconds, "floor_seconds": seconds / 2}

    parts = [part("encoder0_conv2 gradient: pad", 2.0), part("copy", 3.0), part("decoder11_conv1 gradient: pad", 4.0)]
    first, second = trace.kinds(parts)
    assert first["name"] == "conv gradient: pad"
    assert (first["seconds"], first["floor_seconds"]) == (6.0, 3.0)
    assert first["label"] == "most in decoder11_conv1 gradient, encoder0_conv2 gradient"
    assert (second["name"], second["label"]) == ("copy", "")
    table = trace.rows({"step_seconds": 10.0, "idle_seconds": 1.0}, [first, second], least=40)
    assert [row[:3] for row in table] == [
        ["conv gradient: pad", "6000", "60.0"],
        ["1 others", "3000", "30.0"],
        ["nothing ran", "1000", "10.0"],
    ]


@pytest.mark.slow
def test_trace_names_operations_with_their_layer_and_floor(here):
    out, content = here("trace", *TINY, "--steps=2", "--least=0", "--batch=2")
    operations = content["operations"]
    assert [op["seconds"] for op in operations] == sorted((op["seconds"] for op in operations), reverse=True)
    convolutions = [op for op in operations if op["flops"]]
    assert {"decoder0_conv1", "encoder1_conv2"} <= {op["label"].split()[0].rstrip(":") for op in convolutions}
    assert any(" gradient" in op["label"] for op in convolutions)
    assert all(op["floor_seconds"] > 0 for op in convolutions)
    total = sum(op["seconds"] for op in operations) + content["idle_seconds"]
    assert total == pytest.approx(content["step_seconds"], rel=1e-6)
    assert "nothing ran" in out


@pytest.mark.slow
def test_turns_that_start_anew_measure_inference_too(tmp_path, env):
    words = ("--only=jaxunet,flax", "--task=predict", "--batch=2", "--no_resident", "--json=p.json")
    done = bench(*TINY, *QUICK, *words, cwd=tmp_path, env=env)
    ours, plain = json.loads((tmp_path / "p.json").read_text())["results"]
    assert (len(ours["step_seconds"]["rounds"]), len(plain["step_seconds"]["rounds"])) == (2, 2)
    assert plain["value"] == pytest.approx(ours["value"], rel=1e-5)  # mean probability
    assert "inference, batch 2 of 16x16x3" in done.stdout


@pytest.mark.slow
def test_start_compiles_once_and_finds_it_again(tmp_path, env):
    bench("start", *TINY, "--rounds=1", "--batch=2", "--json=z.json", cwd=tmp_path, env=env)
    content = json.loads((tmp_path / "z.json").read_text())
    cold, warm = content["results"]
    assert (cold["cache"], warm["cache"]) == ("cold", "warm")
    assert warm["phases"]["compile"]["median"] < cold["phases"]["compile"]["median"]
    assert cold["total"]["median"] == pytest.approx(sum(phase["median"] for phase in cold["phases"].values()))


def test_forms_that_end_within_the_scatter_of_the_seeds_agree():
    rows = forms.compare({"fast": [0.30, 0.34], "plain": [0.35, 0.41], "bfloat16": [0.40, 0.42]})
    assert [row["agrees"] for row in rows] == [True, True, False]
    assert rows[1]["away"] == pytest.approx(0.06)


def test_the_spread_of_three_seeds_is_the_range_of_three_on_average():
    assert forms.spread([0.3, 0.1, 0.2]) == pytest.approx(0.2)
    assert forms.spread([0.1, 0.4]) == pytest.approx(0.3)
    assert forms.spread([0.0, 1.0, 3.0, 3.0]) == pytest.approx((3 + 3 + 3 + 2) / 4)  # each left out in turn
    draws = np.random.default_rng(0).normal(size=60)
    assert forms.spread(list(draws)) == pytest.approx(1.693, abs=0.3)  # E max - min of three of N(0, 1): 3 / sqrt(pi)


def test_the_interval_of_two_forms_is_that_of_welch():
    rows = forms.compare({"fast": [0.0, 1.0, 2.0], "plain": [2.0, 4.0, 6.0]})
    # Variances 1 and 4: the difference has a standard error of sqrt(5 / 3) with (5 / 3)^2 / (1 / 18 + 16 / 18) = 2.94
    # degrees of freedom, for which Student's density integrates to 97.5 % at 3.2188.
    half = 3.2188 * (5 / 3) ** 0.5
    assert rows[1]["interval"] == pytest.approx([3 - half, 3 + half], rel=1e-4)


@pytest.mark.slow
def test_fast_and_plain_layers_learn_the_same(here, tmp_path):
    network = ("--size=32", "--base_filters=2", "--num_layers=2", f"--cache_dir={tmp_path / 'cache'}")
    out, content = here("forms", *network, "--steps=4", "--seeds=2", "--first_seed=5", "--forms=fast,plain")
    np.testing.assert_allclose(content["losses"]["plain"], content["losses"]["fast"], rtol=2e-2)  # dropout differs
    assert len(set(content["losses"]["fast"])) == 2
    assert "data: SYNTHETIC PHANTOMS" in out
    assert "than twice the spread of three seeds" in out
