"""The comparison of latent actions: arms differ in one choice; a toy run ends, goes on, and makes a table."""

from __future__ import annotations

import json

import numpy as np
import pytest


def test_every_arm_differs_from_the_base_in_what_it_is_named_after(benchmark):
    latent_actions = benchmark("latent_actions")
    from wamkit.configuration import to_dict

    base = to_dict(latent_actions.BASE)
    for name, config in latent_actions.arms().items():
        if config is None or name in ("base", "lawam_lam"):
            continue
        changed = [key for key, value in to_dict(config).items() if value != base[key]]
        assert changed == [name.split("_")[0]]
    lam = latent_actions.LAM
    assert (lam.queries * lam.latent_width, lam.max_state_dim) == (latent_actions.BASE.latent_width, 0)


def test_controls_read_the_difference(benchmark):
    latent_actions = benchmark("latent_actions")
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 2, 6, 5)).astype(np.float16)
    features[:, 1, 0, 0] = features[:, 0, 0, 0] + 50 * rng.normal(size=40)
    pairs = latent_actions.Pairs(
        features, np.zeros((40, 3)), np.zeros((40, 2)), np.zeros(40, int), np.array([""] * 40), (2, 3)
    )
    present, future = features[:, 0], features[:, 1]
    moved = (future[:, 0, 0] - present[:, 0, 0]).astype(np.float32)
    leading = latent_actions.control("principal_components", pairs, 0).infer(present, future)
    assert leading.shape == (40, 1, 4)
    assert abs(np.corrcoef(leading[:, 0, 0], moved)[0, 1]) > 0.99
    first, again, other = (
        latent_actions.control("random_projection", pairs, s).infer(present, future) for s in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)
    np.testing.assert_allclose(latent_actions.control("random_projection", pairs, 0).infer(present, present), 0)
    assert latent_actions.control("whole_difference", pairs, 0).infer(present, future).shape == (40, 1, 30)


def test_clips_are_seen_at_the_times_of_their_latent_frames(benchmark):
    latent_actions = benchmark("latent_actions")
    each, held = (latent_actions.Tokenizer(None, ("a",), 32, 9, held=held).offsets(0.4) for held in (False, True))
    assert each == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert held == pytest.approx([0.0] + [0.4] * 4 + [0.8] * 4)


@pytest.mark.timeout(300)
def test_latent_actions_are_compared(benchmark, tmp_path, capsys):
    latent_actions = benchmark("latent_actions")
    chosen = ["base", "mixing_local_softmax", "lawam_lam", "principal_components"]
    flags = ["--toy", "--json", "--output_dir", str(tmp_path), "--arms", *chosen]
    latent_actions.main(flags)
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    arms = result["results"]["random_weights"]
    assert list(arms) == chosen
    assert result["held_out_episodes"] == 3
    for name, seeds in arms.items():
        (row,) = seeds.values()
        assert row["action"]["r2"] <= 1
        assert (row["parameters"] == 0) == (name == "principal_components")
        assert ("step" in row) == (name != "principal_components")
        assert row.get("step", {"episodes": 3})["episodes"] == 3
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*.json")}
    assert len(files) == 4
    next(path for path in files if "lawam_lam" in path.parts).unlink()
    latent_actions.main(flags)
    again = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["results"]["random_weights"]
    assert again["lawam_lam"]["0"]["action"] == arms["lawam_lam"]["0"]["action"]
    for path, changed in files.items():
        assert (path.stat().st_mtime_ns == changed) == ("lawam_lam" not in path.parts)
    lines = benchmark("_tables").latent_actions(result)
    assert sum(line.startswith("| `") for line in lines) == 4
