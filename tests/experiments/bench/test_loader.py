"""The loader is measured by stage and by cache, and against a batch that stays on the device."""

import pytest

from experiments.bench import loader


@pytest.mark.slow
def test_the_loader_is_measured_by_stage_and_by_cache_and_against_a_resident_batch(here, tmp_path):
    network = ("--size=16", "--base_filters=2", "--num_layers=1")
    out, content = here("loader", *network, f"--cache_dir={tmp_path}", "--rounds=1", "--seconds=0.02", "--steps=2")
    places = [f"cache {cache}, {place}" for cache in loader.CACHES for place in ("host", "device")]
    assert [name for name in content["rates"] if name.startswith("cache")] == places
    assert all(min(found["rounds"]) > 0 for found in content["rates"].values())
    assert {name: len(found["rounds"]) for name, found in content["step_seconds"].items()} == dict.fromkeys(
        ("resident", *loader.CACHES), 2
    )
    assert f"no DataLoader: {content['absent']}" in out
    assert "over one resident batch" in out
