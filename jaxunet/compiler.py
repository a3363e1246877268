"""What XLA is told about the network besides the program."""

import os
from functools import lru_cache

import jax

CPU = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
    "xla_backend_optimization_level": "2",
}
"""Two options, measured on an AMD EPYC with AVX2, that leave the values as they are.

The first leaves matrix products and sums to YNNPACK, as XLA does on its own, but not convolutions: those of 32 to 256
channels take up to a half longer there than in Eigen. With the second, LLVM optimises the code between those routines
less than XLA asks of it: a training step compiles in two thirds of the time, and takes as long.
"""


@lru_cache
def compiler_options(platform: str) -> dict[str, str] | None:
    """Options for `jax.jit(..., compiler_options=...)`, with which the network compiles and runs faster.

    Args:
      platform: `"cpu"`, `"gpu"` or `"tpu"`, as in `jax.Device.platform`.

    Returns:
      The options, but for those that `XLA_FLAGS` gives or this version of XLA does not know; None if there are none.
    """
    if platform != "cpu":
        return None
    given = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in CPU.items() if name not in given and _is_known(name, value)} or None


def _is_known(name: str, value: str) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
