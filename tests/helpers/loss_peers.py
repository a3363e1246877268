"""The losses of other libraries that correspond to those of `LOSSES`: where they agree and where they differ.

Read by the tests, by `python -m tests.helpers.loss_proof` and by `docs/losses.py`. The numbers were computed once by
`goldens/make_losses_peers.py`; `goldens/rules.py` draws the same inputs for both.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxunet.losses import LOSSES, averaged
from tests.goldens import rules

FOLDER = Path(__file__).parents[1] / "goldens"
LIBRARIES = {"monai": "MONAI", "smp": "segmentation_models.pytorch", "torch": "PyTorch"}
CASES = ("random", "blob", "inverse", "one_pixel", "one_image", "empty")
WITH_TUMOUR = CASES[:-1]
IN_EVERY_IMAGE = CASES[:-2]
GRADIENT_STRIDE = 31


class Peer(NamedTuple):
    """A loss of another library.

    Attributes:
      loss: ours.
      fn: ours with the options that make the two agree, `(logits, masks)` to a scalar.
      cases: in which they agree.
    """

    loss: str
    fn: Callable
    cases: tuple[str, ...] = CASES


def batch(loss: str, cases: tuple[str, ...] = CASES, **options) -> Peer:
    return Peer(loss, functools.partial(LOSSES[loss].fn, **options), cases)


def images(loss: str, cases: tuple[str, ...] = CASES, **options) -> Peer:
    return Peer(loss, averaged(functools.partial(LOSSES[loss].fn, **options), "image"), cases)


def scaled(factor: float, peer: Peer, *, constant: float = 0.0) -> Peer:
    return peer._replace(fn=lambda z, g: factor * peer.fn(z, g) + constant)


# By the peer's name for it.
AGREE = {
    "torch.bce": batch("bce"),
    "torch.topk_bce": batch("topk_bce"),
    "smp.weighted_bce": batch("weighted_bce"),
    "smp.label_smoothing_bce": batch("label_smoothing_bce"),
    "smp.focal": batch("focal"),
    "monai.focal": batch("focal"),
    "smp.normalized_focal": batch("normalized_focal"),
    "smp.reduced_focal": batch("reduced_focal"),
    "smp.reduced_focal 0.3": batch("reduced_focal", threshold=0.3),
    # MONAI's mean runs over the two classes too, which halves the paper's loss.
    "monai.asymmetric_focal": scaled(0.5, batch("asymmetric_focal")),
    "smp.dice batch": batch("dice", WITH_TUMOUR),
    "monai.dice batch": batch("dice"),
    "monai.dice": images("dice"),
    "monai.squared_dice batch": batch("squared_dice"),
    "smp.log_dice batch": batch("log_dice", WITH_TUMOUR),
    "monai.soft_label_dice batch": batch("dice_metric"),
    "monai.wasserstein_dice": images("wasserstein_dice", smooth=1.0),
    "smp.jaccard batch": batch("jaccard", WITH_TUMOUR, smooth=0.5),
    "monai.jaccard batch": batch("jaccard", WITH_TUMOUR, smooth=0.5),
    "smp.log_jaccard batch": batch("log_jaccard", WITH_TUMOUR),
    "monai.soft_label_jaccard batch": batch("jaccard_metric", WITH_TUMOUR, smooth=0.5),
    "smp.tversky batch": batch("tversky", WITH_TUMOUR),
    "monai.tversky batch": batch("tversky", smooth=1.0),
    "smp.focal_tversky batch": batch("focal_tversky", WITH_TUMOUR),
    "monai.asymmetric_focal_tversky": images("asymmetric_focal_tversky", IN_EVERY_IMAGE),
    "monai.generalized_dice batch": batch("generalized_dice"),
    "monai.generalized_dice": images("generalized_dice"),
    "monai.mcc batch": batch("mcc", WITH_TUMOUR, smooth=0.0),
    "smp.lovasz_hinge": batch("lovasz_hinge"),
    "smp.lovasz_softmax": batch("lovasz_sigmoid"),
    "monai.ssim": batch("ssim"),
    "monai.soft_cldice exact": images("cl_dice"),
    "monai.boundary": batch("boundary", IN_EVERY_IMAGE),
    "monai.hausdorff_dt": batch("hausdorff_dt", IN_EVERY_IMAGE),
    "monai.log_hausdorff_dt": batch("log_hausdorff_dt", IN_EVERY_IMAGE),
    "monai.dice_ce batch": scaled(2, batch("bce_dice")),
    "monai.dice_focal batch": batch("dice_focal", alpha=0.25),
    # Its Dice is of a softmax over [0, z] and its focal loss of two sigmoids: the background's is that of a logit of 0.
    "monai.generalized_dice_focal": scaled(
        1, images("generalized_dice_focal", weights=(1, 0.5)), constant=np.log(2) / 8
    ),
    # Of the two terms, the focal one is a mean over the two classes as well.
    "monai.asymmetric_unified_focal": images("unified_focal", IN_EVERY_IMAGE, delta=0.7, weights=(0.25, 0.5)),
    "monai.soft_dice_cldice exact": images("dice_cl_dice"),
}


class Difference(NamedTuple):
    """Where a loss of another library has another value than ours, which is that of the formula.

    Attributes:
      peer: the other library's.
      loss: ours.
      case: the inputs.
      what: what the peer does there.
    """

    peer: str
    loss: str
    case: str
    what: str


DIFFER = [
    Difference("smp.dice batch", "dice", "empty", "0 with no gradient: no learning from batches without tumour"),
    Difference("smp.jaccard batch", "jaccard", "empty", "0 with no gradient: no learning from batches without tumour"),
    Difference(
        "smp.log_dice batch", "log_dice", "empty", "0 with no gradient: no learning from batches without tumour"
    ),
    Difference(
        "smp.log_jaccard batch", "log_jaccard", "empty", "0 with no gradient: no learning from batches without tumour"
    ),
    Difference("smp.tversky batch", "tversky", "empty", "0 with no gradient: no learning from batches without tumour"),
    Difference(
        "smp.focal_tversky batch", "focal_tversky", "empty", "0, but the gradient is NaN: the slope of a root at 0"
    ),
    Difference("smp.normalized_focal mean", "normalized_focal", "random", "divides by the number of pixels once more"),
    Difference("smp.mcc batch", "mcc", "empty", "1 - 1e-5 for every prediction but the empty one"),
    Difference("smp.mcc of logits", "mcc", "blob", "treats logits, which its siblings accept, as probabilities"),
    Difference(
        "monai.mcc batch", "mcc", "empty", "NaN without its constant; with it 1 for every prediction but the empty one"
    ),
    Difference(
        "monai.asymmetric_focal",
        "asymmetric_focal",
        "random",
        "half of the paper's value, because of a mean over the classes",
    ),
    Difference(
        "monai.asymmetric_focal_tversky",
        "asymmetric_focal_tversky",
        "empty",
        "the tumour's term is 1 whatever is predicted",
    ),
    Difference(
        "monai.generalized_dice single", "generalized_dice", "blob", "for one channel it is plain Dice, without weights"
    ),
    Difference("monai.generalized_dice single", "generalized_dice", "empty", "NaN: the only weight is infinite"),
    Difference(
        "monai.generalized_dice default", "generalized_dice", "random", "its constants of 1e-5 are as large as its sums"
    ),
    Difference("monai.boundary", "boundary", "empty", "0 with no gradient: no learning from images without tumour"),
    Difference(
        "monai.hausdorff_dt",
        "hausdorff_dt",
        "empty",
        "distances are 0 without a boundary: no gradient if the prediction has none either",
    ),
    Difference(
        "monai.log_hausdorff_dt",
        "log_hausdorff_dt",
        "empty",
        "distances are 0 without a boundary: no gradient if the prediction has none either",
    ),
    Difference(
        "monai.asymmetric_unified_focal",
        "unified_focal",
        "random",
        "weights the focal term half as much as the paper, because of a mean over the classes",
    ),
]


@functools.cache
def goldens() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "losses_peers.npz") as file:
        return dict(file)


def stored(peer: str, case: str) -> tuple[float, float, np.ndarray]:
    """Value of a peer, norm of its gradient, and every 31st number of it."""
    position = list(goldens()["names"]).index(peer)
    return tuple(goldens()[f"{case}.{kind}"][position] for kind in ("values", "norms", "gradients"))


@jax.jit
def evaluate(z, g):
    """All losses in one program, which compiles in a fraction of the time of one each."""
    return {name: jax.value_and_grad(peer.fn)(z, g) for name, peer in AGREE.items()}


@functools.cache
def ours(case: str) -> dict[str, tuple[float, np.ndarray]]:
    """Value and gradient of our losses, by the name of the peer."""
    z, g = rules.loss_case(case)
    return jax.device_get(evaluate(z, g.astype(np.float32)))
