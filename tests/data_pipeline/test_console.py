"""Progress is a bar on a terminal and a line per minute elsewhere; an error is one line and an exit code."""

import io

import pytest
from rich.console import Console

from data_pipeline import console
from data_pipeline.console import progress, run_program, track
from data_pipeline.source import DataError, UsageError


def test_progress_prints_at_most_a_line_per_minute_where_there_is_no_terminal(monkeypatch):
    clock = iter([0.0, 30.0, 61.0, 90.0, 130.0])  # the start, then each item
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with progress("preparing slices", 4, to=Console(file=out, width=20)) as advance:
        for _ in range(4):
            advance()
    assert out.getvalue() == "preparing slices: 2 of 4  about 1 min left\npreparing slices: 4 of 4\n"


def test_progress_of_a_resumed_loop_counts_on_and_shows_a_text(monkeypatch):
    clock = iter([0.0, 10.0, 3610.0, 7210.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    with progress("training", 10, done=5, to=Console(file=out, width=20)) as advance:
        for loss in (0.5, 0.4, 0.3):
            advance(f"loss {loss}")
    lines = "training: 7 of 10  loss 0.4  about 3 h 00 min left\ntraining: 8 of 10  loss 0.3  about 2 h 00 min left\n"
    assert out.getvalue() == lines


def test_progress_is_a_bar_on_a_terminal():
    out = io.StringIO()
    with progress("reading", 3, to=Console(file=out, width=80, force_terminal=True)) as advance:
        for _ in range(3):
            advance()
    assert "reading" in out.getvalue() and "3/3" in out.getvalue()


def test_what_is_tracked_comes_back_in_order_and_prints_nothing_at_first(capsys):
    assert list(track("abc", "reading")) == ["a", "b", "c"]
    assert list(track([], "reading")) == []
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("a.tif: found 16 bits"), 1, "a.tif: found 16 bits"),
        (UsageError("size 0x0"), 2, "size 0x0"),
        (PermissionError(13, "Permission denied", "runs/a"), 1, "runs/a: Permission denied"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_error_is_one_message_and_its_exit_code(error, code, message, capsys):
    def main(words):
        raise error

    assert run_program(main, []) == code
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_a_defect_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_program(lambda words: 1 // 0, [])


def test_the_result_of_the_program_is_its_exit_code(monkeypatch):
    monkeypatch.setattr("sys.argv", ["program", "3"])
    assert run_program(lambda words: int(words[0])) == 3
    assert run_program(lambda words: None, []) == 0


def test_a_traceback_is_shown_on_request(monkeypatch, capsys):
    def main(words):
        raise DataError("this")

    monkeypatch.setenv("JAXUNET_TRACEBACK", "1")
    assert run_program(main, []) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error and error.endswith("error: this\n")
