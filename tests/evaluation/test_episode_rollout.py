"""Whole episodes imagined, of a world whose answers are known; and the pieces that a recording is cut into."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from micro_causal import REPWAM, repwam
from micro_video import light
from torch import nn

from wamkit.data.cache import FrameStore
from wamkit.data.mixture import WindowSpec, fit_normalizer
from wamkit.data.synthetic import make_synthetic_dataset
from wamkit.data.windows import MixtureEntry
from wamkit.evaluation.episode_rollout import episode_rollouts
from wamkit.evaluation.rollout_film import BAR, SIDE, side_by_side
from wamkit.evaluation.whole_episodes import RecordedEpisode, WholeEpisodes
from wamkit.evaluation.world_metrics import WorldMetricsError
from wamkit.models.action_groups import ActionGroupError
from wamkit.types import Future, Observation

SIZE, STEPS, CHUNK = 16, 2, 2


def level(actions: torch.Tensor) -> torch.Tensor:
    """Brightness after each latent frame of two actions: their running sum."""
    return 0.2 + actions[..., 0].unflatten(1, (-1, STEPS)).sum(dim=2).cumsum(dim=1)


class Bright(nn.Module):
    """A world as bright as the sum of all actions; the model knows it, or copies the first picture."""

    name = "bright"
    capabilities = SimpleNamespace(rolls_out=True)

    def __init__(self, *, listens: bool = True, told: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.listens = listens
        self.config = SimpleNamespace(
            order="beside_video" if told else "after_video", forward_share=0.5, offsets_s=lambda n: (0.0, 0.1)
        )
        self.asked: list[tuple[bool, int]] = []

    def distinct(self, pictures):
        return pictures

    def pictures_of(self, frames, size):
        return frames["front"].float() / 255.0

    def reconstruction_of(self, window):
        return window.frames["front"].float() / 255.0 + 0.01

    def roll_out(self, observation, actions=None, *, frames=None):
        present = observation.images["front"].float() / 255.0
        count = frames if actions is None else actions.shape[1] // STEPS
        self.asked.append((actions is not None, count))
        levels = level(actions) if actions is not None and self.listens else torch.full((1, count), 0.2)
        for first in range(0, count, CHUNK):
            part = levels[:, first : first + CHUNK]
            times = 0.1 * torch.arange(first + 1, first + part.shape[1] + 1)
            values = part[..., None, None, None].expand(-1, -1, 3, SIZE, SIZE)
            yield Future(space="pixels", values=values, times=times[None], present=present)


class Recorded:
    """Episodes of that world, in the place of `WholeEpisodes`."""

    frame_s, chunk_frames, steps, too_short = 0.1, CHUNK, STEPS, 1

    def __init__(self, *lengths: int, acts: bool = True, hidden: bool = False) -> None:
        self.frames = dict(enumerate(lengths))
        self.acts, self.hidden = acts, hidden
        generator = torch.Generator().manual_seed(0)
        self.actions = {n: 0.08 * torch.rand(1, STEPS * f, 1, generator=generator) for n, f in self.frames.items()}

    def __iter__(self):
        return iter(self.frames)

    def task(self, number):
        return "push" if number % 2 else "pull"

    def episode(self, number):
        look = Observation(
            images={"front": torch.full((1, 3, SIZE, SIZE), 51, dtype=torch.uint8)}, task=(self.task(number),),
            embodiment=torch.ones(1, dtype=torch.long), rate_hz=torch.tensor([20.0]),
        )  # fmt: skip
        actions = self.actions[number] if self.acts else None
        return RecordedEpisode(number, self.task(number), self.frames[number], look, actions)

    def pieces(self, number):
        levels = torch.cat([torch.tensor([[0.2]]), level(self.actions[number])], dim=1)
        for first in range(0, self.frames[number], CHUNK):
            at = (first + torch.arange(CHUNK + 1)).clamp(max=self.frames[number])
            pictures = (levels[:, at, None, None, None] * 255).round().to(torch.uint8).expand(-1, -1, 3, SIZE, SIZE)
            window = SimpleNamespace(frames={"front": pictures}, first=first, to=lambda device: window)  # noqa: B023
            yield window, min(CHUNK, self.frames[number] - first)

    def recorded(self, window):
        there = torch.ones(1, CHUNK + 1, dtype=torch.bool)
        there[:, 1] = not (self.hidden and window.first == 0)
        return there


def test_a_model_that_listens_is_told_from_one_that_copies(tmp_path):
    told: list[tuple[int, int]] = []
    found = episode_rollouts(
        Bright(), Recorded(5, 6, 7), folder=tmp_path, progress=lambda done, total, note: told.append((done, total))
    )
    assert found["main"] == "true"
    assert found["horizon_s"] == pytest.approx(np.arange(1, 8) / 10)
    assert found["episodes_at"] == [3, 3, 3, 3, 3, 2, 1]
    assert found["over_copy"] < 0.01
    assert found["swapped_over_true"] > 10
    low, high = found["over_copy_ci95"]
    assert low <= found["over_copy"] <= high
    assert found["squared_error"]["none"] == pytest.approx(found["squared_error"]["copy_first"])
    assert found["psnr"]["reconstruction"] == pytest.approx([40.0] * 7, abs=0.1)
    assert all(value > 45 for value in found["psnr"]["true"])
    assert set(found["ssim"]) == set(found["psnr"]) == {"true", "swapped", "none", "copy_first", "reconstruction"}
    assert found["too_short"] == 1
    assert found["not_measured"] == {}
    assert told[-1] == (18, 18)
    assert sorted(entry["episode"] for entry in found["episodes"]) == [0, 1, 2]
    for entry in found["episodes"]:
        assert entry["swapped_with"] != entry["episode"]
        with av.open(str(tmp_path / entry["film"])) as film:
            pictures = [frame.to_ndarray(format="rgb24") for frame in film.decode(film.streams.video[0])]
            assert film.streams.video[0].average_rate == 10
        assert len(pictures) == round(10 * entry["seconds"])
        # Real and imagined are equally bright.
        real, made, _ = np.array_split(pictures[-1][BAR + 20 :], 3, axis=1)
        assert abs(real.mean() - made.mean()) < 6
    # An episode that nothing lasts as long as is swapped with the longest, in whole chunks of it.
    longest = next(entry for entry in found["episodes"] if entry["episode"] == 2)
    assert longest["swapped_with"] == 1
    assert found["psnr"]["swapped"][-1] is None
    assert found["psnr"]["true"][-1] is not None


def test_the_effect_of_swapping_is_how_far_apart_the_videos_are():
    world = Recorded(4, 4)
    found = episode_rollouts(Bright(), world, count=2)
    one, other = (level(world.actions[number]) for number in (0, 1))
    apart = 2 * (one - other).square().mean()
    gone = (one - 0.2).square().mean() + (other - 0.2).square().mean()
    assert found["swap_effect"] == pytest.approx(float(apart / gone), rel=0.02)


def test_a_deaf_model_is_called_so():
    found = episode_rollouts(Bright(listens=False), Recorded(4, 4), count=2)
    assert found["over_copy"] == pytest.approx(1.0)
    assert found["swapped_over_true"] == pytest.approx(1.0)
    assert found["swap_effect"] == 0.0
    assert all(entry["film"] is None for entry in found["episodes"])


def test_what_cannot_be_told_is_left_out_with_the_reason():
    untold = Bright(told=False)
    found = episode_rollouts(untold, Recorded(4, 5), count=2)
    assert found["main"] == "none"
    assert set(found["psnr"]) == {"none", "copy_first", "reconstruction"}
    assert "does not predict frames under their own chunk's actions" in found["not_measured"]["true"]
    assert sorted(untold.asked) == [(False, 4), (False, 5)]
    assert "swapped_over_true" not in found
    bare = episode_rollouts(Bright(), Recorded(4, 4, acts=False), count=1)
    assert "no actions" in bare["not_measured"]["true"]
    alone = episode_rollouts(Bright(), Recorded(4), count=1)
    assert "second episode" in alone["not_measured"]["swapped"]
    assert alone["over_copy"] < 0.01
    assert alone["over_copy_ci95"] is None
    assert "two held-out episodes" in alone["not_measured"]["over_copy_ci95"]
    with pytest.raises(WorldMetricsError, match="0 roll-outs"):
        episode_rollouts(Bright(), Recorded(4), count=0)


def test_pictures_that_were_not_recorded_do_not_count():
    found = episode_rollouts(Bright(), Recorded(4, 4, hidden=True), count=2)
    assert found["horizon_s"] == pytest.approx([0.2, 0.3, 0.4])
    assert all(len(values) == 3 for values in found["psnr"].values())


def test_instructions_take_turns_and_the_seed_decides():
    chosen = episode_rollouts(Bright(), Recorded(*[3] * 8), count=4, seed=1)["episodes"]
    assert sorted(entry["task"] for entry in chosen) == ["pull", "pull", "push", "push"]
    again = episode_rollouts(Bright(), Recorded(*[3] * 8), count=4, seed=1)["episodes"]
    assert [entry["episode"] for entry in again] == [entry["episode"] for entry in chosen]


def test_a_films_picture_enlarges_small_ones_and_leaves_an_ended_column_empty():
    page = side_by_side({"recorded": np.ones((3, 16, 24), np.float32), "imagined": None})
    assert page.shape == (SIDE + BAR, 2 * 264 + 4, 3)
    assert page[BAR:, :264].min() == 255
    assert page[BAR:, 268:].max() < 40


# Of a recording

FPS, LENGTH = 10, 14


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    root = tmp_path_factory.mktemp("disc")
    source = make_synthetic_dataset(root / "data", episodes=2, length=LENGTH, fps=FPS, resolution=(16, 16))
    return MixtureEntry(source=source, frame_store=FrameStore.build(source, root / "cache", resolution=(16, 16)))


def cut(recording, **changes) -> WholeEpisodes:
    config = replace(REPWAM, pictures="held", **changes)
    spec = WindowSpec(
        frame_offsets_s=config.frame_offsets_s, chunk_s=config.sequence_s, max_actions=config.sequence_actions,
        cameras=config.cameras, resolution=config.resolution,
    )  # fmt: skip
    return WholeEpisodes(repwam(pictures="held", **changes), recording, spec, fit_normalizer([recording]))


def test_an_episode_in_pieces_is_the_episode(recording):
    """14 rows at 10 Hz are six latent frames of 0.2 s after the first picture, two actions each."""
    recorded = cut(recording)
    assert recorded.frames == {0: 6, 1: 6}
    assert (recorded.steps, recorded.too_short) == (2, 0)
    episode = recorded.episode(1)
    actions = recording.source.column("action")[LENGTH : LENGTH + 12]
    normalised = recorded.normalizer.normalize("action", actions, recording.statistics_key)
    np.testing.assert_allclose(episode.actions[0].numpy(), normalised, atol=1e-6)
    pictures, _ = recording.frame_store.frames("front", 1, np.arange(0, 1.3, 0.2))
    assert torch.equal(episode.observation.images["front"][0], pictures[0])
    pieces = list(recorded.pieces(1))
    assert [count for _, count in pieces] == [2, 2, 2]
    for index, (window, _) in enumerate(pieces):
        # The picture of each latent frame's end four times over, the first once.
        shown = window.frames["front"][0, [0, 4, 8]]
        assert torch.equal(shown, pictures[2 * index : 2 * index + 3])
        assert recorded.recorded(window).all()


def test_recordings_that_do_not_fit_are_refused(recording):
    with pytest.raises(WorldMetricsError, match=r"longest lasts 1\.40 s and a chunk 1\.60 s"):
        cut(recording, chunk_frames=8)
    with pytest.raises(ActionGroupError, match="at 10 Hz"):
        cut(recording, frame_s=0.25)
    assert not light().capabilities.rolls_out


def test_a_model_imagines_the_recordings_episodes(recording, tmp_path):
    recorded = cut(recording)
    model = repwam(pictures="held").eval()
    found = episode_rollouts(model, recorded, count=1, folder=tmp_path)
    assert found["horizon_s"] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.2])
    assert set(found["psnr"]) == {"true", "swapped", "none", "copy_first", "reconstruction"}
    (entry,) = found["episodes"]
    assert (tmp_path / entry["film"]).stat().st_size > 1000
    episode = recorded.episode(entry["episode"])
    film = model.imagine(episode.observation, episode.actions)
    windows = [window for window, _ in recorded.pieces(episode.number)]
    real = torch.cat([model.pictures_of(window.frames, (16, 16))[:, 1:] for window in windows], dim=1)
    expected = (film.values - real).square().mean(dim=(0, 2, 3, 4))
    torch.testing.assert_close(torch.tensor(found["squared_error"]["true"]), expected, rtol=1e-4, atol=1e-6)
    assert found["squared_error"]["swapped"] != found["squared_error"]["true"]
