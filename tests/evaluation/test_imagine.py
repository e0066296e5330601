"""imagine.json from a model: a toy world whose answers are known, and the real tiny LaWAM."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wamkit.dynamics.latent_action import LatentActionConfig
from wamkit.dynamics.latent_actions import latent_dynamics
from wamkit.dynamics.linear_transition import LinearTransitionConfig
from wamkit.evaluation.held_out import encode_held_out
from wamkit.evaluation.imagine import examples, imagine_report
from wamkit.evaluation.latent_action_metrics import add_latent_actions
from wamkit.evaluation.results import ResultsError
from wamkit.evaluation.world_metrics import WorldMetricsError
from wamkit.types import ActionChunk, Future, Window

SIDE, GRID = 8, 4


class ToyModel(torch.nn.Module):
    """Sees a bright patch on a 4 x 4 grid; the latent action is its displacement; it acts towards the subgoal."""

    def __init__(self, listens: bool = True) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(cameras=("image",))
        self.vision_encoder = SimpleNamespace(grid=(GRID, GRID))
        self.listens = listens
        self.action_noise_shape = (3, 2)

    def encode(self, frames):
        patches = torch.nn.functional.avg_pool2d(frames.float() / 255, SIDE // GRID).flatten(2).transpose(1, 2)
        return torch.cat([patches, torch.ones_like(patches) * 4], dim=-1)  # part of each token is a constant

    def _place(self, features):
        return features[..., 0].argmax(dim=1)

    def infer_latent_action(self, present, future):
        step = (self._place(future) - self._place(present)).float()
        return SimpleNamespace(mean=step[:, None, None].expand(-1, 1, 2))

    def predict(self, present, latent):
        step = latent[:, 0, 0].round().long() if self.listens else 1
        place = (self._place(present) + step) % (GRID * GRID)
        features = present.clone()
        features[..., :3] = 0
        features[torch.arange(len(place)), place, :3] = 1
        return features + 0.01

    def imagine(self, observation):
        present = self.encode(observation.images["image"])
        right = torch.tensor([1.0 if "right" in task else -1.0 for task in observation.task])
        values = self.predict(present, right[:, None, None].expand(-1, 1, 2))
        return Future(
            space="features", values=values[:, None], times=torch.full((len(values), 1), 0.2), present=present
        )

    def act(self, observation, *, noise, subgoal=None):
        goal = self.imagine(observation).values[:, 0] if subgoal is None else subgoal
        target = self._place(goal).float()[:, None, None].expand(-1, 3, 2)
        valid = torch.ones(len(target), 3, dtype=torch.bool)
        return ActionChunk(actions=target + 0.001 * noise, times=torch.zeros(len(target), 3), valid=valid)


def windows(batches: int = 6, size: int = 8, frames: int = 3):
    rng = np.random.default_rng(0)
    made = []
    for _ in range(batches):
        start = rng.integers(4, 10, size=size)
        direction = rng.choice([-1, 1], size=size)
        place = start[:, None] + direction[:, None] * np.arange(frames)
        pixels = torch.zeros(size, frames, 3, SIDE, SIDE, dtype=torch.uint8)
        for i, t in np.ndindex(size, frames):
            row, column = divmod(int(place[i, t]), GRID)
            pixels[i, t, :, row * 2 : row * 2 + 2, column * 2 : column * 2 + 2] = 255
        state = torch.tensor(place, dtype=torch.float32)[..., None] * torch.tensor([0.1, 0.2, 0.3])
        made.append(
            Window(
                frames={"image": pixels},
                frame_times=torch.arange(frames).mul(0.2).expand(size, -1),
                frame_valid={"image": torch.ones(size, frames, dtype=torch.bool)},
                state=state,
                state_valid=torch.ones_like(state, dtype=torch.bool),
                actions=torch.zeros(size, 3, 2),
                action_valid=torch.ones(size, 3, 2, dtype=torch.bool),
                action_times=torch.zeros(size, 3),
                rate_hz=torch.full((size,), 10.0),
                task=tuple("go right" if d > 0 else "go left" for d in direction),
                embodiment=torch.ones(size, dtype=torch.long),
            )
        )
    return made


EPISODES = np.arange(48) // 6


def test_toy_world_is_understood():
    model = ToyModel()
    held_out = encode_held_out(model, windows(), EPISODES)
    assert held_out.features.shape == (48, 3, 16, 6)
    np.testing.assert_allclose(held_out.horizon_s, [0.2, 0.4], atol=1e-6)
    positions = {"object": held_out.features[:, 0, :, :1].argmax(axis=1).astype(float)}
    report = imagine_report(model, held_out, positions=positions, provenance={"seeds": [0]})
    json.dumps(report, allow_nan=False)
    assert max(report["feature_error"]["ratio"]) < 0.05
    assert report["feature_error"]["policy"]["ratio"] < 0.05
    assert report["action_dependence"]["latent_action"]["ratio"] > 10
    assert report["latent_action_probe"]["r2"] > 0.99
    assert report["encoder_probe"]["end_effector"]["r2"] > 0.9
    assert report["encoder_probe"]["object"]["r2"] > 0.9
    belief = report["subgoal_belief"]
    assert belief["change_over_spread"] == pytest.approx(1, abs=0.02)
    assert belief["toward_partner"] == pytest.approx(1, abs=0.02)
    assert report["instruction_dependence"]["change"] == pytest.approx(2, abs=0.05)
    region = report["effect_region"]
    assert region["n"] == 48
    assert 0.99 * region["ci95"][0] <= region["ratio"] <= 1.01 * region["ci95"][1]
    assert region["true_ratio"] > 1
    moved = report["transfer"]
    assert moved["target_over_source"] > 1.5
    assert moved["recovered_r2"] == pytest.approx(1, abs=0.01)
    assert moved["partners"] == "of another instruction"
    assert set(report["not_measured"]) == {"action_dependence.action"}


def test_a_deaf_model_is_found_out():
    model = ToyModel(listens=False)
    report = imagine_report(model, encode_held_out(model, windows(), EPISODES))
    assert report["action_dependence"]["latent_action"]["ratio"] == pytest.approx(1.0)


def test_a_latent_action_that_marks_a_place_does_not_transfer():
    class Marks(ToyModel):
        """Its latent action is the place that becomes bright, wherever the bright patch was."""

        def infer_latent_action(self, present, future):
            return SimpleNamespace(mean=self._place(future).float()[:, None, None].expand(-1, 1, 2))

        def predict(self, present, latent):
            place = latent[:, 0, 0].round().long()
            features = present.clone()
            features[..., :3] = 0
            features[torch.arange(len(place)), place, :3] = 1
            return features

    marks, follows = (imagine_report(m, encode_held_out(m, windows(), EPISODES)) for m in (Marks(), ToyModel()))
    assert marks["transfer"]["target_over_source"] < 1 < follows["transfer"]["target_over_source"]
    assert marks["effect_region"]["ratio"] > 1  # in its own scene it looks as if it moved the arm


@pytest.mark.parametrize("kind", [LatentActionConfig, LinearTransitionConfig])
def test_a_model_that_holds_either_latent_action_is_measured(kind):
    sizes = dict(hidden=16) if kind is LinearTransitionConfig else dict(width=16, heads=2, encoder_layers=1)
    torch.manual_seed(0)

    class Holds(ToyModel):
        infer_latent_action = predict = imagine = property(lambda self: (_ for _ in ()).throw(AttributeError()))

        def __init__(self):
            super().__init__()
            self.latent_actions = latent_dynamics(kind(**sizes, latent_width=4), (GRID, GRID), 6)

    model = Holds()
    held_out = encode_held_out(model, windows(), EPISODES)
    assert held_out.latent.shape == (48, 1, 4)
    report = add_latent_actions({"not_measured": {}}, model, held_out)
    assert {"latent_action_probe", "action_dependence", "effect_region", "transfer"} - report.keys() <= (
        report["not_measured"].keys()
    )
    assert report["latent_action_probe"]["n_test"] == 48
    assert report["action_dependence"]["latent_action"]["n"] == 48


def test_a_model_of_clips_is_measured_between_latent_frames():
    """Latent frames of several pictures: pairs, times, states and pictures must be those of the same moments."""

    class Clips(ToyModel):
        capabilities = SimpleNamespace(imagines=("pixels",))

        def clip_of(self, frames):
            return frames["image"]

        def latents_of(self, window):
            pictures = window.frames["image"][:, ::4]
            features = self.encode(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])
            latents = features.permute(0, 3, 1, 2).unflatten(-1, (GRID, GRID))
            return latents, torch.ones(latents.shape[0], latents.shape[2], dtype=torch.bool)

    clips = []
    for window in windows():  # each of the three frames four times, the first once: 9 pictures, 3 latent frames
        at = torch.tensor([0, 1, 1, 1, 1, 2, 2, 2, 2])
        state = window.state[:, at].clone()
        state[:, [1, 2, 3, 5, 6, 7]] = 99.0  # not the pictures that latent frames speak of
        clips.append(
            replace(
                window,
                frames={"image": window.frames["image"][:, at]},
                frame_times=window.frame_times[:, at],
                frame_valid={"image": torch.ones(8, 9, dtype=torch.bool)},
                state=state,
                state_valid=torch.ones_like(state, dtype=torch.bool),
            )
        )
    clips[0].frame_valid["image"][1, 7] = False
    model = Clips()
    held_out = encode_held_out(model, clips, EPISODES)
    assert held_out.features.shape == (47, 3, 16, 6)
    assert (held_out.at, held_out.grid, held_out.pair, held_out.dropped) == ((0, 4, 8), (GRID, GRID), 1, 1)
    assert held_out.pair_s == pytest.approx(0.2)
    video = {"windows": {"n": 47}, "not_measured": {"fvd": "no weights"}}
    report = add_latent_actions(video, model, held_out)
    json.dumps(report, allow_nan=False)
    assert report["latent_action_probe"]["r2"] > 0.99
    assert report["latent_action_error"]["ratio"][0] < 0.05
    assert report["latent_action_error"]["horizon_s"] == pytest.approx([0.2])
    assert report["transfer"]["target_over_source"] > 1
    assert report["not_measured"] == {"fvd": "no weights"}
    subgoals, transfers = examples(model, held_out, count=2)
    assert subgoals[0].source == "roll-out under the inferred latent action"
    assert len(transfers) == 2
    bright = held_out.frames[:, 1].mean(axis=-1).reshape(47, -1).argmax(axis=1)
    assert (bright != held_out.frames[:, 0].mean(axis=-1).reshape(47, -1).argmax(axis=1)).all()


def test_incomplete_windows_are_dropped_and_counted():
    batches = windows()
    valid = batches[0].frame_valid["image"].clone()
    valid[:3, 2] = False
    batches[0] = replace(batches[0], frame_valid={"image": valid})
    held_out = encode_held_out(ToyModel(), batches, EPISODES)
    assert (len(held_out.features), held_out.dropped) == (45, 3)
    assert held_out.episodes[0] == EPISODES[3]
    assert held_out.windows[0].task == batches[0].task[3:]


def test_what_the_model_cannot_do_is_written_down():
    class ActsOnly(ToyModel):
        infer_latent_action = property(lambda self: (_ for _ in ()).throw(AttributeError()))

        def imagine(self, observation):
            raise ValueError("it imagines nothing")

        def act(self, observation, *, noise):
            right = torch.tensor([1.0 if "right" in task else -1.0 for task in observation.task])
            return ActionChunk(
                actions=right[:, None, None] + 0.001 * noise,
                times=torch.zeros(len(right), 3),
                valid=torch.ones(len(right), 3, dtype=torch.bool),
            )

    report = imagine_report(ActsOnly(), encode_held_out(ActsOnly(), windows(), EPISODES))
    assert report["not_measured"]["policy_subgoal"] == "it imagines nothing"
    for name in ("feature_error", "action_dependence", "effect_region", "latent_action_probe", "subgoal_belief"):
        assert name in report["not_measured"]
        assert name not in report
    assert report["instruction_dependence"]["toward_partner"] == pytest.approx(1, abs=0.02)


def test_one_episode_is_not_enough_and_says_so():
    report = imagine_report(ToyModel(), encode_held_out(ToyModel(), windows(1), np.zeros(8, int)))
    assert "two held-out episodes" in report["not_measured"]["feature_error"]


def test_refusals():
    model = ToyModel()
    with pytest.raises(WorldMetricsError, match="one for each window"):
        encode_held_out(model, windows(), EPISODES[:10])
    with pytest.raises(WorldMetricsError, match="no camera 'wrist'"):
        encode_held_out(model, windows(), EPISODES, camera="wrist")
    batches = windows()
    batches[1] = replace(batches[1], frame_times=batches[1].frame_times * 2)
    with pytest.raises(WorldMetricsError, match="one embodiment"):
        encode_held_out(model, batches, EPISODES)
    with pytest.raises(ResultsError, match=r"provenance\.loss is nan"):
        imagine_report(model, encode_held_out(model, windows(), EPISODES), provenance={"loss": float("nan")})


def test_examples_point_at_the_mover():
    model = ToyModel()
    held_out = encode_held_out(model, windows(), EPISODES)
    subgoals, transfers = examples(model, held_out, count=4)
    assert len(subgoals) == len(transfers) == 4
    assert {example.label for example in subgoals} == {"go left", "go right"}
    for example in subgoals:
        step = 1 if example.label == "go right" else -1
        assert example.similarity_true.argmax() == example.patch + step
        assert example.similarity_predicted.argmax() == example.patch + step
        assert example.now.shape == (SIDE, SIDE, 3)
    for example in transfers:
        assert example.source_label != example.target_label


def test_tiny_lawam_goes_through():
    lawam = pytest.importorskip("wamkit.models.lawam")
    torch.manual_seed(0)
    model = lawam.LaWAM(lawam.LaWAM.preset("tiny"))
    batches = [model.fake_window(2, seed=seed) for seed in range(2)]
    batches[1] = replace(batches[1], task=("push the puck",) * 2)
    held_out = encode_held_out(model, batches, np.arange(4) // 2)
    report = imagine_report(model, held_out)
    assert report["windows"] == {"n": 4, "episodes": 2, "dropped": 0}
    assert report["subgoal_belief"]["n"] == 4
    assert report["feature_error"]["horizon_s"] == pytest.approx([0.2])
    subgoals, _ = examples(model, held_out, count=2)
    assert subgoals[0].grid == (8, 8)
