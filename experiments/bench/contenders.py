"""Who takes part: the library, and what people would use in its place."""

import dataclasses
import importlib.util
from typing import Any

from experiments.bench.workload import Workload


@dataclasses.dataclass(frozen=True)
class Contender:
    """A way to compute the workload.

    Attributes:
      label: what tables call it.
      target: `module:function` in this package, for `worker`.
      packages: what must be installed.
      dtype: of the computation.
      compiled: asks an eager framework to compile.
      same_network: computes the documented network, so that parameters and losses must agree.
      on_cpu: whether it takes part on a CPU unless asked for: XLA's and MONAI's bfloat16 is made for accelerators.
    """

    label: str
    target: str
    packages: tuple[str, ...]
    dtype: str = "float32"
    compiled: bool = False
    same_network: bool = True
    on_cpu: bool = True

    def arguments(self, work: Workload) -> dict[str, Any]:
        """What the worker builds."""
        return dataclasses.asdict(dataclasses.replace(work, dtype=self.dtype, compiled=self.compiled))

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


OURS, KERAS, TORCH = ("jax", "flax", "optax"), ("tensorflow", "keras"), ("torch",)
_JAXUNET, _FLAX = "jax_programs:jaxunet", "jax_programs:flax"
_KERAS, _TORCH, _MONAI = "keras_programs:tensorflow", "torch_programs:pytorch", "monai_programs:monai"
_BF16 = "bfloat16"

CONTENDERS: dict[str, Contender] = {
    "jaxunet": Contender("jaxunet", _JAXUNET, OURS),
    "jaxunet_bf16": Contender("jaxunet, bf16", _JAXUNET, OURS, _BF16, on_cpu=False),
    "flax": Contender("plain Flax", _FLAX, OURS),
    "flax_bf16": Contender("plain Flax, bf16", _FLAX, OURS, _BF16, on_cpu=False),
    "keras": Contender("Keras", _KERAS, KERAS),
    "keras_bf16": Contender("Keras, bf16", _KERAS, KERAS, _BF16, on_cpu=False),
    "pytorch": Contender("PyTorch", _TORCH, TORCH),
    "pytorch_compiled": Contender("PyTorch, compiled", _TORCH, TORCH, compiled=True),
    "pytorch_bf16": Contender("PyTorch, bf16 autocast", _TORCH, TORCH, _BF16),
    "pytorch_bf16_compiled": Contender("PyTorch, bf16 autocast, compiled", _TORCH, TORCH, _BF16, compiled=True),
    "monai": Contender("MONAI UNet", _MONAI, ("torch", "monai"), same_network=False),
    "monai_bf16": Contender("MONAI UNet, bf16", _MONAI, ("torch", "monai"), _BF16, same_network=False, on_cpu=False),
}

BASELINE = "jaxunet"
"""Ratios are taken to this one, or to its bfloat16 form by contenders of that form where it takes part."""


def baseline(name: str, present: list[str]) -> str | None:
    """The contender that the times of `name` are compared with."""
    same_form = f"{BASELINE}_bf16" if CONTENDERS[name].dtype == _BF16 else BASELINE
    return next((ours for ours in (same_form, BASELINE) if ours in present), None)
