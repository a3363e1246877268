"""The programs: training, evaluation, prediction, summary; the only layer that knows names, paths and printing."""
