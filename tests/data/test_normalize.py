"""Normalisation: round trips on real recordings, LeRobot's numbers, LeRobot's files, and no silent pass-through."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from wamkit.data.normalize import ACTION, STATE, Normalizer
from wamkit.data.statistics import MODES, NormalizationError, statistics_of

RNG = np.random.default_rng(0)
# A wide, a narrow, a constant, a nearly constant dimension, and a gripper that opens once in two hundred rows.
ROWS = np.stack(
    [
        RNG.normal(3.0, 10.0, 1000),
        RNG.normal(-1.0, 0.01, 1000),
        np.full(1000, 0.7),
        0.2 + RNG.normal(0.0, 1e-6, 1000),
        (np.arange(1000) % 200 == 0).astype(float),
    ],
    axis=1,
).astype(np.float32)


def fitted(mode: str, rows=ROWS, **settings) -> Normalizer:
    found = statistics_of(rows)
    return Normalizer({"custom": {STATE: found, ACTION: found}}, {STATE: mode, ACTION: mode}, **settings)


def real_recordings(test_data, name):
    """(states, actions) rows of a real recording, as its files have them."""
    if name == "unitree_g1":
        tables = [pq.read_table(path) for path in sorted((test_data / name).glob("data/*/*.parquet"))[:4]]
        columns = ("observation.state", "action")
        return tuple(np.concatenate([np.stack(t[c].to_numpy(zero_copy_only=False)) for t in tables]) for c in columns)
    notes = [json.loads(path.read_text()) for path in sorted((test_data / name).glob("annotation/*/*.json"))]
    if name == "droid":
        states = [np.asarray(note["observation.state.cartesian_position"]) for note in notes]
        actions = [np.asarray(note["action.cartesian_position"]) for note in notes]
        return np.concatenate(states), np.concatenate(actions)
    return tuple(np.concatenate([np.asarray(note[key]) for note in notes]) for key in ("state", "action"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["droid", "bridge", "rt1", "unitree_g1"])
def test_round_trip_on_real_recordings(test_data, name, mode):
    for values in real_recordings(test_data, name):
        assert len(values) > 90
        normalizer = fitted(mode, values)
        rows = values.astype(np.float32)
        there = normalizer.normalize_action(rows, "custom")
        back = normalizer.unnormalize_action(there, "custom")
        constant = list(normalizer.constant_dimensions(ACTION, "custom"))
        spread = np.ptp(values, axis=0)
        # float32's rounding of the range; a constant comes back as its centre.
        allowed = 1e-6 * np.maximum(spread, np.abs(values).max(axis=0))
        allowed[constant] += 2e-4
        assert np.all(np.abs(back - rows) <= allowed)
        assert np.isfinite(there).all()
        tensors = normalizer.normalize_action(torch.from_numpy(rows), "custom")
        assert np.allclose(tensors.numpy(), there, atol=1e-6)
        assert np.allclose(normalizer.unnormalize_action(tensors, "custom").numpy(), back, atol=1e-6)


@pytest.mark.parametrize(("mode", "low", "high"), [("MIN_MAX", 0, 100), ("QUANTILES", 1, 99), ("QUANTILE10", 10, 90)])
def test_ranges_map_to_plus_minus_one(mode, low, high):
    values = fitted(mode).normalize_state(ROWS, "custom")
    assert np.percentile(values[:, 0], [low, high]) == pytest.approx([-1, 1], abs=1e-4)
    assert np.percentile(values[:, 1], [low, high]) == pytest.approx([-1, 1], abs=1e-3)


def test_mean_std_whitens():
    values = fitted("MEAN_STD").normalize_state(ROWS, "custom")[:, :2]
    assert values.mean(0) == pytest.approx([0, 0], abs=1e-4)
    assert values.std(0) == pytest.approx([1, 1], abs=1e-4)


@pytest.mark.parametrize("mode", ["MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10"])
def test_constants_become_zero_and_come_back(mode):
    normalizer = fitted(mode)
    assert normalizer.constant_dimensions(STATE, "custom") == (2, 3)
    off = ROWS + np.float32(0.5)  # even a value that was never seen
    values = normalizer.normalize_state(off, "custom")
    assert not values[:, 2:4].any()
    back = normalizer.unnormalize_state(values + 3, "custom")
    assert np.allclose(back[:, 2:4], [0.7, 0.2], atol=1e-5)


def test_min_scale_can_be_chosen():
    assert fitted("MEAN_STD", min_scale=1e-8).constant_dimensions(STATE, "custom") == (2,)


@pytest.mark.parametrize("mode", ["QUANTILES", "QUANTILE10"])
def test_a_rarely_used_gripper_is_no_constant(mode):
    values = fitted(mode).normalize_action(ROWS, "custom")[:, 4]
    assert set(values.tolist()) == {-1.0, 1.0}


def test_nothing_is_clamped():
    assert fitted("MIN_MAX").normalize_state(np.full((1, 5), 1e3, np.float32), "custom")[0, 0] > 10
    assert fitted("QUANTILES").normalize_state(ROWS, "custom")[:, 0].max() > 1


def test_padded_dimensions_are_zero_in_and_gone_out():
    normalizer = fitted("MEAN_STD")
    padded = np.concatenate([ROWS[:4], np.full((4, 3), 9.0, np.float32)], axis=1)
    values = normalizer.normalize_action(padded[None], "custom")
    assert values.shape == (1, 4, 8)
    assert not values[..., 5:].any()
    assert normalizer.unnormalize_action(torch.from_numpy(values), "custom").shape == (1, 4, 5)


# LeRobot


@pytest.fixture(scope="module")
def lerobot_pipeline():
    return pytest.importorskip("lerobot.processor").DataProcessorPipeline


def lerobot_transition(rows):
    from lerobot.processor.converters import create_transition

    return create_transition(observation={STATE: torch.from_numpy(rows)}, action=torch.from_numpy(rows))


@pytest.mark.parametrize("mode", MODES)
def test_lerobot_reads_the_files_and_gets_the_same_numbers(lerobot_pipeline, tmp_path, mode):
    from lerobot.lerobot_types import TransitionKey

    normalizer = fitted(mode)
    normalizer.save(tmp_path)

    def run(name, rows):
        pipeline = lerobot_pipeline.from_pretrained(
            tmp_path,
            config_filename=f"{name}.json",
            to_transition=lambda transition: transition,
            to_output=lambda transition: transition,
        )
        result = pipeline(lerobot_transition(rows))
        return result[TransitionKey.OBSERVATION][STATE].numpy(), result[TransitionKey.ACTION].numpy()

    ours = normalizer.normalize_state(ROWS, "custom")
    for theirs in run("policy_preprocessor", ROWS):
        assert np.allclose(theirs, ours, atol=2e-4)
    back = normalizer.unnormalize_action(ours, "custom")
    assert np.allclose(run("policy_postprocessor", ours)[1], back, atol=2e-4)


def test_lerobot_refuses_several_embodiments_instead_of_misreading_them(lerobot_pipeline, tmp_path):
    found = statistics_of(ROWS)
    Normalizer({"droid": {ACTION: found}, "rt1": {ACTION: found}}).save(tmp_path)
    with pytest.raises(ImportError, match="wamkit_multi_embodiment_processor"):
        lerobot_pipeline.from_pretrained(tmp_path, config_filename="policy_preprocessor.json")


def test_statistics_that_lerobot_saved_are_read(lerobot_pipeline, tmp_path):
    from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.processor.normalize_processor import NormalizerProcessorStep

    features = {STATE: PolicyFeature(FeatureType.STATE, (5,)), ACTION: PolicyFeature(FeatureType.ACTION, (5,))}
    modes = {FeatureType.STATE: NormalizationMode.MEAN_STD, FeatureType.ACTION: NormalizationMode.MIN_MAX}
    found = {name: value for name, value in statistics_of(ROWS).items() if name != "count"}
    step = NormalizerProcessorStep(features, modes, stats={STATE: found, ACTION: found})
    lerobot_pipeline([step], name="policy_preprocessor").save_pretrained(tmp_path)
    loaded = Normalizer.load(tmp_path, embodiment="libero")
    assert loaded.modes == {STATE: "MEAN_STD", ACTION: "MIN_MAX"}
    assert loaded.embodiments == ("libero",)
    assert np.allclose(
        loaded.normalize_action(ROWS, "libero"), fitted("MIN_MAX").normalize_action(ROWS, "custom"), atol=1e-4
    )
    with pytest.raises(NormalizationError, match="control rate of 'libero' is not known"):
        loaded.rate_hz("libero")


# Our files


def test_saved_and_loaded_several_embodiments(tmp_path):
    statistics = {"droid": {STATE: statistics_of(ROWS), ACTION: statistics_of(ROWS[:, :3])}, "human": {}}
    before = Normalizer(statistics, {ACTION: "QUANTILES"}, rates={"droid": 15, "human": 30}, min_scale=1e-3)
    before.save(tmp_path)
    after = Normalizer.load(tmp_path)
    assert after.statistics_hash() == before.statistics_hash()
    assert after.rate_hz("human") == 30.0
    assert after.embodiments == ("droid", "human")
    assert np.array_equal(after.normalize_state(ROWS, "droid"), before.normalize_state(ROWS, "droid"))
    assert not after.has(ACTION, "human")


def test_the_hash_follows_the_numbers():
    hashes = {
        fitted("MEAN_STD").statistics_hash(),
        fitted("MIN_MAX").statistics_hash(),
        fitted("MEAN_STD", ROWS[:9]).statistics_hash(),
    }
    assert len(hashes) == 3
    assert fitted("MEAN_STD").statistics_hash() in hashes


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"steps": []}', '{"wamkit": {"modes": {}}}'])
def test_missing_and_broken_files(tmp_path, content):
    if content is not None:
        (tmp_path / "policy_preprocessor.json").write_text(content)
    with pytest.raises(NormalizationError, match=r"cannot be read|normalises nothing"):
        Normalizer.load(tmp_path)


@pytest.mark.parametrize("whole", [None, 0.5], ids=["missing", "cut short"])
def test_a_state_file_of_lerobots_that_cannot_be_read(tmp_path, whole):
    fitted("MEAN_STD").save(tmp_path)
    described = json.loads((tmp_path / "policy_preprocessor.json").read_text())
    del described["wamkit"]
    (tmp_path / "policy_preprocessor.json").write_text(json.dumps(described))
    assert Normalizer.load(tmp_path).embodiments == ("custom",)
    (state_file,) = (step["state_file"] for step in described["steps"] if "state_file" in step)
    stored = (tmp_path / state_file).read_bytes()
    (tmp_path / state_file).unlink()
    if whole is not None:
        (tmp_path / state_file).write_bytes(stored[: int(whole * len(stored))])
    with pytest.raises(NormalizationError, match=rf"{state_file} cannot be read .*: use a complete checkpoint folder"):
        Normalizer.load(tmp_path)


# What is not known


def test_unknown_names_get_a_suggestion():
    normalizer = fitted("MEAN_STD")
    with pytest.raises(NormalizationError, match=r"no statistics for 'custm'\. Did you mean 'custom'"):
        normalizer.normalize_state(ROWS, "custm")
    with pytest.raises(NormalizationError, match="Did you mean 'QUANTILES'"):
        fitted("quantile")
    with pytest.raises(NormalizationError, match="Did you mean 'action'"):
        Normalizer({}, {"actions": "MEAN_STD"})


def test_a_feature_without_statistics_does_not_pass_through():
    with pytest.raises(NormalizationError, match="no statistics of 'action' for 'human'"):
        Normalizer({"human": {STATE: statistics_of(ROWS)}}).normalize_action(ROWS, "human")


def test_fewer_dimensions_than_the_statistics():
    with pytest.raises(NormalizationError, match="5 dimensions in the statistics and 4 here"):
        fitted("MEAN_STD").normalize_state(ROWS[:, :4], "custom")
