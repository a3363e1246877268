"""What the command lines of this package have in common."""

import sys
from collections.abc import Callable

from data_pipeline.source import DataError, UsageError


def exit_code(work: Callable[[], int]) -> int:
    """Returns the exit code of `work`; an error becomes one line on stderr and 1 (data, files), 2 (usage) or 130."""
    try:
        return work()
    except (DataError, UsageError) as error:
        message, code = str(error), error.exit_code
    except OSError as error:
        message, code = f"{error.filename}: {error.strerror}" if error.filename else str(error), 1
    except KeyboardInterrupt:
        message, code = "interrupted: nothing half-written is used; the same command starts over", 130
    print(f"error: {message}", file=sys.stderr)
    return code
