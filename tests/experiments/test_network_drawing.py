import numpy as np
import pytest
from PIL import Image

from experiments.config import ModelConfig
from experiments.network_drawing import CONVOLUTION, POOLING, UP, draw_network


@pytest.mark.parametrize("layers", [1, 2, 6, 9])
def test_the_drawing_has_room_for_any_depth(tmp_path, layers):
    model = ModelConfig(image_height=512, image_width=1024, num_layers=layers, dropout_rate=0.01)
    draw_network(model, tmp_path / "net.png", title="t", parameters=1)
    picture = np.asarray(Image.open(tmp_path / "net.png").convert("RGB"))
    edges = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (edges == 255).all()  # nothing is cut off
    for colour in (POOLING, UP, CONVOLUTION):
        rgb = tuple(int(colour[k : k + 2], 16) for k in (1, 3, 5))
        assert (picture == rgb).all(-1).any()
