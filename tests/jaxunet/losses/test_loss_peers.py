"""The losses against MONAI, segmentation_models.pytorch and PyTorch, and what those do otherwise."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunet import losses
from jaxunet.losses import LOSSES
from tests.goldens import rules
from tests.helpers.loss_peers import (
    AGREE,
    DIFFER,
    FOLDER,
    GRADIENT_STRIDE,
    LIBRARIES,
    WITH_TUMOUR,
    goldens,
    ours,
    stored,
)
from tests.oracles import losses as oracle

# They sort or take a minimum, so the gradient of equals depends on an order, and logits clipped at 5 have equal ones.
ORDERED = (
    "torch.topk_bce",
    "smp.lovasz_hinge",
    "smp.lovasz_softmax",
    "monai.soft_cldice exact",
    "monai.soft_dice_cldice exact",
)
TIED = ("blob", "inverse", "one_image")


@pytest.mark.parametrize(("peer", "case"), [(peer, case) for peer, found in AGREE.items() for case in found.cases])
def test_value_and_gradient_are_those_of_the_peer(peer, case):
    value, norm, gradient = stored(peer, case)
    found, slope = ours(case)[peer]
    rtol = 3e-5 if peer == "monai.ssim" else 1e-5  # in float32 SSIM divides small differences
    assert found == pytest.approx(value, rel=rtol, abs=1e-6)
    if peer in ORDERED and case in TIED:
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
    assert {difference.peer for difference in DIFFER} <= set(goldens()["names"])
    assert {name.split(".")[0] for name in goldens()["names"]} == set(LIBRARIES)
