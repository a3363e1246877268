"""18 slices with squares, evaluated by a network that needs no training."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.loader import eval_batches
from experiments.config import EvalConfig
from experiments.evaluation import Observations, evaluate_batches, measure_batch
from experiments.evaluation_tables import lesion_figures, probability_figures, summarise_evaluation, surface_figures
from experiments.prefetch import Prefetcher, SliceStore
from jaxunet.losses import bce_loss
from jaxunet.sharding import make_mesh
from jaxunet.step import compile_eval_step

NAMES = [(patient, k, site) for patient, site in (("p", "S1"), ("q", "S1"), ("r", "S2")) for k in range(1, 7)]


ENTRIES = [types.SimpleNamespace(patient=p, slice=k, site=s, name=f"{p}_{k}") for p, k, s in NAMES]


class Slices:
    """18 slices of 16x16, two of three without tumour."""

    entries = ENTRIES

    def __len__(self) -> int:
        return len(ENTRIES)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(index)
        mask = np.zeros((16, 16, 1), np.uint8)
        if index % 3 == 0:
            mask[4:9, 3:11] = 1
        image = rng.integers(0, 150, (16, 16, 3)) + 90 * mask
        return {"image": image.astype(np.uint8), "mask": mask, "patient": index // 6, "slice": index}


def network(variables, images):
    """Brightness is the logit."""
    return variables["params"] * (images[..., :1].astype(jnp.float32) - 130) / 10


@functools.cache
def evaluated(devices: int, size: int) -> tuple:
    mesh = make_mesh(jax.devices()[:devices])
    step = compile_eval_step(mesh, apply_fn=network, loss=bce_loss, measure=measure_batch)
    seen = Observations(ENTRIES, volumes=True, options=EvalConfig())
    batches = eval_batches(Slices(), range(18), batch_size=size, threads=0)
    feed = Prefetcher(batches, SliceStore(Slices(), range(18), cache="none", threads=0, mesh=mesh).put)
    options = {"count": 18, "batch_size": size, "take": seen.add_batch}
    return evaluate_batches(step, jnp.float32(1), feed, **options), seen


def figures(evaluation, seen: Observations) -> dict:
    return {
        **summarise_evaluation(evaluation, ENTRIES, whole_volumes=True),
        "lesions": lesion_figures(seen.lesions, seen.volumes, iou=None),
        "surfaces": surface_figures(seen.surfaces, seen.volumes),
        "probabilities": probability_figures(seen.histogram),
    }
