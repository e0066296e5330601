"""The peers of the latency table: the same arithmetic where it is said to be the same, and shapes that match."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="module")
def peers(benchmark):
    return benchmark("_latency_peers")


def test_lerobots_fastwam_with_our_weights_gives_our_actions(peers):
    pytest.importorskip("lerobot.policies.fastwam.wan.modular", reason="needs lerobot's fastwam")
    from micro_video import fast

    model = fast().eval()
    parity = peers.fastwam_parity(model, peers.lerobot_fastwam(model), model.fake_window(1).observation())
    assert parity["largest_difference"] <= 1e-4
    assert parity["largest_action"] > 0.1


def test_smolvla_is_built_at_lawams_shape_without_a_download(peers):
    pytest.importorskip("lerobot.policies.smolvla.modeling_smolvla", reason="needs lerobot's smolvla")
    from wamkit.models.lawam import preset

    config = preset("tiny")
    theirs = peers.smolvla_model(config)
    seen, ids = torch.ones(1, dtype=torch.bool), torch.ones(1, 8, dtype=torch.long)
    with torch.inference_mode():
        actions = theirs.sample_actions(
            [torch.zeros(1, 3, 128, 128)], [seen], ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros(1, 32)
        )
    assert actions.shape == (1, config.max_actions, config.action.action_dim)


def test_what_cannot_be_built_says_why(peers):
    with pytest.raises(peers.PeerUnavailable, match="download"):
        peers.vla_jepa(None)


def test_the_table_has_a_row_for_each_of_our_paths(benchmark):
    tables = benchmark("_tables")
    cell = {"peer": {"p50_ms": 10.0}, "ours": {"p50_ms": 4.0}, "ratio": 2.5, "ci95": [2.4, 2.6]}
    cell["null"] = {"ratio": 1.0, "ci95": [0.9, 1.1]}
    entry = {"beside": "fast_wam", "parity": {"largest_difference": 1e-6}, "against": {"plain": cell, "runtime": cell}}
    lines = tables.latency_peers({"fastwam": entry, "smolvla": entry | {"parity": None}})
    assert len(lines) == 3 + 4
    assert "2.5" in lines[3]
    assert "1.0e-06" in lines[3]
    assert "1.0e-06" not in lines[5]
    assert tables.latency_peers({}) == []
