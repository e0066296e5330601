"""The phases of the causal models: along an episode what `act` computes, at few shapes, recordable."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from micro_causal import LINGBOT, lingbot, repwam, video
from micro_weights import seeded

from wamkit.evaluation.arithmetic import dispatched_operations
from wamkit.inference.runtime import Runtime, RuntimeSettings
from wamkit.inference.runtime_record import LINEAR
from wamkit.models.causal.config import CausalModelError
from wamkit.models.causal.phases import rooms
from wamkit.types import ActionChunk, Observation, Window

FEW = dict(action_steps=2, video_steps=1)
SHALLOW = dict(video=replace(video(6), layers=1), window=1, **FEW)
"""One layer, one room: the first model has two of each."""
MODELS = {
    "repwam_acts": lambda: repwam(mode="action_only", **FEW),
    "repwam_imagines": lambda: repwam(**SHALLOW),
    "lingbot_va": lambda: lingbot(**SHALLOW | dict(video=replace(LINGBOT.video, layers=1))),
    "guided": lambda: repwam(video_guidance=2.0, action_guidance=1.5, **SHALLOW),
}
PER_FRAME = 2
"""Actions of a latent frame in `fake_sequence`, at half of the padded rate."""


@pytest.fixture(scope="module")
def made():
    """Models and their runtimes by name: recording is what these tests spend their time on."""
    return {}


def pair(made, name: str):
    if name not in made:
        model = MODELS[name]().eval()
        # Batches of one are filled up to two, larger ones parted.
        made[name] = model, Runtime(model, RuntimeSettings(precision="fp32", batch_sizes=(2,)))
    return made[name]


@pytest.fixture(params=MODELS)
def any_pair(request, made):
    return pair(made, request.param)


@pytest.fixture
def acting(made):
    return pair(made, "repwam_acts")


def looks(window: Window, frame: int) -> Observation:
    """What is seen at the end of a latent frame."""
    seen = {camera: pictures[:, 4 * frame] for camera, pictures in window.frames.items()}
    return replace(window.observation(), images=seen)


def tell(model, window: Window, frame: int) -> None:
    """What was done and seen on the way to it, since the one before."""
    model.executed(window.actions[:, PER_FRAME * (frame - 1) : PER_FRAME * frame])
    model.observed({c: pictures[:, 4 * frame - 3 : 4 * frame] for c, pictures in window.frames.items()})


def played(model, act, window: Window, frames: int) -> list[ActionChunk]:
    """The chunks of an episode that looks after each latent frame."""
    noise = noise_of(model, len(window.task))
    model.recall(None)
    chunks = []
    for frame in range(frames):
        if frame:
            tell(model, window, frame)
        chunks.append(act(looks(window, frame), noise))
    return chunks


def noise_of(model, rows: int) -> torch.Tensor:
    return torch.randn(rows, *model.action_noise_shape, generator=seeded())


def plainly(model):
    return lambda observation, noise: model.act(observation, noise=noise)


def by(runtime):
    return lambda observation, noise: runtime.act(observation, noise=noise)


def by_phases(model):
    phases = model.phases()

    @torch.no_grad()
    def act(observation: Observation, noise: torch.Tensor) -> ActionChunk:
        return phases.act(observation, noise)

    return act


def assert_close(chunk: ActionChunk, reference: ActionChunk, relative: float = 1e-5) -> None:
    assert (chunk.actions - reference.actions).abs().max() <= relative * reference.actions.abs().max()
    assert torch.equal(chunk.times, reference.times)
    assert torch.equal(chunk.valid, reference.valid)
    assert (chunk.imagined is None) == (reference.imagined is None)
    if chunk.imagined is not None:
        for name in ("values", "present", "times"):
            made, expected = getattr(chunk.imagined, name), getattr(reference.imagined, name)
            assert (made - expected).abs().max() <= relative * expected.abs().max()


FRAMES = 5
"""More than the window."""


def test_warming_up_prepares_all_that_an_episode_comes_through(acting):
    model, runtime = acting
    assert rooms(model.config.window) == (1, 3)
    window = model.fake_sequence(FRAMES, seed=3)
    model.recall(None)
    reports = runtime.warm_up([window.observation()])
    assert model.remember() is None
    calls = runtime.calls.held()
    # Rooms of one frame and of three, each after one and after two frames; and the first look.
    assert (len(reports), len(calls)) == (2, 2 * 2 + 1)
    assert all(call.seconds > 0 for call in calls)
    played(model, by(runtime), window, FRAMES)
    assert (len(runtime.reports()), len(runtime.calls.held()), runtime.evicted) == (2, 5, 0)


def test_along_an_episode_all_three_act_alike_at_few_shapes(any_pair):
    model, runtime = any_pair
    window = model.fake_sequence(FRAMES, seed=3)
    references = played(model, plainly(model), window, FRAMES)
    (kept, _) = model.remember()
    for act in (by_phases(model), by(runtime)):
        for chunk, reference in zip(played(model, act, window, FRAMES), references, strict=True):
            assert_close(chunk, reference)
        (own, _) = model.remember()
        assert len(own.rows) == len(kept.rows)
        for row, other in zip(own.rows, kept.rows, strict=True):
            assert row.frames == other.frames == FRAMES
            assert torch.equal(row.frame, other.frame)
            torch.testing.assert_close(row.keys, other.keys, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(row.values, other.values, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(references[-1].actions, references[0].actions, atol=1e-3)
    assert len(runtime.reports()) == len(rooms(model.config.window))


def test_nothing_of_the_past_or_the_words_is_projected_in_the_loop(any_pair):
    model, runtime = any_pair
    window = model.fake_sequence(1, seed=3)
    played(model, by(runtime), window, 1)
    _, loop = runtime.recordings(looks(window, 0))
    steps, layers = model.config.action_steps, model.config.video.layers
    # A layer: query-key-value, output, query to the words, output, two of the feed-forward. In and out at the ends.
    assert [node.target for node in loop.graph.nodes].count(LINEAR) == steps * (6 * layers + 2)


def test_rows_of_different_age_share_a_batch(acting):
    model, runtime = acting
    window, noise = model.fake_sequence(3, seed=3), noise_of(model, 2)
    first = replace(window, **_of_rows(window, [0]))
    chunks = {}
    for name, act in (("plain", plainly(model)), ("runtime", by(runtime))):
        played(model, act, first, 2)
        tell(model, first, 2)
        (older,) = model.remember()
        model.recall((None, older))
        seen = {c: torch.stack([p[1, 0], p[0, 8]]) for c, p in window.frames.items()}
        chunks[name] = act(replace(window.observation(), images=seen), noise)
        assert [episode.rows[0].frames for episode in model.remember()] == [1, 3]
    assert_close(chunks["runtime"], chunks["plain"])


def _of_rows(window: Window, rows: list[int]) -> dict:
    def cut(item):
        if isinstance(item, dict):
            return {name: cut(entry) for name, entry in item.items()}
        return tuple(item[row] for row in rows) if isinstance(item, tuple) else item[rows]

    return {name: cut(item) for name, item in vars(window).items() if item is not None}


def test_looking_at_programs_and_failing_move_no_episode(acting, monkeypatch):
    model, runtime = acting
    window, noise = model.fake_sequence(2, seed=3), noise_of(model, 2)
    played(model, by(runtime), window, 1)
    tell(model, window, 1)
    before = model.remember()
    runtime.programs(looks(window, 1))
    with monkeypatch.context() as broken:
        broken.setattr(runtime, "_shape", lambda inputs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            runtime.act(looks(window, 1), noise=noise)
    assert model.remember() is before
    runtime.act(looks(window, 1), noise=noise)
    assert [episode.rows[0].frames for episode in model.remember()] == [2, 2]
    with pytest.raises(CausalModelError, match="nobody said what was executed"):
        runtime.act(looks(window, 2), noise=noise)


def test_large_batches_run_in_parts_and_small_ones_are_filled_up(acting):
    model, runtime = acting
    window = model.fake_sequence(2, 3, seed=3)
    references = played(model, plainly(model), window, 2)
    for chunk, reference in zip(played(model, by(runtime), window, 2), references, strict=True):
        assert_close(chunk, reference)
    assert {report.shape["keys"][0] for report in runtime.reports()} == {2}
    assert {call.shape[0][0] for call in runtime.calls.held()} == {2}


def test_a_whole_look_takes_fewer_operations_than_plainly(acting):
    model, runtime = acting
    window, noise = model.fake_sequence(1, seed=3), noise_of(model, 2)
    played(model, by(runtime), window, 1)
    tell(model, window, 1)
    before = model.remember()
    plain = dispatched_operations(lambda: model.act(looks(window, 1), noise=noise))
    model.recall(before)
    prefix, loop = runtime.programs(looks(window, 1))
    observed = runtime.calls.held()[-1].program
    assert loop is not None
    assert observed.operations + prefix.operations + loop.operations < 0.6 * plain


def test_bf16_stays_near_fp32():
    model = repwam(mode="action_only", **SHALLOW).eval()
    window = model.fake_sequence(1, seed=3)
    (reference,) = played(model, plainly(model), window, 1)
    (chunk,) = played(model, by(Runtime(model, RuntimeSettings(precision="bf16"))), window, 1)
    cosine = torch.nn.functional.cosine_similarity(chunk.actions.flatten(), reference.actions.flatten(), dim=0)
    assert cosine >= 0.999
    assert not torch.equal(chunk.actions, reference.actions)


def test_an_instruction_is_encoded_once(monkeypatch):
    model = MODELS["guided"]().eval()
    encoded = []
    encode = model.text._encode
    monkeypatch.setattr(model.text, "_encode", lambda prompts: encoded.append(len(prompts)) or encode(prompts))
    played(model, by_phases(model), model.fake_sequence(1, seed=3), 2)
    assert encoded == [2]  # the batch's one instruction, and none


def test_rooms_end_at_the_window_and_are_few():
    assert rooms(64) == (1, 4, 16, 64)
    assert rooms(60) == (1, 4, 15, 60)
    assert rooms(2) == (1, 2)
    assert rooms(1) == (1,)
