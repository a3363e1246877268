"""XLA options with which the network compiles and runs faster."""

import os
from functools import lru_cache

import jax

CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
    "xla_backend_optimization_level": "2",
}
"""Two options, measured on an AMD EPYC with AVX2; neither changes values.

The first keeps matrix products and sums in YNNPACK, XLA's default, but not convolutions, which with 32 to 256 channels
are up to 1.5 times slower there than in Eigen. The second lowers LLVM's optimisation of the code between those
routines: a training step compiles 1.5 times faster and runs equally fast.
"""


@lru_cache
def compiler_options(platform: str) -> dict[str, str] | None:
    """Options for `jax.jit(..., compiler_options=...)`.

    Args:
      platform: `"cpu"`, `"gpu"` or `"tpu"`, as in `jax.Device.platform`.

    Returns:
      The options without those that `XLA_FLAGS` sets or this version of XLA does not know; None if there are none.
    """
    if platform != "cpu":
        return None
    given = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in CPU_OPTIONS.items() if name not in given and _is_known(name, value)} or None


def _is_known(name: str, value: str) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
