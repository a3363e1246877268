"""The programs: training, evaluation, prediction, summary; the only layer that handles names, paths and printing."""

import time

STARTED = time.perf_counter()
"""Time at which the program started; `experiments.machine.Clock` counts from it."""
