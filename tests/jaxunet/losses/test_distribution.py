"""Cross-entropy has the gradient and the symmetry of the formula."""

import numpy as np

from tests.helpers.float64 import sigmoid
from tests.helpers.loss_cases import CASES, compiled, gradient


def test_bce_gradient_is_probability_minus_label_over_count():
    z, g = CASES["random"]
    expected = (sigmoid(z) - g) / z.size
    np.testing.assert_allclose(gradient("bce")(z, g), expected, atol=1e-7)
    np.testing.assert_allclose(gradient("bce")(0 * z, g), (0.5 - g) / z.size, atol=1e-9)  # where branches meet


def test_bce_is_symmetric_in_the_two_classes():
    z, g = CASES["soft mask"]
    np.testing.assert_allclose(compiled("bce")(z, g), compiled("bce")(-z, 1 - g), rtol=1e-6)
