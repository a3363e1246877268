"""Stands in for `cli.parse(..., extra=)`."""

from collections.abc import Sequence
from typing import Any

import tyro

from experiments.cli import parse
from experiments.config import ConfigError


def parse_with_extra(argv: Sequence[str], *, program: str, extra: type) -> tuple[Any, Any]:
    """Takes the flags of `extra` out of the words, `until cli.parse takes extra=`."""
    try:
        options, rest = tyro.cli(extra, args=list(argv), return_unknown_args=True)
    except SystemExit as stop:
        raise ConfigError("the command line cannot be read") from stop
    return parse(rest, program=program), options
