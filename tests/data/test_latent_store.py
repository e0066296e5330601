"""Latents of whole clips: what windows get from the store is what they would get by encoding their own frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wamkit.data.latent_store import LatentStore
from wamkit.data.mapped_file import CacheError
from wamkit.data.mixture import Mixture
from wamkit.data.prompt_store import PromptStore, prompt_hash
from wamkit.data.windows import MixtureEntry, WindowSpec

OFFSETS = (0.0, 0.1, 0.2, 0.3, 0.4)


class NumberEncoder:
    """Frames filled with one number to latents that hold these numbers: [n, 2, cameras, 4]."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, clips):
        self.calls += 1
        numbers = torch.stack([clip[:, :, 0, 0, 0].float() for clip in clips.values()], dim=1)  # [n, cameras, 5]
        return torch.stack([numbers[..., :1].expand(-1, -1, 4), numbers[..., 1:]], dim=1)


def build(frames, directory, encode=None, **changes) -> LatentStore:
    settings = dict(encoder_hash="e", preprocessing="p", offsets_s=OFFSETS, cameras={"front": "front"})
    return LatentStore.build(frames, encode or NumberEncoder(), directory=directory, **(settings | changes))


def spec(**changes) -> WindowSpec:
    return WindowSpec(**(dict(frame_offsets_s=OFFSETS, resolution=(4, 6), feature_views=1) | changes))


@pytest.mark.parametrize("video_rate_hz", [10.0, 5.0])
def test_windows_get_the_latents_of_their_own_frames(numbered, store, tmp_path, video_rate_hz):
    source = numbered(video_rate_hz=video_rate_hz)
    frames = store(source)
    latents = build(frames, tmp_path / "cache", batch_size=4)
    mixture = Mixture([MixtureEntry(source=source, frame_store=frames, feature_store=latents)], spec(), None, seed=0)
    window = mixture.window(range(len(mixture)))
    own = NumberEncoder()({"front": window.frames["front"]})
    assert window.features["front"].shape == (len(mixture), 1, 2, 1, 4)
    assert torch.equal(window.features["front"][:, 0].float(), own)
    assert not window.frame_valid["front"].all()  # clips that reach past the end are among them


def test_several_cameras_share_one_grid(numbered, store, tmp_path):
    source = numbered(cameras=("front", "side"))
    frames = store(source)
    latents = build(frames, tmp_path / "cache", cameras={"primary": "side", "wrist": "front"})
    entry = MixtureEntry(
        source=source, frame_store=frames, feature_store=latents, camera_map={"primary": "side", "wrist": "front"}
    )
    window = Mixture([entry], spec(cameras=("primary", "wrist")), None, seed=0).window(range(6))
    assert set(window.features) == {"primary"}
    own = NumberEncoder()({camera: window.frames[camera] for camera in ("primary", "wrist")})
    assert torch.equal(window.features["primary"][:, 0].float(), own)


def test_it_is_encoded_once_and_again_when_anything_changes(numbered, store, tmp_path):
    frames, encode = store(numbered()), NumberEncoder()
    keys = {build(frames, tmp_path / "cache", encode).key}
    assert encode.calls > 1
    encode.calls = 0
    keys.add(build(frames, tmp_path / "cache", encode).key)
    assert len(keys) == 1
    assert encode.calls == 1  # the shape is asked for, nothing more
    for change in (
        dict(encoder_hash="f"),
        dict(preprocessing="q"),
        dict(offsets_s=(0.0, 0.2, 0.4, 0.6, 0.8)),
        dict(dtype=np.float32),
    ):
        keys.add(build(frames, tmp_path / "cache", encode, **change).key)
    assert len(keys) == 5


def test_windows_that_look_elsewhere_are_refused(numbered, store, tmp_path):
    source = numbered()
    frames = store(source)
    entry = MixtureEntry(source=source, frame_store=frames, feature_store=build(frames, tmp_path / "cache"))
    with pytest.raises(CacheError, match="build it for these offsets"):
        Mixture([entry], spec(frame_offsets_s=(0.0, 0.1)), None, seed=0)
    for changes in (dict(frame_jitter_s=0.05), dict(starts="rows")):
        with pytest.raises(CacheError, match="without jitter that begin at new frames"):
            Mixture([entry], spec(**changes), None, seed=0)


def test_what_cannot_be_stored_is_told(numbered, store, tmp_path):
    frames = store(numbered())
    with pytest.raises(CacheError, match="no camera 'fron'.*front"):
        build(frames, tmp_path / "cache", cameras={"front": "fron"})
    with pytest.raises(CacheError, match=r"return \[n, F, N, C\]"):
        build(frames, tmp_path / "cache", lambda clips: clips["front"].float().mean(dim=(1, 2, 3, 4)))
    with pytest.raises(CacheError, match="not finite as float16"):
        build(frames, tmp_path / "cache", lambda clips: torch.full((len(clips["front"]), 1, 1, 1), 1e6))


def test_prompts_are_kept_by_prompt_and_encoder(tmp_path):
    store, other = (PromptStore(tmp_path / "text", encoder=name) for name in ("a", "b"))
    assert store.get("open") is None
    features = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    store.put("open", features)
    assert torch.equal(store.get("open"), features)
    assert store.get("opens") is None
    assert other.get("open") is None
    assert prompt_hash("open", "a") != prompt_hash("ope", "na")
    with pytest.raises(CacheError, match="not finite"):
        store.put("open", features / 0.0)
    store.path("open").write_bytes(b"broken")
    with pytest.raises(CacheError, match="delete the file"):
        store.get("open")
