"""Frames are decoded once and found by time; features are encoded once for each encoder, preprocessing and view."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wamkit.data.augment import Augmentation
from wamkit.data.cache import FeatureStore, FrameStore
from wamkit.data.mapped_file import CacheError


def test_frames_are_those_of_the_recording(arm, tmp_path):
    store = FrameStore.build(arm, tmp_path, resolution=64)
    times = np.array([0.0, 0.26, 1.15])
    frames, actual = store.frames("front", 1, times)
    assert np.allclose(actual, [0.0, 0.25, 1.15])
    assert np.array_equal(frames.numpy(), np.moveaxis(arm.decode("front", 1, actual), -1, 1))


def test_only_new_frames_are_kept_where_video_is_slower_than_rows(slow_video, tmp_path):
    store = FrameStore.build(slow_video, tmp_path, resolution=(48, 64))
    assert store.counts.tolist() == [7, 7]
    assert np.allclose(store.times(0), np.arange(7) / 5)
    frames, actual = store.frames("wrist", 1, [0.29, 0.31])
    assert np.allclose(actual, [0.2, 0.4])
    assert np.array_equal(frames.numpy(), np.moveaxis(slow_video.decode("wrist", 1, actual), -1, 1))


def test_a_store_is_decoded_once_and_keyed_by_what_it_depends_on(numbered, store):
    source = numbered()
    store(source)
    store(source)
    assert source.decoded == [("front", 0), ("front", 1)]
    store(source, resize="pad")
    assert len(source.decoded) == 4
    store(source, resolution=4)
    assert len(source.decoded) == 6
    changed = numbered(lengths=(12, 10))
    store(changed)
    assert len(changed.decoded) == 2


def test_a_part_of_the_episodes(numbered, store):
    source = numbered(lengths=(5, 6, 7))
    part = store(source, episodes=[2, 0])
    assert source.decoded == [("front", 0), ("front", 2)]
    frames, _ = part.frames("front", 2, [0.3])
    assert frames[0, 0, 0, 0] == 23
    with pytest.raises(CacheError, match="lacks episode 1"):
        part.frames("front", 1, [0.0])


def test_progress_is_told(numbered, store):
    told = []
    store(numbered(cameras=("front", "wrist")), progress=lambda done, total, note="": told.append((done, total)))
    assert told[-1] == (42, 42)
    assert told == sorted(told)


def test_unknown_cameras_get_a_suggestion(numbered, store):
    with pytest.raises(CacheError, match="Did you mean 'front'"):
        store(numbered(), cameras=("frnt",))
    with pytest.raises(CacheError, match="Did you mean 'front'"):
        store(numbered()).frames("fron", 0, [0.0])


class Encoder:
    """One token of the picture's mean in each quarter; counts what it encodes."""

    def __init__(self):
        self.frames = 0

    def __call__(self, frames):
        self.frames += len(frames)
        return torch.nn.functional.adaptive_avg_pool2d(frames.float(), 2).flatten(2).transpose(1, 2) / 255


def features(store, encode, **changes):
    settings = {"encoder_hash": "a", "preprocessing": "mean", "directory": store.source.root.parent / "features"}
    return FeatureStore.build(store, encode, **(settings | changes))


def test_features_are_those_of_the_encoder(arm, tmp_path):
    store, encode = FrameStore.build(arm, tmp_path, resolution=64), Encoder()
    built = features(store, encode, directory=tmp_path)
    frames, actual = store.frames("front", 2, [0.0, 0.5])
    found = built.features("front", 2, actual)
    assert found.dtype == torch.float16
    assert torch.allclose(found.float(), encode(frames), atol=1e-3)


def test_features_are_keyed_by_encoder_preprocessing_and_views(arm, tmp_path):
    store, encode = FrameStore.build(arm, tmp_path, resolution=64), Encoder()
    features(store, encode, directory=tmp_path)
    once = encode.frames
    features(store, encode, directory=tmp_path)
    assert encode.frames == once + 1  # one frame tells the shape
    for changed in ({"encoder_hash": "b"}, {"preprocessing": "other"}, {"views": 2, "augment": Augmentation()}):
        before = encode.frames
        features(store, encode, directory=tmp_path, **changed)
        assert encode.frames > before + 1


def test_view_0_is_plain_and_the_others_are_augmented_alike_over_time(numbered, store):
    seen = []

    def augment(frames, seed):
        seen.append((len(frames), seed))
        return torch.full_like(frames, seed % 251)

    frames = store(numbered())
    views = features(frames, Encoder(), directory=frames.source.root, views=3, augment=augment, batch_size=5)
    plain, first, second = (views.features("front", 1, [0.0, 0.3], view) for view in range(3))
    assert torch.allclose(plain[:, 0, 0].float(), torch.tensor([10.0, 13.0]) / 255, atol=1e-3)
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first, second)
    # 2 views x 2 episodes, each under one seed in all its batches.
    assert len({seed for _, seed in seen}) == 4  # and not only in the upper half of the number
    assert len({seed & 0xFFFFFFFF for _, seed in seen}) == 4
    assert sum(count for count, _ in seen) == 2 * 21


@pytest.fixture(autouse=True)
def _clean_numbered_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the numbered recording has a relative root


def test_features_in_a_wrong_shape_or_not_finite_are_refused(numbered, store):
    frames = store(numbered())
    with pytest.raises(CacheError, match=r"return \[n, N, D\]"):
        features(frames, lambda pictures: pictures.float().mean((1, 2, 3)))
    with pytest.raises(CacheError, match="not finite as float16"):
        features(frames, lambda pictures: torch.full((len(pictures), 1, 2), 1e6))
    with pytest.raises(CacheError, match="without an augmentation"):
        features(frames, Encoder(), views=2)


def test_a_broken_video_leaves_no_store(arm, tmp_path, monkeypatch):
    from wamkit.data.lerobot import DatasetError

    original = type(arm).iterate

    def broken(self, camera, episode, timestamps):
        if episode == 1:
            raise DatasetError("Episode 1: the video is broken")
        yield from original(self, camera, episode, timestamps)

    monkeypatch.setattr(type(arm), "iterate", broken)
    with pytest.raises(DatasetError, match="Episode 1"):
        FrameStore.build(arm, tmp_path / "cache", resolution=64)
    assert not list((tmp_path / "cache").glob("frames-*"))
    monkeypatch.undo()
    FrameStore.build(arm, tmp_path / "cache", resolution=64)
