"""Windows are right in physical time: every frame, state and action says which row it came from."""

from __future__ import annotations

import json

import numpy as np
import pytest

from wamkit.configuration import ConfigError, from_dict, to_dict
from wamkit.data.embodiments import UnknownEmbodimentError
from wamkit.data.mixture import Mixture
from wamkit.data.windows import MixtureEntry, WindowError, WindowSpec


def mixture(source, store, entry=None, **spec):
    settings = {"resolution": (4, 6)} | spec
    return Mixture([MixtureEntry(source=source, frame_store=store(source), **(entry or {}))], WindowSpec(**settings))


def rows_shown(window, camera="front"):
    """The number in each frame, [B, T]."""
    return window.frames[camera][:, :, 0, 0, 0].tolist()


# Frames


def test_frames_lie_at_their_offsets(numbered, store):
    window = mixture(numbered(), store, frame_offsets_s=(0.0, 0.3, -0.2)).windows_at(0, [0, 1], [2, 4])
    assert rows_shown(window) == [[2, 5, 0], [14, 17, 12]]
    assert window.frame_times == pytest.approx(np.array([[0.0, 0.3, -0.2]] * 2), abs=1e-6)
    assert window.frame_valid["front"].all()
    assert window.state[:, :, 0].tolist() == [[2, 5, 0], [14, 17, 12]]
    assert window.task == ("push", "")


def test_frames_are_the_nearest_truly_recorded_ones(numbered, store):
    # RT-1: 3 Hz, 1.2 s is 3.6 rows. DROID: rows at 15 Hz, frames at 5 Hz.
    slow = mixture(numbered(fps=3.0, video_rate_hz=3.0), store, frame_offsets_s=(0.0, 1.2)).windows_at(0, [0], [1])
    assert rows_shown(slow) == [[1, 5]]
    assert slow.frame_times[0, 1].item() == pytest.approx(4 / 3)
    droid = numbered(lengths=(20, 20), fps=15.0, video_rate_hz=5.0)
    window = mixture(droid, store, frame_offsets_s=(0.0, 0.3, 0.32)).windows_at(0, [0, 0], [0, 6])
    assert rows_shown(window) == [[0, 3, 6], [6, 9, 12]]  # 0.3 s is 4.5 rows: half-way, the earlier
    assert window.frame_times[1].tolist() == pytest.approx([0.0, 0.2, 0.4])
    # The state belongs to the frame that is shown, not to the moment that was asked for.
    assert window.state[0, :, 0].tolist() == [0, 3, 6]


def test_windows_begin_where_the_frame_shows_the_present(numbered, store):
    droid = numbered(lengths=(10,), fps=15.0, video_rate_hz=5.0)
    begun = mixture(droid, store)
    assert len(begun) == 4
    assert sorted(begun.locate(range(4))[2].tolist()) == [0, 3, 6, 9]
    anywhere = mixture(droid, store, starts="rows")
    assert len(anywhere) == 10
    window = anywhere.windows_at(0, [0, 0], [2, 5])
    assert rows_shown(window) == [[0], [3]]  # the newest frame that existed then, not the nearest
    assert window.frame_times[:, 0].tolist() == pytest.approx([-2 / 15, -2 / 15])
    assert window.frame_valid["front"].all()


def test_past_the_end_the_last_frame_stands_in_and_is_marked(numbered, store):
    window = mixture(numbered(lengths=(6, 4)), store, frame_offsets_s=(0.0, 0.4)).windows_at(0, [0, 0, 0], [1, 2, 5])
    assert rows_shown(window) == [[1, 5], [2, 5], [5, 5]]
    assert window.frame_valid["front"].tolist() == [[True, True], [True, False], [True, False]]
    assert window.state_valid[:, :, 0].tolist() == [[True, True], [True, False], [True, False]]


def test_before_the_beginning_too(numbered, store):
    window = mixture(numbered(), store, frame_offsets_s=(0.0, -0.3)).windows_at(0, [1], [1])
    assert rows_shown(window) == [[11, 10]]
    assert window.frame_valid["front"].tolist() == [[True, False]]


def test_starts_without_the_whole_horizon_can_be_dropped(numbered, store):
    source = numbered(lengths=(6, 4, 2))
    dropped = mixture(source, store, frame_offsets_s=(0.0, 0.3), past_end="drop")
    _, episodes, rows = dropped.locate(range(len(dropped)))
    assert sorted(zip(episodes.tolist(), rows.tolist(), strict=True)) == [(0, 0), (0, 1), (0, 2), (1, 0)]
    chunked = mixture(source, store, chunk_s=0.4, past_end="drop")
    assert len(chunked) == 3 + 1
    window = chunked.window(range(4))
    assert window.action_valid.all()


def test_the_last_offset_can_depend_on_the_embodiment(numbered, store):
    spec = {"frame_offsets_s": (0.0, 0.5), "last_offset_by_embodiment": (("human", 0.2),)}
    assert rows_shown(mixture(numbered(embodiment="human"), store, **spec).windows_at(0, [0], [0])) == [[0, 2]]
    assert rows_shown(mixture(numbered(), store, **spec).windows_at(0, [0], [0])) == [[0, 5]]


def test_jitter_moves_later_frames_only_and_within_bounds(numbered, store):
    mixed = mixture(numbered(lengths=(40,)), store, frame_offsets_s=(0.0, 1.0), frame_jitter_s=0.35, past_end="drop")
    window = mixed.window(range(60))
    steps = (window.frames["front"][:, 1, 0, 0, 0].int() - window.frames["front"][:, 0, 0, 0, 0].int()).tolist()
    assert set(steps) <= {6, 7, 8, 9, 10, 11, 12, 13, 14}
    assert len(set(steps)) > 4
    assert window.frame_valid["front"].all()
    assert (mixed.window(range(60)).frames["front"] == window.frames["front"]).all()


def test_an_absent_camera_is_black_and_invalid(numbered, store):
    source = numbered(cameras=("front", "wrist"), absent={1: ("wrist",)})
    window = mixture(source, store, frame_offsets_s=(0.0, 0.1)).windows_at(0, [0, 1], [0, 0])
    assert window.frame_valid["wrist"].tolist() == [[True, True], [False, False]]
    assert window.frame_valid["front"].all()
    assert window.state_valid.all()


# Actions


@pytest.mark.parametrize(("rate", "count"), [(3.0, 4), (5.0, 6), (15.0, 18), (20.0, 24), (30.0, 36)])
def test_a_chunk_holds_tau_times_rate_actions(rate, count):
    assert WindowSpec(chunk_s=1.2).action_count(rate) == count


def test_rounding_is_the_papers_and_flooring_the_codes():
    assert WindowSpec(chunk_s=0.3).action_count(20.0) == 6  # 5.999... in floating point
    assert WindowSpec(chunk_s=0.3, valid_steps="floor").action_count(20.0) == 6
    assert WindowSpec(chunk_s=1.6).action_count(3.0) == 5
    assert WindowSpec(chunk_s=1.6, valid_steps="floor").action_count(3.0) == 4


def test_actions_carry_their_times_and_end_with_the_episode(numbered, store):
    window = mixture(numbered(), store, chunk_s=0.4, max_actions=6).windows_at(0, [0, 1], [3, 7])
    assert window.actions.shape == (2, 6, 3)
    assert window.actions[:, :4, 0].tolist() == [[3, 4, 5, 6], [17, 18, 0, 0]]
    assert window.action_valid[:, :, 0].tolist() == [[True] * 4 + [False] * 2, [True] * 2 + [False] * 4]
    assert window.action_times[0].tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert window.rate_hz.tolist() == [10.0, 10.0]


def test_a_stride_views_the_recording_at_a_lower_rate(numbered, store):
    source = numbered(lengths=(12,))
    entry = {"stride": 2, "combine": ("sum", "last", "sum")}
    window = mixture(source, store, entry, chunk_s=0.4).windows_at(0, [0, 0], [3, 9])
    assert window.rate_hz.tolist() == [5.0, 5.0]
    assert window.action_times[0].tolist() == pytest.approx([0.0, 0.2])
    assert window.actions[0, :, 0].tolist() == [3 + 4, 5 + 6]
    assert window.actions[0, :, 1].tolist() == pytest.approx([4.1, 6.1])
    # Rows 9 + 10 make one action; 11 alone makes none.
    assert window.action_valid[1, :, 0].tolist() == [True, False]
    assert window.actions[1, 1].tolist() == [0, 0, 0]


def test_strided_statistics_have_a_key_of_their_own(numbered):
    entry = MixtureEntry(source=numbered(fps=20.0, embodiment="metaworld"), stride=4)
    assert entry.statistics_key == "metaworld@5Hz"
    assert MixtureEntry(source=numbered(), statistics="shared").statistics_key == "shared"


def test_action_free_recordings_are_windows(numbered, store):
    window = mixture(numbered(action_dim=0, state_dim=0), store, frame_offsets_s=(0.0, 0.2), chunk_s=1.0).window(
        range(3)
    )
    assert window.actions.shape == (3, 0, 0)
    assert window.state.shape == (3, 2, 0)
    assert window.frame_valid["front"][:, 0].all()


def test_without_a_chunk_there_are_no_actions(numbered, store):
    assert mixture(numbered(), store).window(range(2)).actions.shape == (2, 0, 0)


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frame_offsets_s": (0.1,)}, r"must begin with 0\.0"),
        ({"frame_offsets_s": ()}, "must begin with"),
        ({"chunk_s": 0.0}, "positive length"),
        ({"frame_jitter_s": -1.0}, "not be negative"),
        ({"last_offset_by_embodiment": (("human", 0.4),)}, "second frame"),
    ],
)
def test_specs_that_make_no_sense(settings, message):
    with pytest.raises(WindowError, match=message):
        WindowSpec(**settings)


def test_an_unknown_embodiment_in_a_spec_gets_a_suggestion():
    with pytest.raises(UnknownEmbodimentError, match="Did you mean 'human'"):
        WindowSpec(frame_offsets_s=(0.0, 1.0), last_offset_by_embodiment=(("humn", 0.4),))


def test_a_spec_survives_json():
    spec = WindowSpec(
        frame_offsets_s=(0.0, 1.2), last_offset_by_embodiment=(("human", 0.4),), chunk_s=1.2, resolution=(3, 4)
    )
    assert from_dict(WindowSpec, json.loads(json.dumps(to_dict(spec)))) == spec
    with pytest.raises(ConfigError, match="Did you mean 'chunk_s'"):
        from_dict(WindowSpec, {"chunk": 1.0})


def test_a_chunk_too_short_for_one_action(numbered, store):
    with pytest.raises(WindowError, match=r"no action at 10 Hz: set chunk_s to at least 0\.1"):
        mixture(numbered(), store, chunk_s=0.04)


@pytest.mark.parametrize("column", ["action", "observation.state"])
def test_values_that_are_not_finite_name_the_episode(numbered, store, column):
    source = numbered()
    source.columns[column][14, 1] = np.nan
    with pytest.raises(WindowError, match=rf"'{column}' of episode 1 .* not finite \(1 rows"):
        mixture(source, store, chunk_s=0.4)


def test_other_dimensions_than_named_are_refused(numbered, store):
    source = numbered()
    source.columns["action"] = source.columns["action"][:, :2]
    with pytest.raises(WindowError, match=r"'action' .* shape \(2,\) and 3 names"):
        mixture(source, store, chunk_s=0.4)


@pytest.mark.parametrize(
    ("entry", "spec", "message"),
    [
        ({"camera_map": {"image": "frnt"}}, {}, "no camera 'frnt'. Did you mean 'front'"),
        ({"camera_map": {"image": "front"}}, {"cameras": ("imag",)}, "has a camera 'imag'. Did you mean 'image'"),
        ({"camera_map": {"image": "front"}}, {"cameras": ("front",)}, "No recording has a camera 'front'"),
        ({"stride": 0}, {}, "at least 1"),
        ({"combine": ("sum",)}, {}, "one for each"),
        ({}, {"feature_views": 1}, "needs a feature_store"),
        ({}, {"resolution": 8}, "build it alike"),
        ({}, {"resize": "pad"}, "build it alike"),
    ],
)
def test_entries_that_do_not_fit(numbered, store, entry, spec, message):
    with pytest.raises(WindowError, match=message):
        mixture(numbered(), store, entry, **spec)


def test_a_store_without_the_chosen_episodes(numbered, store):
    source = numbered()
    entry = MixtureEntry(source=source, frame_store=store(source, episodes=[0]))
    with pytest.raises(WindowError, match="lacks episode 1"):
        Mixture([entry], WindowSpec(resolution=(4, 6)))
    with pytest.raises(WindowError, match="needs a frame_store"):
        Mixture([MixtureEntry(source=source)], WindowSpec(resolution=(4, 6)))
