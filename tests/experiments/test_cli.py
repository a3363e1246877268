"""The command line: flags, help, runs that are used again, and the message of an error."""

import contextlib
import io
import json
import resource
import subprocess
import sys

import pytest

from experiments import config as cfg
from experiments.cli import PROGRAMS, parse
from experiments.config import Config, ConfigError, DataConfig, EvalConfig, InferConfig, ModelConfig, TrainConfig
from experiments.run_directory import run_directory

KINDS = {key: option.kind for key, option in cfg.options().items()}
SWITCHES = [key for key, kind in KINDS.items() if kind in (bool, bool | None)]
KEYS = [key for key in KINDS if key not in ("config", "train.loss_options")]
CODE = "__import__('pathlib').Path('canary').touch()"


def refused(*words, **options):
    """Returns the message with which a command line is refused, without the frame that tyro draws."""
    text = io.StringIO()
    with contextlib.redirect_stderr(text), pytest.raises((ConfigError, SystemExit)) as caught:
        parse(words, **options)
    if isinstance(caught.value, ConfigError):
        return str(caught.value)
    assert caught.value.code == 2
    return " ".join("".join(" " if c in "│─╭╮╰╯" else c for c in text.getvalue()).split())


# --- flags


def test_without_words_it_is_the_preset_dice():
    assert parse([]) == cfg.PRESETS["dice"]


@pytest.mark.parametrize("name", cfg.PRESETS)
def test_a_preset_is_taken_by_name(name):
    assert parse([f"--config={name}"]) == parse(["--config", name]) == cfg.PRESETS[name]


GOOD = [
    (["--train.epochs=5"], "train.epochs", 5),
    (["--train.epochs", "5"], "train.epochs", 5),
    (["--train.epochs=7", "--train.epochs=5"], "train.epochs", 5),
    (["--train.batch_size=8"], "train.batch_size", 8),
    (["--train.batch-size=8"], "train.batch_size", 8),
    (["--train.batch-size", "8"], "train.batch_size", 8),
    (["--train.learning_rate=3e-4"], "train.learning_rate", 3e-4),
    (["--train.learning_rate=1"], "train.learning_rate", 1.0),
    (["--data.resize"], "data.resize", True),
    (["--data.resize=True"], "data.resize", True),
    (["--data.resize", "false"], "data.resize", False),
    (["--data.resize=None"], "data.resize", None),
    (["--infer.no-binarize"], "infer.binarize", False),
    (["--distributed"], "distributed", True),
    (["--distributed", "--no-distributed"], "distributed", False),
    (["--data.mask_threshold=127"], "data.mask_threshold", 127),
    (["--data.mask_threshold=None"], "data.mask_threshold", None),
    (["--data.root=None"], "data.root", None),
    (["--infer.output_dir=a=b"], "infer.output_dir", "a=b"),
    (["--run_dir", "runs/x"], "run_dir", "runs/x"),
    (["--run-dir=runs/x"], "run_dir", "runs/x"),
    (["--model.dtype=bfloat16"], "model.dtype", "bfloat16"),
    (["--train.metrics=loss,val_loss"], "train.metrics", ("loss", "val_loss")),
    (["--train.metrics=loss, val_loss"], "train.metrics", ("loss", "val_loss")),
    (["--train.metrics", "loss", "val_loss"], "train.metrics", ("loss", "val_loss")),
    (["--train.metrics=('loss', 'val_loss')"], "train.metrics", ("loss", "val_loss")),
    (["--data.test_sites=CS,HT", "--data.split=site"], "data.test_sites", ("CS", "HT")),
    (["--data.test_sites", "CS", "HT", "--data.split=site"], "data.test_sites", ("CS", "HT")),
    (["--data.test_sites=CS", "--data.split=site"], "data.test_sites", ("CS",)),
    (["--data.test_sites="], "data.test_sites", ()),
    (["--eval.spacing=5,1,0.5"], "eval.spacing", (5.0, 1.0, 0.5)),
    (["--eval.spacing=None"], "eval.spacing", None),
    (["--train.loss=my.module:my_loss"], "train.loss", "my.module:my_loss"),
    (["--train.loss_options.alpha=0.3"], "train.loss_options", {"alpha": 0.3}),
    (["--train.loss_options.alpha", "-1"], "train.loss_options", {"alpha": -1}),
    (["--train.loss-options.pos-weight=2"], "train.loss_options", {"pos_weight": 2}),
    (["--train.loss_options.log=True"], "train.loss_options", {"log": True}),
    (["--train.loss_options.mode=mean"], "train.loss_options", {"mode": "mean"}),
    (["--train.loss_options.mode='a b'"], "train.loss_options", {"mode": "a b"}),
    (
        ["--train.loss_options.w=(0.5, 0.5)", "--train.loss_options.k=None"],
        "train.loss_options",
        {"w": (0.5, 0.5), "k": None},
    ),
    (["--train.augment=flip,gamma"], "train.augment", ("flip", "gamma")),
]


@pytest.mark.parametrize(("words", "key", "value"), GOOD, ids=[" ".join(words) for words, _, _ in GOOD])
def test_a_flag_sets_its_key_alone(words, key, value):
    got, before = cfg.flatten(parse(words)), cfg.flatten(cfg.PRESETS["dice"])
    assert got[key] == value
    assert type(got[key]) is type(value)
    assert {k for k in got if got[k] != before[k]} - {"data.split"} <= {key}


def test_the_flag_of_every_key_is_its_name():
    values = {
        **cfg.flatten(cfg.PRESETS["demo"]),
        "config": "demo",
        "model.dtype": "bfloat16",
        "eval.split": "val",
        "eval.spacing": (5.0, 1.0, 0.5),
        "eval.lesion_iou": 0.25,
        "train.augment": ("flip",),
        "data.mask_threshold": 9,
        "distributed": True,
        "infer.binarize": False,
    }
    words = []
    for key, value in values.items():
        section, _, leaf = key.rpartition(".")
        if KINDS[key] is bool:
            words.append(f"--{section}{'.' if section else ''}{'' if value else 'no_'}{leaf}")
        elif key != "train.loss_options":
            words.append(f"--{key}={','.join(map(str, value)) if isinstance(value, tuple) else value}")
    assert cfg.flatten(parse(words)) == values


def test_options_of_a_loss_go_with_it(tmp_path):
    run = Config(train=TrainConfig(loss="dice", loss_options={"smooth": 0.5}))
    (tmp_path / "config.json").write_text(cfg.to_json(run))
    words = [f"--run_dir={tmp_path}"]
    assert parse([*words, "--train.loss_options.smooth=0.5"], program="evaluate").train == run.train
    assert "train.loss_options.smooth: 0.5 in the run, 1 asked" in refused(
        *words, "--train.loss_options.smooth=1", program="evaluate"
    )


def test_paths_of_data_do_not_depend_on_the_directory_later(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert parse(["--data.root=kaggle_3m"]).data.root == str(tmp_path / "kaggle_3m")
    assert parse(["--data.cache_dir=cache"]).data.cache_dir == str(tmp_path / "cache")
    assert parse(["--train.eval_dir=results"]).train.eval_dir == str(tmp_path / "results")
    assert parse(["--data.root=~/kaggle_3m"]).data.root == "/home/someone/kaggle_3m"
    assert parse(["--data.root=~nobody-of-this-name/x"]).data.root == str(tmp_path / "~nobody-of-this-name/x")


# --- refusals


def test_an_unknown_key_names_the_nearest():
    assert refused("--train.learnig_rate=1") == (
        "unknown key --train.learnig_rate; did you mean --train.learning_rate?"
    )


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--learning_rate=1", "--train.learning_rate"),
        ("--train.base_filters=1", "--model.base_filters"),
        ("--epoch=1", "--train.epochs"),
        ("--rundir=x", "--run_dir"),
        ("-train.epochs=1", "--train.epochs"),
        ("--Config=dice", "--config"),
        ("--batch_size=2", "--train.batch_size or --eval.batch_size or --infer.batch_size"),
    ],
)
def test_a_key_of_the_wrong_place_is_recognised(word, meant):
    assert refused(word).endswith(f"did you mean {meant}?")


def test_a_key_that_resembles_nothing_is_refused_without_a_guess():
    assert refused("--zzzzzz=1") == "unknown key --zzzzzz"
    assert refused("--train.no_epochs") == "unknown key --train.no_epochs; did you mean --train.epochs?"


def misspelt(key):
    section, dot, leaf = key.rpartition(".")
    return f"{section}{dot}{leaf[0]}{leaf[2:]}"  # without its second letter


def test_every_key_misspelt_is_refused():
    lines = refused(*(f"--{misspelt(key)}=1" for key in KEYS)).splitlines()
    assert lines[0] == f"{len(KEYS)} problems:"
    for key, line in zip(KEYS, lines[1:], strict=True):
        assert line.startswith(f"  unknown key --{misspelt(key)}; did you mean --")


@pytest.mark.parametrize("key", [k for k in KEYS if KINDS[k] not in (str, str | None, tuple[str, ...])])
@pytest.mark.parametrize("value", [CODE, "abc", ""])
def test_every_key_with_a_value_of_another_type_is_refused(key, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = refused(f"--{key}={value}")
    assert f"--{key}" in text or (KINDS[key] is bool and text.startswith(f"unexpected word {value!r}"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", [k for k in KEYS if k not in SWITCHES])
def test_every_key_without_a_value_is_refused(key):
    text = refused(f"--{key}")
    assert f"--{key}" in text and ("Missing value" in text or "expected NAME" in text or "expected NUMBER" in text)


@pytest.mark.parametrize("word", ["--train.metrics", "--train.metrics=loss", "--train.metrics=a,b,c"])
def test_names_are_counted(word):
    assert "Error parsing --train.metrics: expected NAME,NAME" in refused(word)


@pytest.mark.parametrize("key", ["config", "train.loss", "train.loss_options", "train.loss_options.alpha"])
def test_code_is_text_and_never_runs(key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(f"--{key}={CODE}")
    refused(f"--{key}=[{CODE}]")
    refused(f"--{key}={{'alpha': {CODE}}}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", [k for k in KEYS if KINDS[k] == (str | None)])
def test_code_as_a_path_is_a_name_and_never_runs(key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(ConfigError):  # a folder without its other half
        assert cfg.flatten(parse([f"--{key}={CODE}"]))[key].endswith(CODE)
    assert list(tmp_path.iterdir()) == []


NOT_PLAIN = ["lambda: 1", "{1: 2}", "(1, (2,))", "b'x'", "1j", "f'{1}'", "...", "a.b", "nan", "-inf", "9" * 5000]


@pytest.mark.parametrize("value", [*NOT_PLAIN, "(" * 5000, "-" * 9000 + "1"])
def test_an_option_of_a_loss_is_a_plain_finite_literal(value):
    assert "train.loss_options.alpha" in refused(f"--train.loss_options.alpha={value}")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dice"], "unexpected word 'dice'"),
        (["train.epochs=5"], "unexpected word 'train.epochs=5'"),
        (["--train.epochs=5", "6"], "unexpected word '6'"),
        (["--train.epochs", "5", "6"], "unexpected word '6'"),
        (["--data.resize", "maybe"], "Error parsing --data.resize: expected True, False or None"),
        (["--train.loss_options.alpha"], "--train.loss_options.alpha: expected a value"),
        (["--train.loss_options.a.b=1"], "train.loss_options: 'a.b' is not a valid name of an option"),
        (["--model.dtype=float16"], "invalid choice 'float16' for argument '--model.dtype'"),
        (["--data.split=slices"], "invalid choice 'slices' for argument '--data.split'"),
        (["--train.epochs=1e2"], "--train.epochs"),
        (["--train.epochs=None"], "--train.epochs"),
    ],
)
def test_words_that_fit_nowhere_are_refused(words, expected):
    assert expected in refused(*words)


def test_all_unknown_keys_are_in_one_message():
    text = refused("foo", "--train.epoks=3", "--train.learnig_rate=3")
    assert text.startswith("3 problems:\n")
    assert all(
        f"\n  {part}" in text
        for part in ("unexpected word 'foo'", "unknown key --train.epoks", "unknown key --train.l")
    )


def test_all_ranges_are_in_one_message():
    text = refused("--train.epochs=0", "--train.learning_rate=nan", "--model.image_width=250")
    assert text.startswith("3 problems:\n")


def test_an_unknown_preset_lists_the_known():
    text = refused("--config=dise")
    assert "unknown preset; did you mean dice?" in text
    assert all(name in text for name in (*cfg.PRESETS, ".ini"))


def test_the_refusal_names_the_program_to_ask_for_help():
    assert "python -m experiments.evaluate --help" in refused("--eval.batch_size=x", program="evaluate")


# --- programs that use a run


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = Config(
        config="demo",
        run_dir="somewhere/else",
        model=ModelConfig(base_filters=2),
        data=DataConfig(root=str(tmp_path / "data")),
        train=TrainConfig(epochs=3, loss="dice"),
        eval=EvalConfig(batch_size=16),
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(cfg.to_json(saved))
    return cfg.override(saved, {"run_dir": "run"})


USERS = ["evaluate", "predict", "infer", "summary"]


@pytest.mark.parametrize("program", USERS)
def test_a_run_directory_is_all_a_program_needs(program, run):
    assert parse(["--run_dir=run"], program=program) == run


@pytest.mark.parametrize("program", USERS)
def test_what_does_not_decide_the_weights_can_be_overridden(program, run, tmp_path):
    words = ["--run_dir=run", "--eval.split=val", "--infer.images=x", "--data.root=moved", "--data.threads=3"]
    got = parse([*words, "--data.cache_dir=cache"], program=program)
    assert (got.eval, got.infer) == (EvalConfig(split="val", batch_size=16), InferConfig(images="x"))
    assert got.data == DataConfig(root=str(tmp_path / "moved"), threads=3, cache_dir=str(tmp_path / "cache"))
    assert (got.model, got.train) == (run.model, run.train)


@pytest.mark.parametrize("word", ["model.base_filters=4", "train.epochs=5", "train.loss=bce", "data.split=slice"])
def test_what_decides_the_weights_cannot_be_overridden(word, run):
    text = refused("--run_dir=run", f"--{word}", program="evaluate")
    key, _, value = word.partition("=")
    assert f"{key}: {cfg.flatten(run)[key]} in the run, {value} asked" in text


def test_the_values_of_the_run_may_be_repeated(run):
    words = ["--run_dir=run", "--model.base_filters=2", "--train.epochs=3", "--train.loss=dice"]
    assert parse(words, program="evaluate") == run


def test_an_existing_run_directory_supplies_the_defaults_of_training(run):
    assert parse(["--run_dir=run"]) == run
    assert parse(["--run_dir=run", "--train.epochs=9"]) == cfg.override(run, {"train.epochs": 9})
    assert parse(["--run_dir=run", "--config=bce"]).train.epochs == 100  # a preset that is named wins


def test_another_preset_than_that_of_the_run_is_refused(run):
    text = refused("--run_dir=run", "--config=bce", "--train.loss=bce", program="evaluate")
    assert "model.base_filters: 2 in the run, 16 asked" in text
    assert text.count("train.loss: ") == 1


def test_the_command_that_trained_finds_its_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--config=dice", "--data.split=slice", "--train.epochs=2"]
    trained = parse(words)
    directory = run_directory(trained)
    assert f"no run in {directory}" in refused(*words, program="evaluate")
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(cfg.to_json(trained))
    assert parse([*words, "--eval.split=val"], program="evaluate") == cfg.override(
        trained, {"run_dir": str(directory), "eval.split": "val"}
    )


def test_a_program_without_its_run_is_refused_and_makes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no run in missing" in refused("--run_dir=missing", program="predict")
    assert "no run in missing" in refused("--run_dir=missing", program="summary")
    assert list(tmp_path.iterdir()) == []


def test_a_summary_needs_no_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse(["--config=bce", "--model.num_layers=5"], program="summary").model == ModelConfig(num_layers=5)


def test_a_damaged_saved_configuration_is_refused_by_name(run, tmp_path):
    (tmp_path / "run" / "config.json").write_text(json.dumps({"format": 1, "train": {"epochs": 0}}))
    assert refused("--run_dir=run", program="evaluate").startswith("train.epochs=0")
    (tmp_path / "run" / "config.json").write_text("{")
    assert refused("--run_dir=run", program="evaluate").startswith("run/config.json is damaged")


# --- help, and what an error becomes


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_comes_within_a_second_and_loads_no_jax(program):
    code = (
        "import atexit, sys; atexit.register(lambda: print('jax' in sys.modules)); "
        f"from experiments.{program} import main; from data_pipeline.console import run_program; "
        "sys.exit(run_program(main, ['--help']))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("False\n")
    # Processor time, which does not include what other programs on the machine take.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 2


def shown(*words, program="train"):
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit) as caught:
        parse(words, program=program)
    assert caught.value.code == 0
    return " ".join(text.getvalue().replace("│", " ").split())


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_explains_the_options_that_the_program_uses_and_no_others(program):
    text, used = shown("--help", program=program), PROGRAMS[program]
    for key in KEYS:
        assert (f"--{key} " in text or f"--{key}, " in text) == (key in used or key.partition(".")[0] in used), key


def test_help_gives_defaults_and_the_syntax_of_loss_options():
    text = shown("--help")
    assert "--train.loss_options.smooth=0.5" in text
    assert "A longer run continues a shorter one. (default: 100)" in text
    assert "(default: hybrid)" in text


def test_help_shows_the_defaults_of_the_preset_on_the_same_line():
    assert "(default: bce_dice)" in shown("--config=demo", "--help")
    assert "(default: bce_dice)" in shown("--config", "demo", "-h")


def test_help_shows_the_values_of_an_existing_run(run):
    assert "Filters of the first level; each deeper level has twice as many. (default: 2)" in shown(
        "--run_dir=run", "--help"
    )


def test_help_names_the_program():
    for program in PROGRAMS:
        assert f"usage: python -m experiments.{program} " in shown("--help", program=program)


def test_help_of_a_program_that_uses_a_run_says_that_the_run_is_enough():
    assert "Only --run_dir is required" in shown("--help", program="evaluate")
