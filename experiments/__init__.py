"""The programs: training, evaluation, prediction, summary; the only layer that handles names, paths and printing."""

import time

STARTED = time.perf_counter()
"""When Python began with the program: what `experiments.clock` counts from."""
