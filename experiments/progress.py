"""How far a run has come: what a resumed run must know beside the train state."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

TRACKED = ("accuracy", "dice_coef", "jaccard_coef", "dice", "jaccard", "sensitivity", "specificity", "precision")
"""Scores of every batch, averaged over an epoch's batches as the documented system does."""


@dataclasses.dataclass
class Progress:
    """What a resumed run must know beside the train state; lies as JSON in every checkpoint.

    Attributes:
      epoch: finished epochs.
      best_loss: lowest validation loss, None before the first epoch.
      best_epoch: the epoch it belongs to.
      stale_epochs: epochs since then.
      empty_epochs: newest epochs in a row whose validation predicted no positive pixel.
      stopped: why training ended before its last epoch, empty if it did not.
      history: a row an epoch.
      totals: of the epoch under way, `{score: [sum, batches that define it]}`.
    """

    epoch: int = 0
    best_loss: float | None = None
    best_epoch: int = 0
    stale_epochs: int = 0
    empty_epochs: int = 0
    stopped: str = ""
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    totals: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def add(self, scores: Mapping[str, float]) -> None:
        """Adds a batch to the epoch under way; an undefined score is left out."""
        for name, value in scores.items():
            if not math.isnan(value):
                total, count = self.totals.get(name, (0.0, 0))
                self.totals[name] = [total + value, count + 1]

    def means(self) -> dict[str, float | None]:
        """Means of the epoch under way; None where no batch defines the score."""
        return {n: self.totals[n][0] / self.totals[n][1] if n in self.totals else None for n in ("loss", *TRACKED)}

    def close_epoch(self, step: int, validation: Mapping[str, Any], *, empty: bool, patience: int) -> bool:
        """Ends the epoch with its validation scores; returns whether its validation loss is the lowest so far."""
        self.epoch += 1
        row = {"epoch": self.epoch, "step": step, **self.means()}
        row |= {f"val_{name}": value for name, value in validation.items()}
        self.history.append({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
        self.totals = {}
        self.empty_epochs = self.empty_epochs + 1 if empty else 0
        # A loss that is no number is the best for want of another only: any number is lower.
        lowest = math.inf if self.best_loss is None or math.isnan(self.best_loss) else self.best_loss
        better = self.best_loss is None or validation["loss"] < lowest
        if better:
            self.best_loss, self.best_epoch, self.stale_epochs = validation["loss"], self.epoch, 0
        else:
            self.stale_epochs += 1
        if self.stale_epochs >= patience:
            self.stopped = f"no lower validation loss for {patience} epochs"
        return better
