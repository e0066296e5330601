"""Mixtures: draws by counter, weights, epochs, padding and masks over unlike recordings."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from wamkit.data.augment import Augmentation
from wamkit.data.cache import FeatureStore, FrameStore
from wamkit.data.mixture import Mixture, fit_normalizer
from wamkit.data.normalize import ACTION, STATE, NormalizationError, Normalizer
from wamkit.data.windows import MixtureEntry, WindowError, WindowSpec
from wamkit.types import Window

SPEC = WindowSpec(
    frame_offsets_s=(0.0, 0.4), chunk_s=0.8, cameras=("image", "wrist"), resolution=48, frame_jitter_s=0.1
)


@pytest.fixture(scope="module")
def entries(arm, slow_video, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    first = FrameStore.build(arm, cache, resolution=48)
    second = FrameStore.build(slow_video, cache, resolution=48)
    return [
        MixtureEntry(source=arm, frame_store=first, weight=3.0, camera_map={"image": "front"}),
        MixtureEntry(source=slow_video, frame_store=second, weight=1.0, camera_map={"image": "exterior"}),
    ]


@pytest.fixture(scope="module")
def mixed(entries):
    return Mixture(entries, SPEC, fit_normalizer(entries), seed=3)


def assert_same(one: Window, other: Window) -> None:
    for name, value in vars(one).items():
        theirs = getattr(other, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, theirs), name
        elif isinstance(value, dict):
            assert value.keys() == theirs.keys()
            assert all(torch.equal(value[key], theirs[key]) for key in value), name
        else:
            assert value == theirs


def test_unlike_recordings_are_padded_and_masked(mixed):
    window = mixed.window(range(64))
    assert mixed.cameras == ("image", "wrist")
    assert window.frames["image"].shape == window.frames["wrist"].shape == (64, 2, 3, 48, 48)
    assert window.state.shape == (64, 2, 5)
    assert window.actions.shape == (64, 16, 7)
    arm = window.embodiment == 1
    assert 0 < arm.sum() < 64
    assert not window.frame_valid["wrist"][arm].any()
    assert not window.frames["wrist"][arm].any()
    assert window.frame_valid["wrist"][~arm][:, 0].all()
    assert window.rate_hz[arm].eq(20).all()
    assert window.rate_hz[~arm].eq(15).all()
    # 0.8 s hold 16 actions at 20 Hz and 12 at 15 Hz.
    assert window.action_valid[arm][:, :, :2].any(0).all()
    assert not window.action_valid[arm][:, :, 2:].any()
    assert window.action_valid[~arm].any(0)[:12].all()
    assert not window.action_valid[~arm][:, 12:].any()
    assert window.state_valid[arm][:, 0].sum(-1).eq(4).all()
    assert window.action_times[arm][0, 1].item() == pytest.approx(0.05)
    assert window.action_times[~arm][0, 15].item() == pytest.approx(1.0)
    assert window.task[int(arm.nonzero()[0])] == "push the disc"
    assert set(window.task) == {"push the disc", "", "lift the lid"}
    masked = torch.where(window.action_valid, 0.0, window.actions)
    assert not masked.any()


def test_a_batch_is_its_draws_one_by_one(mixed):
    together = mixed.window(range(100, 112))
    alone = [mixed.window([counter]) for counter in range(100, 112)]
    assert_same(together.to("cpu"), stacked(alone))


def stacked(windows):
    def cat(name):
        values = [getattr(window, name) for window in windows]
        if isinstance(values[0], torch.Tensor):
            return torch.cat(values)
        if isinstance(values[0], dict):
            return {key: torch.cat([value[key] for value in values]) for key in values[0]}
        return sum(values, ())

    return Window(**{field.name: cat(field.name) for field in fields(Window)})


def test_weights_are_kept(mixed):
    labels, _, _ = mixed.locate(range(8192))
    assert Counter(labels.tolist()) == {0: 6144, 1: 2048}
    assert mixed.weights == (0.75, 0.25)
    # And locally about so: a short run sees the mixture too.
    assert 0.6 < (mixed.locate(range(256))[0] == 0).mean() < 0.9


def test_without_weights_every_window_counts_alike(entries):
    mixture = Mixture([replace(entry, weight=None) for entry in entries], SPEC)
    assert mixture.weights[0] == pytest.approx(72 / 86, abs=1e-3)
    with pytest.raises(WindowError, match="every recording a positive one"):
        Mixture([entries[0], replace(entries[1], weight=None)], SPEC)


def test_each_epoch_draws_every_window_once_in_another_order(entries):
    one = replace(SPEC, cameras=("image",))
    mixture = Mixture(entries[:1], one, seed=1)
    size = len(mixture)
    orders = []
    for epoch in range(3):
        _, episodes, rows = mixture.locate(np.arange(epoch * size, (epoch + 1) * size))
        orders.append(list(zip(episodes.tolist(), rows.tolist(), strict=True)))
        assert sorted(orders[-1]) == [(episode, row) for episode in range(3) for row in range(24)]
    assert orders[0] != orders[1] != orders[2]
    assert Mixture(entries[:1], one, seed=1).locate(range(size))[2].tolist() == [row for _, row in orders[0]]
    assert Mixture(entries[:1], one, seed=2).locate(range(size))[2].tolist() != [row for _, row in orders[0]]


def test_chosen_episodes_alone_are_drawn_and_measured(entries):
    entry = replace(entries[0], episodes=(0, 2), camera_map={"image": "front", "wrist": None})
    mixture = Mixture([entry], SPEC)
    assert not mixture.window(range(4)).frame_valid["wrist"].any()
    assert set(mixture.locate(range(200))[1].tolist()) == {0, 2}
    source = entry.source
    rows = np.concatenate([source.column(ACTION)[source.episodes[e].rows] for e in (0, 2)])
    assert fit_normalizer([entry]).statistics["metaworld"][ACTION]["mean"] == pytest.approx(rows.mean(0), abs=1e-6)


def test_normalised_values_have_unit_scale(mixed):
    window = mixed.window(range(1000))
    for key, mask in (("metaworld", window.embodiment == 1), ("droid", window.embodiment == 2)):
        dims = mixed.normalizer.dimensions(ACTION, key)
        values = window.actions[mask][..., :dims][window.action_valid[mask][..., :dims].all(-1)]
        assert values.mean(0).abs().max() < 0.3
        assert (values.std(0) - 1).abs().max() < 0.3


def test_rates_are_known_to_the_normaliser(mixed):
    assert mixed.normalizer.rate_hz("droid") == 15.0
    with pytest.raises(NormalizationError, match="Did you mean 'droid'"):
        mixed.normalizer.rate_hz("drod")


def test_a_normaliser_of_other_recordings_is_refused(entries):
    with pytest.raises(NormalizationError, match="no statistics for 'droid'"):
        Mixture(entries, SPEC, fit_normalizer(entries[:1]))
    known = fit_normalizer(entries)
    narrow = {name: value[:2] if len(value) > 1 else value for name, value in known.statistics["droid"][ACTION].items()}
    statistics = known.statistics | {"droid": known.statistics["droid"] | {ACTION: narrow}}
    with pytest.raises(WindowError, match="7 dimensions and its statistics"):
        Mixture(entries, SPEC, Normalizer(statistics))


def test_recordings_of_one_key_must_agree_in_dimensions(entries):
    same = [replace(entry, statistics="robot") for entry in entries]
    with pytest.raises(NormalizationError, match=r"differ in the dimensions of .* another statistics key"):
        fit_normalizer(same)


def test_fingerprint_follows_everything_that_changes_a_draw(entries, mixed):
    normalizer = mixed.normalizer
    assert mixed.fingerprint() == Mixture(entries, SPEC, normalizer, seed=3).fingerprint()
    others = [
        Mixture(entries, SPEC, normalizer, seed=4),
        Mixture(entries, SPEC, None, seed=3),
        Mixture(entries, replace(SPEC, chunk_s=0.4), normalizer, seed=3),
        Mixture([replace(entries[0], weight=2.0), entries[1]], SPEC, normalizer, seed=3),
        Mixture([replace(entries[0], episodes=(0, 1)), entries[1]], SPEC, normalizer, seed=3),
    ]
    assert len({mixture.fingerprint() for mixture in others} | {mixed.fingerprint()}) == 6


def test_an_error_can_say_where_a_batch_came_from(mixed):
    told = mixed.describe(0, 64)
    assert "episodes 0, 1, 2" in told
    assert "episodes 0, 1)" in told


def test_too_short_recordings_and_chunks(entries):
    with pytest.raises(WindowError, match=r"no window of this kind: its 3 chosen episodes .* 'clamp'"):
        Mixture(entries, replace(SPEC, frame_offsets_s=(0.0, 5.0), past_end="drop"))
    with pytest.raises(WindowError, match="longest chunk has 16: raise max_actions"):
        Mixture(entries, replace(SPEC, max_actions=15))
    with pytest.raises(WindowError, match="at least one"):
        Mixture([], SPEC)


def test_a_single_camera_without_a_map_keeps_its_name(entries):
    plain = [replace(entry, camera_map={}) for entry in entries]
    assert Mixture(plain, replace(SPEC, cameras=None)).cameras == ("front", "exterior", "wrist")
    assert Mixture(entries, replace(SPEC, cameras=None)).cameras == ("image", "wrist")


def test_feature_views_are_plain_alone_and_different_in_company(entries, tmp_path):
    def encode(frames):
        return frames.float().flatten(2).mean(-1)[:, None] / 255

    store = FeatureStore.build(
        entries[1].frame_store,
        encode,
        encoder_hash="mean",
        preprocessing="none",
        directory=tmp_path,
        views=4,
        augment=Augmentation(),
        dtype=np.float32,
    )
    entry = replace(entries[1], feature_store=store)
    spec = replace(SPEC, frame_jitter_s=0.0)
    alone = Mixture([entry], replace(spec, feature_views=1)).window(range(10))
    assert alone.features["image"].shape == (10, 1, 2, 1, 3)
    for frame in range(2):
        assert torch.allclose(alone.features["image"][:, 0, frame], encode(alone.frames["image"][:, frame]), atol=1e-5)
    pairs = Mixture([entry], replace(spec, feature_views=2)).window(range(200)).features["image"]
    assert (pairs[:, 0] != pairs[:, 1]).flatten(1).any(1).all()
    # Every view is drawn in either place.
    present = {tuple(value.flatten().tolist()) for value in pairs[:, 0, 0]}
    assert len(present) > 3 * len(store.frame_store.times(0))
    with pytest.raises(WindowError, match=r"5 views are wanted and the feature store .* holds 4"):
        Mixture([entry], replace(spec, feature_views=5))


def test_rows_of_one_key_are_measured_together(entries):
    normalizer = fit_normalizer([entries[0], entries[0]], state_mode="QUANTILES", action_mode="MIN_MAX")
    assert normalizer.modes == {STATE: "QUANTILES", ACTION: "MIN_MAX"}
    assert normalizer.statistics["metaworld"][ACTION]["count"].item() == 2 * 72
