"""Who takes part, and with whom times are compared."""

from experiments.bench import peers, step
from experiments.bench.options import StepOptions


def test_a_peer_that_is_not_installed_is_named_and_no_other_peer_depends_on_it(monkeypatch):
    assert peers.PEERS["monai"].packages == ("torch", "monai")
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name == "torch" else object())
    present, absent = step.choose(StepOptions(), "cpu")
    assert present == ["jaxunet", "flax", "keras"]
    assert absent["pytorch_compiled"] == "torch not installed"
    assert set(absent) == {"pytorch", "pytorch_compiled", "pytorch_bf16", "pytorch_bf16_compiled", "monai"}


def test_bfloat16_of_xla_takes_part_on_accelerators_or_on_request():
    assert "jaxunet_bf16" not in step.choose(StepOptions(), "cpu")[0]
    assert "jaxunet_bf16" in step.choose(StepOptions(), "gpu")[0]
    assert step.choose(StepOptions(only=("jaxunet_bf16",)), "cpu")[0] == ["jaxunet_bf16"]
    assert step.choose(StepOptions(dtype=("bfloat16",)), "gpu")[0][0] == "jaxunet_bf16"


def test_a_peer_is_compared_with_jaxunet_in_its_own_number_format_where_that_takes_part():
    present = ["jaxunet", "jaxunet_bf16", "pytorch_bf16"]
    assert peers.baseline("pytorch_bf16", present) == "jaxunet_bf16"
    assert peers.baseline("pytorch_bf16", ["jaxunet", "pytorch_bf16"]) == "jaxunet"
    assert peers.baseline("flax", present) == "jaxunet"
    assert peers.baseline("flax", ["flax"]) is None
