"""A trace leaves a profile that names the operations of the network's layers, where xprof looks for it."""

import jax
import pytest


@pytest.mark.slow
def test_a_trace_is_a_profile_of_the_step_with_the_command_to_open_it(here, tmp_path):
    folder = tmp_path / "trace"
    words = ("--size=16", "--base_filters=2", "--num_layers=1", "--steps=3", "--batch=2")
    out, content = here("trace", *words, f"--directory={folder}")
    assert f"xprof --logdir={folder}" in out
    assert content["undisturbed_step_seconds"] > 0
    assert content["step_seconds"] > 0
    (path,) = folder.glob("plugins/profile/*/*.xplane.pb")  # the layout that xprof and TensorBoard read
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    events = [event for plane in planes for line in plane.lines for event in line.events]
    steps = {dict(event.stats).get("step_num") for event in events if event.name == "train"}
    assert steps == {0, 1, 2}
    stats = [dict(event.stats) for event in events]
    assert any("hlo_op" in found for found in stats)
    assert any("train_step" in str(found.get("hlo_module")) for found in stats)
