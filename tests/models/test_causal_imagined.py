"""What a causal model imagines: handed out with a chunk that it acts on, and rolled out over a whole episode."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from micro_causal import LINGBOT, lingbot, repwam, video
from micro_video import light
from micro_weights import seeded

from wamkit.data.canvas import CanvasError
from wamkit.dynamics.causal_transformer import Sequences
from wamkit.errors import WamkitError
from wamkit.evaluation.latency_policy import unit_terms
from wamkit.inference.monitor import imagined_with
from wamkit.inference.policy import Policy
from wamkit.inference.runtime import RuntimeSettings
from wamkit.models.action_groups import grouped
from wamkit.models.base import StageError, WorldActionModel
from wamkit.models.causal.sampler import levels_down_to
from wamkit.models.chunk import padded
from wamkit.models.registry import model_class, model_names
from wamkit.types import ActionChunk, Observation, Window

CLOSE = dict(rtol=1e-4, atol=1e-4)
SHALLOW = dict(video=replace(video(6), layers=1), action_steps=2)
MODELS = {
    "repwam": lambda: repwam(**SHALLOW),
    "lingbot_va": lambda: lingbot(video=replace(LINGBOT.video, layers=1), action_steps=2),
    "guided": lambda: repwam(video_guidance=2.0, video_until=0.4, **SHALLOW),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]().eval()


def look(window: Window, frame: int) -> Observation:
    seen = {camera: pictures[:, 4 * frame] for camera, pictures in window.frames.items()}
    return replace(window.observation(), images=seen)


def acted(model, window: Window, frames: int) -> ActionChunk:
    """The chunk after so many latent frames of the episode, 2 actions each."""
    noise = torch.randn(2, *model.action_noise_shape, generator=seeded())
    model.recall(None)
    chunk = model.act(look(window, 0), noise=noise)
    for frame in range(1, frames + 1):
        model.executed(window.actions[:, 2 * (frame - 1) : 2 * frame])
        model.observed({c: pictures[:, 4 * frame - 3 : 4 * frame] for c, pictures in window.frames.items()})
        chunk = model.act(look(window, frame), noise=noise)
    return chunk


# With a chunk


def test_the_first_chunks_future_is_the_one_that_imagine_gives(model):
    """And a half-denoised one is followed to its end in one step, where `imagine` denoises it in all of its steps."""
    window = model.fake_sequence(1, seed=3)
    chunk = acted(model, window, 0)
    handed = chunk.imagined
    assert handed.space == "latents"
    assert handed.times.tolist() == [pytest.approx([0.2, 0.4])] * 2
    assert handed.values.shape[2:] == handed.present.shape[1:]
    shown = model.decoded(handed, look(window, 0))
    future = model.imagine(look(window, 0), frames=2)
    assert shown.space == "pixels"
    torch.testing.assert_close(shown.times, future.times)
    torch.testing.assert_close(shown.present, future.present)
    apart = (shown.values - future.values).abs().max()
    if model.config.video_until > 0:
        assert apart > 1e-3
    else:
        assert apart < 1e-4
    assert model.decoded(future, look(window, 0)) is future
    assert model.act(look(window, 0), generator=seeded(), mode="action_only").imagined is None


def test_later_ones_follow_from_the_episode(model):
    window = model.fake_sequence(4, seed=3)
    handed = acted(model, window, 3).imagined
    (one, two) = model.remember()
    config = model.config
    sampler = model._sampler([one.rows, two.rows], window.task)
    with torch.no_grad():
        frames = sampler.video(model.video_noise(2, config.chunk_frames))
        level = config.video_until
        both = frames.repeat(sampler.copies, 1, 1, 1, 1)
        at = torch.full((len(both), 2), level)
        told, *untold = model.transformer.video_pass(sampler.past, both, at, sampler.words)[0].split(2)
        towards = told if not untold else untold[0] + config.video_guidance * (told - untold[0])
        latents = model.tokenizer.encode(model.clip_of(window.frames)[:, :13])
    torch.testing.assert_close(handed.values, (frames - level * towards).flatten(3).permute(0, 2, 3, 1), **CLOSE)
    torch.testing.assert_close(handed.present, latents[:, :, -1].flatten(2).transpose(1, 2), **CLOSE)
    alone = model.imagine(look(window, 3), frames=2)
    assert (model.decoded(handed, look(window, 3)).values - alone.values).abs().max() > 1e-3


def test_it_costs_no_pass_of_the_transformer(model, monkeypatch):
    window = model.fake_sequence(1, seed=3)
    counts, passed = Counter(), model.transformer.video_pass
    monkeypatch.setattr(model.transformer, "video_pass", lambda *a: counts.update(["video"]) or passed(*a))
    chunk = acted(model, window, 0)
    # What is seen, the Euler steps, and the frames as the actions read them.
    assert counts["video"] == 1 + model.config.video_steps + 1
    model.decoded(chunk.imagined, look(window, 0))
    assert counts["video"] == 1 + model.config.video_steps + 1


@pytest.mark.parametrize("runtime", [False, RuntimeSettings(precision="fp32", batch_sizes=(1,))])
def test_a_monitor_takes_what_comes_with_the_chunk(runtime, monkeypatch):
    model = repwam(pictures="held", window=1, **SHALLOW).eval()
    policy = Policy(model, *unit_terms(model), precision="fp32", runtime=runtime)
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    seen = {"observation.images.front": picture, "task": "open the door"}
    future = policy.imagine(seen, frames=2)
    monkeypatch.setattr(policy, "imagine", lambda *_, **__: pytest.fail("a pass of its own"))
    (imagined,) = imagined_with(policy, policy.act(seen, seeds=[0]), [seen])
    assert imagined.times.tolist() == pytest.approx([0.2, 0.4])
    np.testing.assert_allclose(imagined.values, future.values[0], atol=1e-4)
    np.testing.assert_allclose(imagined.present, future.present[0], atol=1e-6)


# Over an episode

FRAMES = 5
"""More than the window of 3, and no whole number of chunks of 2."""


@torch.no_grad()
def uncached(model, window: Window, told: bool) -> torch.Tensor:
    """Latents of the roll-out: every Euler step by training's one pass over the whole sequence, which keeps nothing."""
    config, observation = model.config, window.observation()
    steps = model.steps_of(window.rate_hz)
    given = padded(window.actions[:, : 2 * FRAMES], config.action.action_dim)
    clean, valid = grouped(given, steps, FRAMES, config.actions_per_frame)
    noises = model.video_noises(2, config.chunk_frames)
    latents = model.tokenizer.encode(model.clip_of({c: p[:, :1] for c, p in window.frames.items()}))
    levels = levels_down_to(0.0, config.video_steps, config.video_shift, "cpu")
    for first in range(0, FRAMES, config.chunk_frames):
        end = min(first + config.chunk_frames, FRAMES)
        x = next(noises)[:, :, : end - first]
        for now, following in pairwise(levels):
            ahead = torch.zeros_like(x)
            velocity = model.transformer(
                Sequences(
                    clean=torch.cat([latents, ahead], dim=2),
                    clean_level=torch.zeros(2, end + 1),
                    noisy=torch.cat([torch.zeros_like(latents[:, :, 1:]), x], dim=2),
                    noisy_level=now.expand(2, end),
                    frame_valid=torch.ones(2, end + 1, dtype=torch.bool),
                    actions=clean[:, :end],
                    noisy_actions=torch.zeros_like(clean[:, :end]),
                    action_level=torch.zeros(2, end),
                    action_valid=valid[:, :end],
                    action_steps=steps,
                    words=model.text(observation.task, "cpu"),
                    words_valid=None,
                    forward=torch.tensor([told, told]),
                    chunk_length=config.chunk_frames,
                    actions_told=torch.tensor([told, told]),
                )
            ).video[:, :, first:]
            x = x + (following - now) * velocity
        latents = torch.cat([latents, x], dim=2)
    return latents


@pytest.mark.parametrize(("name", "told"), [("repwam", True), ("repwam", False), ("lingbot_va", False)])
def test_a_roll_out_with_its_cache_is_the_one_without(name, told, monkeypatch):
    """Two layers, so that the past's keys depend on the past before them."""
    model = {"repwam": repwam, "lingbot_va": lingbot}[name]().eval()
    window = model.fake_sequence(FRAMES, seed=3)
    actions = window.actions[:, : 2 * FRAMES] if told else None
    pushed, stream = [], model.tokenizer.picture_stream
    sizes, observe = [], model._observed

    def spied():
        decoder = stream()
        push = decoder.push
        monkeypatch.setattr(decoder, "push", lambda latents: pushed.append(latents) or push(latents))
        return decoder

    def watched(*arguments):
        after = observe(*arguments)
        sizes.append(sum(row.size for row in after[0]))
        return after

    monkeypatch.setattr(model.tokenizer, "picture_stream", spied)
    monkeypatch.setattr(model, "_observed", watched)
    pieces = list(model.roll_out(window.observation(), actions, frames=FRAMES))
    expected = uncached(model, window, told)
    torch.testing.assert_close(torch.cat(pushed, dim=2), expected, **CLOSE)
    # Chunks of two frames and one of one; each as it would stand in the whole video.
    assert [piece.values.shape[1] for piece in pieces] == [8, 8, 4]
    video = torch.cat([piece.values for piece in pieces], dim=1)
    monkeypatch.undo()
    torch.testing.assert_close(video, model.tokenizer.decode(expected)[:, 1:].float(), **CLOSE)
    times = torch.cat([piece.times[0] for piece in pieces])
    assert times.tolist() == pytest.approx(model.config.offsets_s(FRAMES)[1:])
    # One, three and five frames were seen, of which three are kept.
    assert sizes[0] < sizes[1]
    assert len(sizes) == 3


def test_what_is_kept_does_not_grow_with_the_episode(monkeypatch):
    model = repwam(**SHALLOW).eval()
    sizes, observe = [], model._observed

    def watched(*arguments):
        after = observe(*arguments)
        sizes.append(sum(row.size for row in after[0]))
        return after

    monkeypatch.setattr(model, "_observed", watched)
    actions = torch.zeros(2, 2 * 14, 5)
    assert sum(piece.values.shape[1] for piece in model.roll_out(look(model.fake_sequence(1), 0), actions)) == 56
    assert sizes[2:] == [sizes[2]] * 5


def shaded(model, seed: int, rows: int = 16, frames: int = 4) -> Window:
    """A world that only the actions tell of: a latent frame is dark or bright as they say, whatever was before."""
    window = model.fake_sequence(frames, rows, seed=seed)
    signs = torch.randint(0, 2, (rows, frames), generator=seeded(seed)) * 2 - 1
    actions = torch.zeros_like(window.actions)
    actions[:, : 2 * frames] = signs.repeat_interleave(2, dim=1).unsqueeze(-1).float()
    shades = torch.cat([torch.full((rows, 1), 128), (128 + 88 * signs).repeat_interleave(4, dim=1)], dim=1)
    ramp = torch.linspace(0, 39, 16).expand(3, 16, 16)  # latents are normalised: a plain picture has none
    pictures = (shades[:, :, None, None, None] + ramp).to(torch.uint8)
    return replace(window, frames={"front": pictures}, actions=actions)


@pytest.mark.timeout(300)
def test_a_model_that_was_trained_listens_to_actions_over_a_whole_episode(monkeypatch):
    """Forward dynamics learned in 120 steps: swapped actions lead elsewhere, none lead to the mean of both shades."""
    torch.manual_seed(0)
    model = repwam(pictures="held", action_dropout=0.2, text_dropout=0.0)
    model.prepare_stage("adapt")
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for step in range(120):
        losses = model.loss(shaded(model, step), "adapt", seeded(step))
        optimizer.zero_grad()
        losses.total().backward()
        optimizer.step()
    model.eval()
    window = shaded(model, 9999)
    true, look, actions = model.latents_of(window)[0][:, :, 1:], window.observation(), window.actions[:, :8]
    stream = model.tokenizer.picture_stream

    def error(told: torch.Tensor | None) -> float:
        """In latents: the tokenizer is not trained."""
        pushed = []
        decoder = stream()
        monkeypatch.setattr(decoder, "push", lambda x, push=decoder.push: pushed.append(x) or push(x))
        monkeypatch.setattr(model.tokenizer, "picture_stream", lambda: decoder)
        assert list(model.roll_out(look, told, frames=None if told is not None else 4))
        return float((torch.cat(pushed, dim=2)[:, :, 1:] - true).square().mean())

    own, swapped, none = error(actions), error(actions.roll(1, dims=0)), error(None)
    assert swapped > 5 * own
    assert none > 3 * own


def test_imagine_is_the_roll_out_in_one(model):
    observation = model.fake_sequence(1, seed=3).observation()
    pieces = list(model.roll_out(observation, frames=3))
    future = model.imagine(observation, frames=3)
    torch.testing.assert_close(torch.cat([piece.values for piece in pieces], dim=1), future.values)
    torch.testing.assert_close(torch.cat([piece.times for piece in pieces], dim=1), future.times)
    torch.testing.assert_close(pieces[1].present, future.present)


def test_a_longer_roll_out_begins_as_a_shorter_one_and_draws_from_a_generator(model):
    observation = model.fake_sequence(1, seed=3).observation()
    long, short = (torch.cat([p.values for p in model.roll_out(observation, frames=n)], dim=1) for n in (3, 2))
    torch.testing.assert_close(long[:, :8], short, **CLOSE)
    one, same, other = (model.imagine(observation, frames=1, generator=seeded(seed)).values for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert (one - other).abs().max() > 1e-3


def test_held_pictures_are_one_a_frame():
    held = repwam(pictures="held", **SHALLOW).eval()
    window = held.fake_sequence(3)
    pieces = list(held.roll_out(window.observation(), window.actions[:, :6]))
    assert [piece.times[0].tolist() for piece in pieces] == [pytest.approx([0.2, 0.4]), pytest.approx([0.6])]


def test_roll_outs_that_cannot_be_are_refused():
    model = repwam(**SHALLOW).eval()
    window = model.fake_sequence(2)
    with pytest.raises(StageError, match="whole latent frames"):
        next(model.roll_out(window.observation(), window.actions[:, :3]))
    with pytest.raises(StageError, match="at least one latent frame"):
        next(model.roll_out(window.observation(), frames=0))
    small = replace(window.observation(), images={"front": window.frames["front"][:, 0, :, :8, :8]})
    with pytest.raises(CanvasError, match=r"\(8, 8\) pixels, the model takes \(16, 16\)"):
        next(model.roll_out(small, window.actions[:, :4]))
    with pytest.raises(WamkitError, match="one horizon from one look"):
        light().roll_out(window.observation())


def test_models_that_go_on_from_what_they_imagined_say_so():
    known = {name: model_class(name) for name in model_names()}
    says = {name for name, one in known.items() if one.capabilities.rolls_out}
    assert says == {name for name, one in known.items() if one.roll_out is not WorldActionModel.roll_out}
    assert says == {"repwam", "lingbot_va"}
