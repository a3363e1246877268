"""Progress of a long loop: a bar on a terminal, elsewhere a line a minute."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")

LINE_EVERY_S = 60.0


def track(items: Sequence[Item], label: str) -> Iterator[Item]:
    """Yields the items of a sequence and shows on stderr how far the loop is.

    Args:
      items: what is looped over.
      label: what is being done, for example "reading".
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as show

        yield from show(items, label, console=Console(stderr=True), transient=True)
        return
    said = time.monotonic()
    for position, item in enumerate(items):
        if time.monotonic() - said > LINE_EVERY_S:
            said = time.monotonic()
            print(f"{label}: {position} of {len(items)}", file=sys.stderr, flush=True)
        yield item
