"""What RepWAM and LingBot-VA share: losses, leakage, the ways to use one set of weights, episodes under way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from micro_causal import LINGBOT, lingbot, repwam
from micro_weights import seeded

from wamkit.encoders.base import ClipError
from wamkit.models.action_groups import ActionGroupError, flattened, grouped, steps_of
from wamkit.models.base import StageError
from wamkit.models.causal.config import CausalModelError
from wamkit.models.causal.episode import fork
from wamkit.models.causal.sampler import levels_down_to
from wamkit.types import Observation, Window

CLOSE = dict(rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module", params=[repwam, lingbot], ids=["repwam", "lingbot_va"])
def model(request):
    return request.param()


def changed(window: Window, first: int) -> Window:
    """Every picture from the given latent frame on inverted; frame 0 is the present."""
    frames = {camera: pictures.clone() for camera, pictures in window.frames.items()}
    for pictures in frames.values():
        pictures[:, 4 * first - 3 :] = 255 - pictures[:, 4 * first - 3 :]
    return replace(window, frames=frames)


def adapt(model, window: Window, seed: int = 0):
    return model.loss(window, "adapt", seeded(seed)).terms


def test_later_frames_reach_no_action(model):
    """The policy's term may see what was observed before a chunk, never the chunk's own frames: bit-equal."""
    window = model.fake_sequence(1)
    first, second = adapt(model, window), adapt(model, changed(window, 1))
    assert torch.equal(first["action"].value, second["action"].value)
    assert not torch.equal(first["inverse"].value, second["inverse"].value)
    # Of three chunks of one frame the last frame is nobody's history.
    whole = model.__class__(replace(model.config, max_chunk_frames=1))
    whole.load_state_dict(model.state_dict())
    longer = whole.fake_sequence(3)
    same, other = (adapt(whole, changed(longer, n))["action"].value for n in (3, 2))
    original = adapt(whole, longer)["action"].value
    assert torch.equal(original, same)
    assert not torch.equal(original, other)


def test_dropped_actions_reach_neither_frames_nor_policy():
    """With all of them dropped, what was done before changes no prediction of the policy or of the frames."""
    model = repwam(action_dropout=1.0, forward_share=0.0, max_chunk_frames=1).train()
    window = model.fake_sequence(3)
    done = replace(window, actions=window.actions.clone())
    done.actions[:, :4] += 1.0
    one, two = (model.loss(w, "adapt", seeded()) for w in (window, done))
    assert torch.equal(one.terms["video"].value, two.terms["video"].value)
    told = repwam(forward_share=0.0, max_chunk_frames=1).train()
    one, two = (told.loss(w, "adapt", seeded()) for w in (window, done))
    assert not torch.equal(one.terms["video"].value, two.terms["video"].value)


def test_losses_of_windows_without_actions_and_past_the_end(model):
    window = model.fake_sequence(2)
    free = replace(window, action_valid=torch.zeros_like(window.action_valid))
    terms = adapt(model, free)
    assert terms["video"].valid.all()
    assert not terms["action"].valid.any()
    assert not terms["inverse"].valid.any()
    empty = dict(actions=torch.zeros(2, 0, 0), action_valid=torch.zeros(2, 0, 0, dtype=torch.bool))
    # Video of people, at a rate that no latent frame of a robot's would take.
    none = replace(window, **empty, action_times=torch.zeros(2, 0), rate_hz=torch.tensor([29.97, 29.97]))
    assert adapt(model, none)["video"].valid.all()
    ended = {camera: valid.clone() for camera, valid in window.frame_valid.items()}
    for valid in ended.values():
        valid[0, 1:] = False
    terms = adapt(model, replace(window, frame_valid=ended))
    assert terms["video"].valid.tolist() == [False, True]


def test_junk_in_padding_has_no_say(model):
    window = model.fake_sequence(2)
    assert not window.action_valid.all()
    junk = replace(window, actions=torch.where(window.action_valid, window.actions, 1e6))
    for name, term in adapt(model, window).items():
        assert torch.equal(term.value, adapt(model, junk)[name].value), name


def test_overfits_one_batch(model):
    model = model.__class__(model.config)
    torch.manual_seed(0)
    model.prepare_stage("adapt")
    window = model.fake_sequence(2)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    values = []
    for step in range(25):
        losses = model.loss(window, "adapt", seeded(step % 2))
        values.append({name: value.item() for name, value in losses.scalars().items()})
        optimizer.zero_grad()
        losses.total().backward()
        optimizer.step()
    for name in ("action", "inverse", "video"):
        assert values[-1][name] < 0.9 * values[0][name], name


# Groups


def test_actions_in_groups_and_back():
    steps = torch.tensor([4, 3])
    actions = torch.arange(2 * 8, dtype=torch.float32).view(2, 8, 1)
    groups, held = grouped(actions, steps, 2, 4)
    assert groups[1, 1, :, 0].tolist() == [11.0, 12.0, 13.0, 0.0]
    assert held.sum(dim=(1, 2)).tolist() == [8, 6]
    back = flattened(groups, steps)
    assert torch.equal(back[0], actions[0])
    assert back[1, :, 0].tolist() == [8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 0.0, 0.0]


def test_control_rates_that_do_not_fit_are_refused():
    options = dict(frame_s=0.1, slots=8, valid_steps="round")
    assert steps_of(torch.tensor([80.0, 20.0]), **options).tolist() == [8, 2]
    with pytest.raises(ActionGroupError, match=r"1\.50 actions at 15 Hz"):
        steps_of(torch.tensor([15.0]), **options)
    with pytest.raises(ActionGroupError, match=r"from 1 to 8"):
        steps_of(torch.tensor([100.0]), **options)


def of_pictures(window: Window, count: int) -> Window:
    by_camera = {
        name: {camera: value[:, :count] for camera, value in getattr(window, name).items()}
        for name in ("frames", "frame_valid")
    }
    plain = {name: getattr(window, name)[:, :count] for name in ("frame_times", "state", "state_valid")}
    return replace(window, **by_camera, **plain)


def test_windows_that_do_not_fit_are_refused(model):
    window = model.fake_sequence(2)
    odd = of_pictures(window, 8)
    with pytest.raises(ClipError, match="8 pictures"):
        adapt(model, odd)
    still = of_pictures(window, 1)
    with pytest.raises(StageError, match="frame_offsets_s"):
        adapt(model, still)
    few = {name: getattr(window, name)[:, :3] for name in ("actions", "action_valid", "action_times")}
    short = replace(window, **few)
    with pytest.raises(StageError, match=r"chunk_s to 0\.4"):
        adapt(model, short)


# Modes of one set of weights


def at(observation: Observation, rows: list[int]) -> Observation:
    return Observation(
        images={camera: pictures[rows] for camera, pictures in observation.images.items()},
        task=tuple(observation.task[row] for row in rows),
        embodiment=observation.embodiment[rows],
        state=None,
        rate_hz=observation.rate_hz[rows],
    )


def test_modes_of_one_set_of_weights(model):
    model.eval()
    window = model.fake_sequence(3)
    observation = window.observation()
    noise = torch.randn(2, *model.action_noise_shape, generator=seeded())
    chunks = {}
    for mode in ("video_and_action", "action_only"):
        model.recall(None)
        chunk = model.act(observation, noise=noise, mode=mode)
        chunks[mode] = chunk.actions
        assert chunk.valid.sum(dim=1).tolist() == [4, 4]
        assert torch.equal(chunk.actions[~chunk.valid], torch.zeros_like(chunk.actions[~chunk.valid]))
    assert not torch.allclose(chunks["video_and_action"], chunks["action_only"], atol=1e-4)
    found = model.actions_of(window.frames, window.task, window.rate_hz, generator=seeded())
    assert found.valid.sum(dim=1).tolist() == [6, 6]
    other = model.actions_of(changed(window, 2).frames, window.task, window.rate_hz, generator=seeded())
    # Chunks of two frames: the second frame changes the first chunk's actions too.
    assert not torch.allclose(found.actions, other.actions, atol=1e-4)
    film = model.imagine(observation, frames=3)
    assert film.values.shape[1] == 12
    assert film.times[0].tolist() == pytest.approx(model.config.offsets_s(3)[1:])
    told = model.__class__.capabilities.action_conditioned
    if not told:
        with pytest.raises(StageError, match="beside_video"):
            model.imagine(observation, window.actions[:, :4])
        return
    under = model.imagine(observation, window.actions[:, :6])
    swapped = model.imagine(observation, window.actions[:, :6].flip(0))
    assert under.values.shape == film.values.shape
    assert not torch.allclose(under.values, swapped.values, atol=1e-5)
    with pytest.raises(StageError, match="whole latent frames"):
        model.imagine(observation, window.actions[:, :5])


def test_partial_denoising_stops_where_it_is_told():
    levels = levels_down_to(0.4, 3, 1.0, "cpu")
    assert levels.tolist() == pytest.approx([1.0, 0.8, 0.6, 0.4])
    shifted = levels_down_to(0.4, 3, 5.0, "cpu")
    assert shifted[0].item() == 1.0
    assert shifted[-1].item() == pytest.approx(0.4)


def test_guidance_carries_two_pasts():
    guided = repwam(action_guidance=2.0).eval()
    plain = repwam().eval()
    observation = guided.fake_sequence(1).observation()
    noise = torch.randn(2, *guided.action_noise_shape, generator=seeded())
    chunk = guided.act(observation, noise=noise, mode="action_only").actions
    assert not torch.allclose(chunk, plain.act(observation, noise=noise, mode="action_only").actions, atol=1e-4)
    (first, _) = guided.remember()
    assert len(first.rows) == 2
    # Without an instruction both pasts are one, and guidance changes nothing.
    silent = replace(observation, task=("", ""))
    guided.recall(None)
    plain.recall(None)
    expected = plain.act(silent, noise=noise, mode="action_only").actions
    torch.testing.assert_close(guided.act(silent, noise=noise, mode="action_only").actions, expected, **CLOSE)


# Episodes under way


def episode_windows(model, frames: int = 6) -> Window:
    return model.fake_sequence(frames, seed=3)


def step(model, window: Window, frame: int, rows: list[int], noise: torch.Tensor):
    """One more latent frame of these rows: its actions, its pictures, the act at its end. 2 actions a frame."""
    if frame:
        model.executed(window.actions[rows, 2 * (frame - 1) : 2 * frame])
        between = {camera: pictures[rows, 4 * frame - 3 : 4 * frame] for camera, pictures in window.frames.items()}
        model.observed(between)
    seen = {camera: pictures[rows, 4 * frame] for camera, pictures in window.frames.items()}
    return model.act(replace(at(window.observation(), rows), images=seen), noise=noise[rows])


def test_rows_join_and_leave_and_never_mix(model):
    """Two episodes, begun at different times and run in one batch, act as each does alone."""
    model.eval()
    window = episode_windows(model)
    noise = torch.randn(2, *model.action_noise_shape, generator=seeded())
    alone = []
    for row in (0, 1):
        model.recall(None)
        alone.append([step(model, window, frame, [row], noise).actions for frame in range(4)])
    model.recall(None)
    step(model, window, 0, [0], noise)
    step(model, window, 1, [0], noise)
    (older,) = model.remember()
    # The second episode begins while the first goes on.
    model.recall((older,))
    model.executed(window.actions[[0], 2:4])
    model.observed({camera: pictures[[0], 5:8] for camera, pictures in window.frames.items()})
    (waiting,) = model.remember()
    model.recall((None, waiting))
    seen = {c: torch.stack([p[1, 0], p[0, 8]]) for c, p in window.frames.items()}
    both = model.act(replace(at(window.observation(), [1, 0]), images=seen), noise=noise[[1, 0]])
    torch.testing.assert_close(both.actions[0], alone[1][0][0], **CLOSE)
    torch.testing.assert_close(both.actions[1], alone[0][2][0], **CLOSE)
    younger, older = model.remember()
    model.recall((older,))
    last = step(model, window, 3, [0], noise)
    torch.testing.assert_close(last.actions, alone[0][3], **CLOSE)
    model.recall((younger,))
    again = step(model, window, 1, [1], noise)
    torch.testing.assert_close(again.actions, alone[1][1], **CLOSE)
    assert not torch.allclose(alone[0][3], alone[0][0], atol=1e-3)


def test_what_is_remembered_is_never_written_to(model):
    model.eval()
    window = episode_windows(model)
    noise = torch.randn(2, *model.action_noise_shape, generator=seeded())
    model.recall(None)
    step(model, window, 0, [0, 1], noise)
    memory = model.remember()
    first = step(model, window, 1, [0, 1], noise).actions
    model.recall(memory)
    assert torch.equal(step(model, window, 1, [0, 1], noise).actions, first)


def test_long_episodes_run_in_bounded_memory(model):
    model.eval()
    window = episode_windows(model, 7)
    noise = torch.zeros(2, *model.action_noise_shape)
    model.recall(None)
    sizes = []
    for frame in range(7):
        step(model, window, frame, [0], noise)
        (episode,) = model.remember()
        sizes.append(sum(row.size for row in episode.rows))
        assert episode.rows[0].frames == frame + 1
    assert sizes[0] < sizes[1] < sizes[3] == sizes[-1]


def test_an_act_that_nobody_explained_is_refused(model):
    model.eval()
    window = episode_windows(model)
    noise = torch.zeros(2, *model.action_noise_shape)
    model.recall(None)
    first = step(model, window, 0, [0], noise)
    again = at(window.observation(), [0])
    assert torch.equal(model.act(again, noise=noise[:1]).actions, first.actions)
    moved = replace(again, images={camera: pictures[[0], 4] for camera, pictures in window.frames.items()})
    with pytest.raises(CausalModelError, match="nobody said what was executed"):
        model.act(moved, noise=noise[:1])
    with pytest.raises(CausalModelError, match=r"1 episodes are under way and 2 observations"):
        model.act(window.observation(), noise=noise)
    model.executed(window.actions[[0], :1])
    with pytest.raises(CausalModelError, match=r"a latent frame holds 2"):
        model.act(moved, noise=noise[:1])
    model.executed(window.actions[[0], 1:2])
    with pytest.raises(CausalModelError, match=r"seen 4 pictures.*it saw 1"):
        model.act(moved, noise=noise[:1])
    model.observed({camera: pictures[[0], 1:4] for camera, pictures in window.frames.items()})
    assert model.act(moved, noise=noise[:1]).actions.isfinite().all()  # nothing was lost by the refusals
    with pytest.raises(CausalModelError, match="2 robots say"):
        model.executed(window.actions[:, :2])
    # Another instruction is another episode.
    told = replace(moved, task=("close it",))
    model.act(told, noise=noise[:1])
    assert model.remember()[0].rows[0].frames == 1


def test_held_pictures_need_one_look_a_frame():
    held = repwam(pictures="held").eval()
    window = held.fake_sequence(3)
    assert held.picture_interval_s == pytest.approx(0.2)
    noise = torch.zeros(2, *held.action_noise_shape)
    held.act(window.observation(), noise=noise)
    held.executed(window.actions[:, :2])
    seen = replace(window.observation(), images={camera: p[:, 4] for camera, p in window.frames.items()})
    assert held.act(seen, noise=noise).actions.isfinite().all()
    assert held.imagine(seen, frames=2).times[0].tolist() == pytest.approx([0.2, 0.4])


def test_streams_are_forked_not_shared(model):
    pictures = model.clip_of(model.fake_sequence(2).frames)
    stream = model.tokenizer.stream()
    stream.push(pictures[:, :1])
    twin = fork(stream)
    twin.push(255 - pictures[:, 1:5])
    expected = model.tokenizer.eval().encode(pictures[:, :5])[:, :, 1:]
    torch.testing.assert_close(stream.push(pictures[:, 1:5]), expected, **CLOSE)


def test_configs_that_contradict_themselves_are_refused():
    with pytest.raises(CausalModelError, match="forward_share"):
        replace(LINGBOT, forward_share=0.5)
    with pytest.raises(CausalModelError, match="6 channels"):
        repwam(video=LINGBOT.video)
