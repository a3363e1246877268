"""What an exception becomes at the end of a program: one message and an exit code."""

import os
import subprocess
import sys

import pytest

from data_pipeline.console import run_program
from data_pipeline.source import DataError
from experiments.cli import parse
from experiments.config import ConfigError


class NumbersError(Exception):
    exit_code = 3


def raising(error):
    def main(argv):
        raise error

    return main


def in_a_process(code, *words, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )


MAIN = (
    "import sys; from data_pipeline.console import run_program; from experiments.cli import parse; "
    "sys.exit(run_program(lambda a: print(parse(a))))"
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("a.tif: found 16 bits"), 1),
        (ConfigError("unknown key"), 2),
        (NumbersError("non-finite loss at step 17"), 3),
        (PermissionError(13, "Permission denied", "runs/a"), 1),
        (OSError(28, "No space left on device"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_is_one_message_on_stderr_and_its_code(error, code, capsys):
    assert run_program(raising(error), []) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_checkpoint_and_numeric_errors_carry_their_codes():
    from experiments.training import NonFiniteError
    from jaxunet.checkpoint import CheckpointError

    assert (NonFiniteError.exit_code, CheckpointError.exit_code) == (3, 4)


def test_the_message_of_a_file_error_names_the_file(capsys):
    run_program(raising(PermissionError(13, "Permission denied", "runs/a")), [])
    assert capsys.readouterr().err == "error: runs/a: Permission denied\n"


def test_a_defect_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_program(lambda argv: 1 // 0, [])


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (75, 75)])
def test_a_program_that_returns_says_its_code_itself(result, code):
    assert run_program(lambda argv: result, []) == code


def test_words_reach_the_program_from_the_process_or_the_caller(monkeypatch):
    got = []
    monkeypatch.setattr(sys, "argv", ["program", "--a"])
    run_program(got.append)
    run_program(got.append, ["--b"])
    assert got == [["--a"], ["--b"]]


def test_the_traceback_is_shown_when_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("JAXUNET_TRACEBACK", "1")
    assert run_program(raising(ConfigError("this")), []) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: this\n")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--train.learnig_rate=1", "error: unknown key --train.learnig_rate; did you mean --train.learning_rate?\n"),
        ("--train.epochs=abc", "╭─ Value error ─"),
        ("--config=dise", "error: --config=dise: unknown preset; did you mean dice?\nknown are bce, dice, demo, "),
        (
            "--model.image_width=250",
            "error: model.image_width=250 does not halve 6 times (multiple of 64); nearest 256\n",
        ),
        ("word", "error: unexpected word 'word'; options are written --key=value\n"),
    ],
)
def test_a_process_with_bad_words_ends_with_2_and_one_message(word, expected):
    done = in_a_process(MAIN, word)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(expected)


def test_help_ends_with_0():
    assert run_code(["--help"]) == 0


def run_code(words):
    with pytest.raises(SystemExit) as caught:
        run_program(parse, words)
    return caught.value.code


def test_a_reader_that_goes_away_ends_the_program_quietly():
    code = (
        "import sys, time\nfrom data_pipeline.console import run_program\n"
        "def main(a):\n    while True: print('x' * 10000, flush=True)\n"
        "sys.exit(run_program(main))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert process.stderr.read() == b""
    process.stderr.close()
