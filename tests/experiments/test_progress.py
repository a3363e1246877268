"""The progress of a run picks the best epoch."""

import math

from experiments.progress import Progress


def test_a_loss_that_is_no_number_is_not_kept_as_the_best():
    progress = Progress()
    losses = [math.nan, 0.5, math.nan, 0.4]
    best = [progress.close_epoch(i, {"loss": loss}, empty=False, patience=9) for i, loss in enumerate(losses, 1)]
    assert best == [True, True, False, True]
    assert progress.best_epoch == 4 and progress.best_loss == 0.4


def test_without_any_number_the_first_epoch_is_kept_and_training_stops_early():
    progress = Progress()
    best = [progress.close_epoch(i, {"loss": math.nan}, empty=False, patience=3) for i in range(1, 5)]
    assert best == [True, False, False, False]
    assert progress.best_epoch == 1 and progress.stopped
    assert progress.close_epoch(5, {"loss": 0.7}, empty=False, patience=3)
