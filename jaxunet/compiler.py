"""What XLA is told about the network besides the program."""

from functools import lru_cache

import jax

CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}
"""Leaves matrix products and sums to YNNPACK, as XLA does on its own, but not convolutions: those of 32 to 256 channels
take up to a half longer there than in Eigen (measured on an AMD EPYC with AVX2)."""


@lru_cache
def compiler_options(platform: str) -> dict[str, str] | None:
    """Options for `jax.jit(..., compiler_options=...)`, with which the network is faster; the values are the same.

    Args:
      platform: `"cpu"`, `"gpu"` or `"tpu"`, as in `jax.Device.platform`.

    Returns:
      The options; None where there are none to give, or where this version of XLA does not know them.
    """
    if platform != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=CPU).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return CPU
