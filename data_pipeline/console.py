"""What programs print: the progress of a loop, and one line per error with an exit code."""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")

LINE_EVERY_S = 60.0


@contextlib.contextmanager
def progress(
    description: str, total: int, *, done: int = 0, to: Console | None = None
) -> Iterator[Callable[..., None]]:
    """Shows the progress of a loop: a bar on a terminal, elsewhere at most one line per minute.

    Args:
      description: what is being done, for example "reading".
      total: number of items.
      done: items finished before.
      to: the console; default stderr.

    Yields:
      A function to call when an item is done, with a text such as `"loss 0.1234"`.
    """
    out = to or Console(stderr=True)
    if out.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=out) as bar:
            task = bar.add_task(description, total=total, completed=done)
            yield lambda text="": bar.update(task, advance=1, description=text or description)
        return
    position, first, last_line = done, 0.0, time.monotonic()

    def advance(text: str = "") -> None:
        nonlocal position, first, last_line
        position, now = position + 1, time.monotonic()
        if position == done + 1:
            first = now  # the first item may take longer than the ones to come
        if now - last_line >= LINE_EVERY_S:
            last_line = now
            line = [f"{description}: {position} of {total}", *([text] if text else [])]
            if done + 1 < position < total:
                minutes = (now - first) / (position - done - 1) * (total - position) / 60
                left = f"{minutes // 60:.0f} h {minutes % 60:02.0f} min" if minutes >= 60 else f"{minutes:.0f} min"
                line.append(f"about {left} left")
            out.print("  ".join(line), soft_wrap=True, markup=False)

    yield advance


def track(items: Sequence[Item], label: str) -> Iterator[Item]:
    """Yields the items of a sequence and shows the progress on stderr."""
    with progress(label, len(items)) as advance:
        for item in items:
            yield item
            advance()


def run_program(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Calls `main(argv)` and returns the exit code of the process; an error becomes one message on stderr.

    Exit codes: 0 done, 1 data or files, 2 usage or configuration, 3 numbers, 4 checkpoints, 130 Ctrl-C, 141 closed
    pipe. An exception class names its code in the attribute `exit_code`; an exception without it is a bug and keeps
    its traceback. The environment variable JAXUNET_TRACEBACK=1 shows the traceback of every error.
    """
    try:
        return main(list(sys.argv[1:] if argv is None else argv)) or 0
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of the output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the last flush does not fail as well
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", getattr(type(error), "exit_code", 1))
    except Exception as error:
        code = getattr(type(error), "exit_code", None)
        if code is None:
            raise
        return _fail(str(error), code)


def _fail(message: str, code: int) -> int:
    if os.environ.get("JAXUNET_TRACEBACK") == "1":
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    return code
