"""The progress of a run picks the best epoch."""

import math

from experiments.progress import Progress


def test_a_loss_that_is_no_number_is_not_kept_as_the_best():
    progress = Progress()
    losses = [math.nan, 0.5, math.nan, 0.4]
    best = [progress.close_epoch(i, {"loss": loss}, empty=False, patience=9) for i, loss in enumerate(losses, 1)]
    assert best == [True, True, False, True]
    assert progress.best_epoch == 4 and progress.best_loss == 0.4
