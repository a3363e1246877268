"""Probabilities and their logarithms keep the digits of float32 at any logit, and so do their derivatives."""

import jax
import numpy as np

from jaxunet.losses.logistic import probabilities, surprisals

LOGITS = np.concatenate([np.linspace(-90, 90, 721), [-1e4, 0, 1e4]]).astype(np.float32)
Z = LOGITS.astype(np.float64)
SMALL = 1e-37  # smaller numbers are not normal in float32


def test_both_probabilities_are_those_of_float64():
    expected = 1 / (1 + np.exp(np.clip(-Z, None, 700))), 1 / (1 + np.exp(np.clip(Z, None, 700)))
    for found, exact in zip(probabilities(LOGITS), expected, strict=True):
        np.testing.assert_allclose(found, exact, rtol=2e-5, atol=SMALL)


def test_both_surprisals_are_those_of_float64():
    for found, exact in zip(surprisals(LOGITS), (np.logaddexp(0, -Z), np.logaddexp(0, Z)), strict=True):
        np.testing.assert_allclose(found, exact, rtol=2e-5, atol=SMALL)


def test_their_derivatives_keep_their_digits():
    p, q = 1 / (1 + np.exp(np.clip(-Z, None, 700))), 1 / (1 + np.exp(np.clip(Z, None, 700)))
    ones = np.ones_like(LOGITS)
    slopes = [*jax.jvp(probabilities, (LOGITS,), (ones,))[1], *jax.jvp(surprisals, (LOGITS,), (ones,))[1]]
    for found, exact in zip(slopes, (p * q, -p * q, -q, p), strict=True):
        np.testing.assert_allclose(found, exact, rtol=3e-5, atol=SMALL)
