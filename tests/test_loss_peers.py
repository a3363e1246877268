"""The losses against MONAI, segmentation_models.pytorch and PyTorch, and what those do otherwise.

`goldens/make_losses_peers.py` made the stored numbers; `goldens/rules.py` draws the same inputs for it and these tests.
"""

import functools
import json
import operator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from goldens import rules

from jaxunet import losses
from jaxunet.losses import LOSSES, averaged

FOLDER = Path(__file__).parent / "goldens"
CASES = ("random", "blob", "inverse", "one_pixel", "one_image", "empty")
WITH_TUMOUR = CASES[:-1]
IN_EVERY_IMAGE = CASES[:-2]
GRADIENT_STRIDE = 31


def options(name: str, **values):
    return functools.partial(LOSSES[name].fn, **values)


def per_image(name: str, **values):
    return averaged(options(name, **values), "image")


def times(factor: float, loss):
    return lambda z, g: factor * loss(z, g)


def total(*terms, constant: float = 0.0):
    return lambda z, g: functools.reduce(operator.add, (term(z, g) for term in terms), constant)


# By the peer's name for it: our loss, and the cases in which the two agree.
AGREE = {
    "torch.bce": (options("bce"), CASES),
    "torch.topk_bce": (options("topk_bce"), CASES),
    "smp.weighted_bce": (options("weighted_bce"), CASES),
    "smp.label_smoothing_bce": (options("label_smoothing_bce"), CASES),
    "smp.focal": (options("focal"), CASES),
    "monai.focal": (options("focal"), CASES),
    "smp.normalized_focal": (options("normalized_focal"), CASES),
    "smp.reduced_focal": (options("reduced_focal"), CASES),
    "smp.reduced_focal 0.3": (options("reduced_focal", threshold=0.3), CASES),
    # MONAI's mean runs over the two classes too, which halves the paper's loss.
    "monai.asymmetric_focal": (times(0.5, options("asymmetric_focal")), CASES),
    "smp.dice batch": (options("dice"), WITH_TUMOUR),
    "monai.dice batch": (options("dice"), CASES),
    "monai.dice": (per_image("dice"), CASES),
    "monai.squared_dice batch": (options("squared_dice"), CASES),
    "smp.log_dice batch": (options("log_dice"), WITH_TUMOUR),
    "monai.soft_label_dice batch": (options("dice_metric"), CASES),
    "monai.wasserstein_dice": (per_image("wasserstein_dice", smooth=1.0), CASES),
    "smp.jaccard batch": (options("jaccard", smooth=0.5), WITH_TUMOUR),
    "monai.jaccard batch": (options("jaccard", smooth=0.5), WITH_TUMOUR),
    "smp.log_jaccard batch": (options("log_jaccard"), WITH_TUMOUR),
    "monai.soft_label_jaccard batch": (options("jaccard_metric", smooth=0.5), WITH_TUMOUR),
    "smp.tversky batch": (options("tversky"), WITH_TUMOUR),
    "monai.tversky batch": (options("tversky", smooth=1.0), CASES),
    "smp.focal_tversky batch": (options("focal_tversky"), WITH_TUMOUR),
    "monai.asymmetric_focal_tversky": (per_image("asymmetric_focal_tversky"), IN_EVERY_IMAGE),
    "monai.generalized_dice batch": (options("generalized_dice"), CASES),
    "monai.generalized_dice": (per_image("generalized_dice"), CASES),
    "monai.mcc batch": (options("mcc", smooth=0.0), WITH_TUMOUR),
    "smp.lovasz_hinge": (options("lovasz_hinge"), CASES),
    "smp.lovasz_softmax": (options("lovasz_sigmoid"), CASES),
    "monai.ssim": (options("ssim"), CASES),
    "monai.dice_ce batch": (times(2, options("bce_dice")), CASES),
    "monai.dice_focal batch": (total(options("dice"), options("focal")), CASES),
    # Its Dice is of a softmax over [0, z] and its focal loss of two sigmoids: the background's is that of a logit of 0.
    "monai.generalized_dice_focal": (
        total(per_image("generalized_dice"), times(0.5, options("focal", alpha=None)), constant=np.log(2) / 8),
        CASES,
    ),
}

# They sort, so the gradient of equal errors depends on an order, and logits clipped at 5 have equal ones.
SORTED = ("torch.topk_bce", "smp.lovasz_hinge", "smp.lovasz_softmax")
TIED = ("blob", "inverse", "one_image")

# Peer, our loss, case, and what the peer does there: ours has the value of the oracle and the peer's is another.
DIFFER = [
    ("smp.dice batch", "dice", "empty", "0 with no gradient: a batch without tumour teaches nothing"),
    ("smp.jaccard batch", "jaccard", "empty", "0 with no gradient: a batch without tumour teaches nothing"),
    ("smp.log_dice batch", "log_dice", "empty", "0 with no gradient: a batch without tumour teaches nothing"),
    ("smp.log_jaccard batch", "log_jaccard", "empty", "0 with no gradient: a batch without tumour teaches nothing"),
    ("smp.tversky batch", "tversky", "empty", "0 with no gradient: a batch without tumour teaches nothing"),
    ("smp.focal_tversky batch", "focal_tversky", "empty", "0 with a gradient of NaN: the slope of a root at 0"),
    ("smp.normalized_focal mean", "normalized_focal", "random", "divides by the number of pixels once more"),
    ("smp.mcc batch", "mcc", "empty", "1 - 1e-5 for every prediction but the empty one"),
    ("smp.mcc of logits", "mcc", "blob", "takes logits, as its siblings do, for probabilities"),
    ("monai.mcc batch", "mcc", "empty", "NaN without its constant; with it 1 for every prediction but the empty one"),
    ("monai.asymmetric_focal_tversky", "asymmetric_focal_tversky", "empty", "1 for the tumour whatever is predicted"),
    ("monai.generalized_dice single", "generalized_dice", "blob", "of one channel it is Dice, without any weight"),
    ("monai.generalized_dice single", "generalized_dice", "empty", "NaN: the only weight is infinite"),
    ("monai.generalized_dice default", "generalized_dice", "random", "constants of 1e-5 as large as its sums"),
]


@functools.cache
def goldens() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "losses_peers.npz") as file:
        return dict(file)


def stored(peer: str, case: str) -> tuple[float, float, np.ndarray]:
    position = list(goldens()["names"]).index(peer)
    return tuple(goldens()[f"{case}.{kind}"][position] for kind in ("values", "norms", "gradients"))


@jax.jit
def evaluate(z, g):
    """All losses in one program, which compiles in a fraction of the time of one each."""
    return {peer: jax.value_and_grad(loss)(z, g) for peer, (loss, _) in AGREE.items()}


@functools.cache
def ours(case: str) -> dict[str, tuple[float, np.ndarray]]:
    z, g = rules.loss_case(case)
    return jax.device_get(evaluate(z, g.astype(np.float32)))


@pytest.mark.parametrize(("peer", "case"), [(peer, case) for peer, (_, cases) in AGREE.items() for case in cases])
def test_value_and_gradient_are_those_of_the_peer(peer, case):
    value, norm, gradient = stored(peer, case)
    found, slope = ours(case)[peer]
    rtol = 3e-5 if peer == "monai.ssim" else 1e-5  # in float32 SSIM divides small differences
    assert found == pytest.approx(value, rel=rtol, abs=1e-6)
    if peer in SORTED and case in TIED:
        return
    assert np.linalg.norm(slope) == pytest.approx(norm, rel=1e-4)
    np.testing.assert_allclose(slope.ravel()[::GRADIENT_STRIDE], gradient, rtol=1e-3, atol=1e-4 * np.abs(slope).max())


@pytest.mark.parametrize(("peer", "name", "case", "what"), DIFFER)
def test_where_a_peer_has_another_value_ours_is_right(peer, name, case, what):
    z, g = rules.loss_case(case)
    value, norm, _ = stored(peer, case)
    found, gradient = jax.jit(jax.value_and_grad(LOSSES[name].fn))(z, g.astype(np.float32))
    assert float(found) == pytest.approx(float(oracle.ORACLES[name](z, g, None, "batch")), rel=1e-5)
    assert np.isfinite(gradient).all()
    assert np.asarray(gradient).any()
    same = np.allclose([value, norm], [found, jnp.linalg.norm(gradient)], rtol=1e-4, atol=0)
    assert not same, f"{peer} no longer differs: {what}"


def test_nacl_of_monai_takes_the_outside_of_the_image_for_neighbours():
    """Its filter pads with zeros of both classes; we take the mean of the neighbours that exist."""

    def prior(values: np.ndarray, mode: str) -> np.ndarray:
        """Mean over 3x3 of `[B, H, W, 1]`, with zeros outside or without the outside."""
        height, width = values.shape[1:3]
        windows = [(i, j) for i in range(3) for j in range(3)]
        total, count = (
            sum(np.pad(a, ((0, 0), (1, 1), (1, 1), (0, 0)))[:, i : i + height, j : j + width] for i, j in windows)
            for a in (values, np.ones_like(values))
        )
        return total / (9 if mode == "zeros" else count)

    for case in WITH_TUMOUR:
        z, g = (array.astype(np.float64) for array in rules.loss_case(case))
        theirs = np.abs(prior(g, "zeros") - prior(1 - g, "zeros") - z)
        right = np.abs(2 * prior(g, "inside") - 1 - z)
        assert theirs[:, 1:-1, 1:-1] == pytest.approx(right[:, 1:-1, 1:-1])
        expected = stored("monai.nacl", case)[0] + 0.1 * (right - theirs).mean() / 2
        assert float(losses.nacl_loss(z.astype(np.float32), g)) == pytest.approx(expected, rel=1e-5)


def test_goldens_are_small_and_name_the_versions_that_made_them():
    assert (FOLDER / "losses_peers.npz").stat().st_size < 150_000
    versions = json.loads(str(goldens()["versions"]))
    assert {"torch", "monai", "segmentation-models-pytorch", "scipy", "numpy", "python"} == set(versions)
    assert set(AGREE) <= set(goldens()["names"])
    assert {peer for peer, *_ in DIFFER} <= set(goldens()["names"])
