"""The workload is the reference's network, on images with tumour."""

import jax
import numpy as np

from experiments.bench.workload import Workload, images_and_masks, layer_shapes, parameter_count
from jaxunet import UNet


def test_the_workload_is_the_network_of_the_reference():
    work = Workload()
    assert parameter_count(work) == 31_110_001
    images = jax.ShapeDtypeStruct((1, work.size, work.size, 3), "uint8")
    params = jax.eval_shape(UNet().init, jax.random.key(0), images)["params"]
    assert {name: leaf["kernel"].shape for name, leaf in params.items()} == layer_shapes(work)


def test_every_image_of_a_batch_holds_tumour():
    work = Workload(size=32, batch=3, base_filters=4, num_layers=2)
    images, masks = images_and_masks(work)
    assert images.shape == (3, 32, 32, 3)
    assert images.dtype == masks.dtype == np.uint8
    assert set(np.unique(masks)) == {0, 1}
    assert (masks.sum((1, 2, 3)) > 0).all()
