"""World-model metrics on little worlds whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from wamkit.evaluation import world_metrics as wm

N, D = 16, 6


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def world(rng):
    """A blob at one of 16 patches on a constant background; the latent action says how far it steps."""
    n = 120
    background = 5 + rng.normal(size=(N, D))
    blob = rng.normal(size=D) * 2

    def picture(place):
        frame = np.repeat(background[None], len(place), axis=0)
        frame[np.arange(len(place)), place % N] += blob
        return frame.astype(np.float32)

    place = rng.integers(0, N, size=n)
    steps = rng.integers(1, 5, size=(n, 3))
    places = place[:, None] + np.cumsum(steps, axis=1)
    episodes = np.repeat(np.arange(12), 10)

    def locate(frames):
        return ((frames - background) @ blob).argmax(axis=1)

    def predict(frames, z):
        return picture(locate(frames) + z[:, 0].astype(int))

    return {
        "present": picture(place),
        "future": np.stack([picture(places[:, t]) for t in range(3)], axis=1),
        "z": steps[..., None].astype(np.float32),
        "episodes": episodes,
        "predict": predict,
        "place": place,
        "picture": picture,
    }


@pytest.fixture
def scale(world):
    return wm.FeatureScale.fit(np.concatenate([world["present"], *world["future"].swapaxes(0, 1)]))


def test_scale_has_its_landmarks(rng):
    features = rng.normal(size=(4000, 4, D)) * np.arange(1, D + 1) + 50
    scale = wm.FeatureScale.fit(features)
    assert scale.error(features, features).max() == 0
    assert scale.error(features, np.broadcast_to(scale.mean, features.shape)).mean() == pytest.approx(1, abs=0.02)
    assert scale.error(features, features[rng.permutation(4000)]).mean() == pytest.approx(2, abs=0.05)


def test_dead_channels_count_nothing(rng):
    features = rng.normal(size=(50, 4, 3))
    dead = np.concatenate([features, np.full((50, 4, 2), 7.0)], axis=2)
    other = dead + np.r_[0, 0, 0, 1, 1]
    assert wm.FeatureScale.fit(dead).error(dead, other).max() == 0
    a, b = features[:25], features[25:]
    assert wm.FeatureScale.fit(dead).error(dead[:25], dead[25:]) == pytest.approx(
        wm.FeatureScale.fit(features).error(a, b), rel=1e-4
    )
    with pytest.raises(wm.WorldMetricsError, match="same in every frame"):
        wm.FeatureScale.fit(np.ones((5, 4, 3)))


def test_perfect_model_and_copy(world, scale):
    predicted = wm.roll_out(world["predict"], world["present"], world["z"])
    horizons = np.array([0.5, 1.0, 1.5])
    perfect = wm.feature_error(predicted, world["future"], world["present"], horizons, scale, world["episodes"])
    assert perfect["model"] == [0.0, 0.0, 0.0]
    assert min(perfect["copy_present"]) > 0.5
    copied = np.repeat(world["present"][:, None], 3, axis=1)
    lazy = wm.feature_error(copied, world["future"], world["present"], horizons, scale, world["episodes"])
    assert lazy["ratio"] == [1.0, 1.0, 1.0]
    assert lazy["ratio_ci95"][0] == [1.0, 1.0]
    assert (lazy["n"], lazy["episodes"]) == (120, 12)


def test_roll_out_feeds_its_own_predictions():
    rolled = wm.roll_out(lambda u, z: u + z[:, None, None], np.zeros((2, 1, 1)), np.ones((2, 3)))
    assert rolled[0, :, 0, 0].tolist() == [1, 2, 3]


def test_nan_prediction_is_refused(world, scale):
    broken = world["future"].copy()
    broken[3, 1, 2, 0] = np.nan
    with pytest.raises(wm.WorldMetricsError, match="predictions hold"):
        wm.feature_error(broken, world["future"], world["present"], np.arange(3), scale, world["episodes"])


def test_action_dependence_tells_a_listener_from_a_deaf_model(world, scale, rng):
    noise = rng.normal(size=world["present"].shape).astype(np.float32) * 0.05

    def listens(u, z):
        return world["predict"](u, z) + noise

    def deaf(u, z):
        return world["predict"](u, np.full_like(z, 2)) + noise

    arguments = (world["present"], world["z"][:, 0], world["future"][:, 0], scale, world["episodes"])
    heard = wm.action_dependence(listens, *arguments)
    ignored = wm.action_dependence(deaf, *arguments)
    assert heard["ratio"] > 10
    assert heard["ci95"][0] > 5
    assert ignored["ratio"] == pytest.approx(1.0)
    assert ignored["ci95"] == pytest.approx([1.0, 1.0])


def test_partners_come_from_other_episodes():
    episodes = np.array([0, 0, 0, 1, 2, 2])
    partner = wm.other_episode(episodes, seed=3)
    assert (episodes[partner] != episodes).all()
    with pytest.raises(wm.WorldMetricsError, match="two held-out"):
        wm.other_episode(np.zeros(4, int))


def test_action_change_of_believers_and_unbelievers(rng):
    n = 60
    goals = rng.normal(size=(n, 4, 2))
    episodes = np.arange(n) // 5
    partner = wm.other_episode(episodes)
    jitter = 0.01 * rng.normal(size=goals.shape)
    believer = wm.action_change(goals, goals[partner], goals + jitter, partner, episodes)
    assert believer["change_over_spread"] == pytest.approx(1)
    assert believer["toward_partner"] == pytest.approx(1)
    assert believer["change_over_noise"] > 50
    half = wm.action_change(goals, (goals + goals[partner]) / 2, goals, partner, episodes)
    assert half["change_over_spread"] == pytest.approx(0.5)
    assert half["change_over_noise"] is None
    ignores = wm.action_change(goals, goals, goals + jitter, partner, episodes)
    assert ignores["change"] == 0


def test_action_change_counts_valid_actions_only(rng):
    own, episodes = rng.normal(size=(20, 4, 2)), np.arange(20) // 2
    partner = wm.other_episode(episodes)
    swapped = own.copy()
    swapped[:, 2:] += 100  # padding
    valid = np.zeros((20, 4), bool)
    valid[:, :2] = True
    assert wm.action_change(own, swapped, own, partner, episodes, valid=valid)["change"] == 0


def test_effect_region_unmasks_a_fixed_region(rng):
    n = 200
    arm_place = rng.choice([5, 6, 7, 8], size=n, p=[0.1, 0.4, 0.4, 0.1])
    arm = np.eye(N, dtype=bool)[arm_place]
    true_change = arm + 0.05 * rng.uniform(size=(n, N))
    fixed = np.zeros((n, N)) + 0.05
    fixed[:, 5:9] = 1.0  # always the same four patches, wherever the arm is
    region = wm.effect_region(fixed, arm, true_change)
    follows = wm.effect_region(true_change, arm, true_change)
    assert region["ratio"] > 3
    assert region["ratio_bias_removed"] == pytest.approx(1.0, abs=0.05)
    assert region["correlation"] > 0.99
    assert follows["ratio_bias_removed"] > 3
    assert follows["correlation"] == pytest.approx(follows["control_correlation"])


def test_moving_patches_and_mover(world, scale):
    change = scale.distance_map(world["present"], world["future"][:, 0])
    mask = wm.moving_patches(change, share=2 / N)
    assert (mask.sum(axis=1) == 2).all()
    before, after = world["place"] % N, (world["place"] + world["z"][:, 0, 0].astype(int)) % N
    assert mask[np.arange(120), before].all()
    assert mask[np.arange(120), after].all()
    for i in range(10):
        assert wm.mover_patch(world["present"][i], world["future"][i, 0], scale) == before[i]


def test_similarity_map_finds_where_the_patch_went(rng):
    texture = rng.normal(size=(N, 32)) * 0.2
    blob = rng.normal(size=32) * 2
    frames = np.stack([texture + np.eye(N)[:, [k]] * blob for k in range(N)]) + 10
    scale = wm.FeatureScale.fit(frames)
    heat = wm.similarity_map(frames[3], frames[9], 3, scale)
    assert heat.argmax() == 9
    assert heat[9] > 0.8
    assert abs(np.delete(heat, 9)).max() < 0.7


def test_interval_is_over_episodes(rng):
    # Ten copies of each sample carry no new information: the interval must not shrink.
    value, reference = rng.uniform(size=30), np.ones(30)
    narrow = wm.ratio_interval(value, reference, np.arange(30))
    copied = wm.ratio_interval(np.repeat(value, 10), np.ones(300), np.repeat(np.arange(30), 10))
    assert copied[1] == pytest.approx(narrow[1])
    with pytest.raises(wm.WorldMetricsError, match="two held-out"):
        wm.ratio_interval(value, reference, np.zeros(30))
