"""The benchmarks that train: arms differ in what they say, toy runs reach the end and resume, docs match results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
TASK = "reach-v3"  # short demonstrations, of which clips can still be cut


@pytest.fixture(scope="module")
def _recorded(benchmark, rendering, tmp_path_factory) -> Path:
    closed_loop, folder = benchmark("_closed_loop"), tmp_path_factory.mktemp("recorded")
    flags = ["--toy", "--tasks", TASK, "--output_dir", str(folder)]
    options = closed_loop.parsed(closed_loop.parser("", [TASK], "recorded"), flags)
    closed_loop.record(options, ("corner2_near",))
    closed_loop.record(options, ("corner2_near",), unseen=2)
    return folder


@pytest.fixture
def toy_flags(_recorded, tmp_path) -> Callable[..., list[str]]:
    """Flags of a toy experiment into this test's folder, where its demonstrations are already; and of which kinds."""

    def flags(*kinds: str) -> list[str]:
        for kind in ("recordings", *kinds):
            shutil.copytree(_recorded / kind, tmp_path / kind)
        return ["--toy", "--json", "--tasks", TASK, "--output_dir", str(tmp_path)]

    return flags


@pytest.mark.parametrize("preset_name", ["tiny", "small"])
def test_ablations_have_equal_size_and_differ_in_one_thing(benchmark, preset_name):
    ablation = benchmark("ablation")
    from wamkit.configuration import to_dict
    from wamkit.models.lawam import preset

    models = ablation.configs(preset(preset_name))
    base = models["lawam"]
    counts = {name: ablation.active_parameters(config) for name, config in models.items()}
    assert all(abs(count / counts["lawam"] - 1) < 0.05 for count in counts.values()), counts
    # Without the wider expert the control would be well below: the matching is not idle.
    import dataclasses

    plain = ablation.active_parameters(dataclasses.replace(base, subgoal="none"))
    assert plain < 0.95 * counts["lawam"]

    allowed = {
        "lawam": set(),
        "without_lawm": {"subgoal", "action"},
        "without_distillation": {"distillation_weight"},
        "without_insulation": {"subgoal"},
        "no_world_model": {"subgoal", "action"},
    }
    assert models.keys() == allowed.keys()
    for name, config in models.items():
        changed = {key for key, value in to_dict(config).items() if value != to_dict(base)[key]}
        assert changed == allowed[name]
        assert dataclasses.replace(config.action, width=base.action.width) == base.action


def test_active_parameters_count_one_embodiment(benchmark):
    import torch

    from wamkit.nn.embodiment_linear import EmbodimentLinear

    modules = [torch.nn.Sequential(torch.nn.Linear(3, 2), EmbodimentLinear(32, 4, 5))]
    assert benchmark("ablation").acting_parameters(modules) == (3 * 2 + 2) + (4 * 5 + 5)


def test_branches_add_changes_and_keep_the_gripper(benchmark, tmp_path):
    mixed_frequency = benchmark("mixed_frequency")
    from wamkit.data.recorder import LeRobotRecorder

    with LeRobotRecorder(tmp_path / "r", 80, {}, ("x",), ("dx", "dy", "gripper_effort"), "metaworld") as recorder:
        for row in range(8):
            recorder.add_frame({}, [0.0], [1.0, row, row], "push")
        recorder.save_episode()
    dataset = mixed_frequency.mixed_dataset(SimpleNamespace(output_dir=tmp_path), tmp_path / "r")
    assert dataset.strides == (1, 2, 4)
    assert dataset.combine == (("sum", "sum", "last"),) * 3

    from wamkit.data.lerobot import LeRobotSource
    from wamkit.data.windows import MixtureEntry

    entry = MixtureEntry(source=LeRobotSource(tmp_path / "r"), stride=4, combine=dataset.combine[2])
    assert entry.feature_values()["action"][0].tolist() == [4.0, 0 + 1 + 2 + 3, 3.0]
    assert entry.statistics_key == "metaworld@20Hz"


def test_the_arms_of_mixed_frequency_differ_in_code_and_data_alone(benchmark):
    mixed_frequency = benchmark("mixed_frequency")
    native, mixed, index = mixed_frequency.arms(SimpleNamespace(preset="tiny"))
    assert native.model == mixed.model
    assert mixed.model.action.time_code == "seconds"
    assert index.model.action.time_code == "index"


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(300)
def test_closed_loop_experiments_run_and_resume(benchmark, tmp_path, toy_flags, last_line):
    flags = toy_flags()
    mixed_frequency, ablation = benchmark("mixed_frequency"), benchmark("ablation")
    mixed_frequency.main(flags)
    result = last_line()
    assert result["benchmark"] == "mixed_frequency"
    assert {name: arm["overall"]["n"] for name, arm in result["arms"].items()} == dict.fromkeys(
        ("native", "mixed", "mixed_index"), 1
    )
    assert [(line["arm"], line["baseline"]) for line in result["comparisons"]] == list(mixed_frequency.PAIRS)
    config = json.loads((tmp_path / "mixed/seed0/checkpoints/last/pretrained_model/config.json").read_text())
    bodies = {body["statistics"]: body["rate_hz"] for body in config["contract"]["bodies"]}
    assert bodies == {"metaworld": 80.0, "metaworld@40Hz": 40.0, "metaworld@20Hz": 20.0}

    # The second experiment into the same folder: recording and shared stages are there, and are not touched.
    shared = tmp_path / "shared/seed0/checkpoints/last/pretrained_model/model.safetensors"
    before = shared.stat().st_mtime_ns
    ablation.main([*flags, "--arms", "lawam", "no_world_model"])
    first = last_line()
    assert list(first["arms"]) == ["lawam", "no_world_model"]
    assert shared.stat().st_mtime_ns == before
    count = len((tmp_path / "evaluation/seed0/episodes.jsonl").read_text().splitlines())
    ablation.main([*flags, "--arms", "lawam", "no_world_model"])
    assert last_line()["arms"] == first["arms"]
    assert len((tmp_path / "evaluation/seed0/episodes.jsonl").read_text().splitlines()) == count

    from safetensors.torch import load_file

    stored = [
        load_file(tmp_path / run / "checkpoints/last/pretrained_model/model.safetensors")
        for run in ("shared/seed0", "no_world_model/seed0")
    ]
    assert all(
        (stored[0][name] == stored[1][name]).all()
        for name in stored[0]
        if name.startswith(("vision_encoder.", "lam.encoder."))
    )


def test_a_smaller_future_keeps_less_for_the_backward_pass(benchmark):
    downsampling = benchmark("downsampling")
    from wamkit.models.light_wam import preset

    cost = downsampling.training_cost(downsampling.configs(preset("tiny")), batch_size=1, rounds=1)
    kept = [cost[name]["kept_for_backward_mib"] for name in ("factor_1", "factor_2", "factor_4", "no_video")]
    assert kept == sorted(set(kept), reverse=True)


def test_arms_are_chosen_by_name(benchmark):
    closed_loop = benchmark("_closed_loop")
    options = closed_loop.parsed(closed_loop.parser("doc", ("a",), "name"), ["--arms", "two", "one"])
    assert closed_loop.chosen(options, ["one", "two", "three"]) == ["one", "two"]
    with pytest.raises(SystemExit, match="no arm one, two; there are three"):
        closed_loop.chosen(options, ["three"])


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(300)
def test_video_experiments_run_and_share_their_first_stages(benchmark, tmp_path, toy_flags, last_line):
    flags = toy_flags("unseen")
    downsampling = benchmark("downsampling")
    downsampling.main([*flags, "--arms", "factor_2", "no_video"])
    result = last_line()
    assert list(result["arms"]) == list(result["cost"]) == ["factor_2", "no_video"]
    assert [(line["arm"], line["baseline"]) for line in result["comparisons"]] == [("factor_2", "no_video")]
    assert len(result["measured"]["0"]["factor_2"]["psnr"]["model"]) == 4
    assert any("factor_2" in line and "no" not in line for line in benchmark("_tables").downsampling(result))

    # Another model on the same backbone: recording and first stages are there, and are not touched.
    shared = tmp_path / "shared_video/seed0/checkpoints/last/pretrained_model/model.safetensors"
    before = shared.stat().st_mtime_ns
    benchmark("auxiliary_video").main([*flags, "--arms", "fast_wam_no_video"])
    assert list(last_line()["arms"]) == ["fast_wam_no_video"]
    assert shared.stat().st_mtime_ns == before

    from safetensors.torch import load_file

    stored = [
        load_file(tmp_path / run / "checkpoints/last/pretrained_model/model.safetensors")
        for run in ("shared_video/seed0", "fast_wam_no_video/seed0")
    ]
    names = [name for name in stored[1] if name.startswith("vae.")]
    assert names
    assert all((stored[0][name] == stored[1][name]).all() for name in names)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_recordings_run(benchmark, tmp_path, last_line, test_data):
    benchmark("recordings").main(["--toy", "--json", "--data", str(test_data), "--output_dir", str(tmp_path)])
    result = last_line()
    rows = result["held_out"]["recordings"]
    assert rows["rt1"]["horizon_s"] == pytest.approx(4 / 3, abs=1e-3)
    assert rows["droid_action_free"]["horizon_s"] == pytest.approx(1.2, abs=1e-3)
    assert result["held_out"]["overall"]["episodes"] == 4
    from wamkit.data.lerobot import LeRobotSource

    source = LeRobotSource(tmp_path / "imported/droid_action_free")
    assert source.embodiment == "droid"
    assert source.action_names is None
    assert [episode.length for episode in source.episodes] == [53, 53, 53]  # 3.5 s at 15 Hz, both ends included


@pytest.mark.usefixtures("rendering")
def test_encoders_are_compared(benchmark, tmp_path, last_line):
    benchmark("encoders").main(["--toy", "--json", "--output_dir", str(tmp_path)])
    result = last_line()
    assert set(result["encoders"]) == {"random_weights", "masked_autoencoder", "joint_embedding"}
    for seeds in result["encoders"].values():
        (row,) = seeds.values()
        assert row["end_effector"] <= 1
        assert row["tasks"]["faucet-open-v3"]["object"]["episodes"] == 3
    assert any("joint_embedding" in line for line in benchmark("_tables").encoders(result))


def test_the_page_says_what_the_results_say(benchmark):
    tables = benchmark("_tables")
    assert tables.page(tables.PAGE.read_text()) == tables.PAGE.read_text(), "run python benchmarks/_tables.py"
    text = tables.PAGE.read_text()
    for path in (ROOT / "benchmarks").glob("[a-z]*.py"):
        assert f"`{path.name}`" in text, f"docs/benchmarks.md does not mention {path.name}"
    for path in tables.RESULTS.glob("*.json"):
        result = json.loads(path.read_text())
        assert not result.get("toy"), f"{path.name} is a toy run"


def test_toy_changes_only_what_was_not_asked_for(benchmark, tmp_path):
    closed_loop = benchmark("_closed_loop")
    flags = closed_loop.parser("doc", ("a", "b"), "name")
    assert closed_loop.parsed(flags, []).seeds == [0, 1, 2]
    assert closed_loop.parsed(flags, []).episodes >= 50
    options = closed_loop.parsed(closed_loop.parser("doc", ("a", "b"), "name"), ["--toy", "--episodes", "3"])
    assert (options.tasks, options.seeds, options.episodes, options.policy_steps) == (["a"], [0], 3, 2)


@pytest.mark.slow
def test_latency_runs(benchmark, last_line):
    benchmark("latency").main(["--toy", "--json", "--models", "lawam", "--device", "cpu", "--peers", "vla_jepa"])
    result = last_line()
    row = result["rows"]["lawam"]
    assert set(row["boundaries"]) == {"model", "policy"}
    assert "download" in result["not_measured"].pop("vla_jepa")
    assert result["not_measured"] == result["peers"] == {}
    for cell in row["boundaries"].values():
        assert cell["plain"]["n"] == cell["runtime"]["n"] == 8  # one of each block
        assert cell["null"]["ci95"][0] <= cell["null"]["ratio"] <= cell["null"]["ci95"][1]
    assert row["operations"]["plain"] > row["operations"]["runtime_prefix"] + 10 * row["operations"]["runtime_per_step"]
    # The arithmetic of tiny by hand: ten steps of 16 tokens through eight blocks of width 128, and the prefix.
    assert 0.6 < row["gflop"] < 1.2
    assert row["bound_ms"] > 0
    p50_s = row["boundaries"]["policy"]["runtime"]["p50_ms"] / 1e3
    assert row["duty"] == pytest.approx(p50_s / (row["executed"] / row["rate_hz"]))
    tables = benchmark("_tables")
    assert len(tables.latency(result)) == 4


def test_repwams_arms_differ_in_one_thing_each(benchmark):
    repwam = benchmark("repwam")
    from wamkit.configuration import to_dict
    from wamkit.models.repwam import preset

    models = repwam.configs(preset("tiny"))
    changed = {
        name: {key for key, value in to_dict(config).items() if value != to_dict(models["repwam"])[key]}
        for name, config in models.items()
    }
    assert changed == {
        "repwam": set(),
        "reconstruction_tokenizer": {"tokenizer", "representation"},
        "scrambled_tokenizer": {"tokenizer"},
        "no_latent_actions": {"latent_actions"},
        "joint_latent_actions": {"latent_actions"},
        "mixture": set(),
        "half_alone": set(),
    }
    assert {name for arms in repwam.EXPERIMENTS.values() for name in arms} == models.keys()
    steps = {name: {s.name: s.steps for s in repwam.recipe(config).stages} for name, config in models.items()}
    for name, own in steps.items():
        assert own.items() <= steps["repwam"].items(), name


def test_a_copy_without_actions_is_still_a_recording(benchmark, tmp_path):
    from wamkit.data.lerobot import LeRobotSource
    from wamkit.data.synthetic import make_synthetic_dataset

    make_synthetic_dataset(tmp_path / "whole", episodes=2, length=6, fps=10)
    benchmark("repwam").without_actions(tmp_path / "whole", tmp_path / "bare")
    bare, whole = LeRobotSource(tmp_path / "bare"), LeRobotSource(tmp_path / "whole")
    assert whole.action_names is not None
    assert bare.action_names is None
    assert [e.length for e in bare.episodes] == [e.length for e in whole.episodes]


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(300)
def test_repwams_experiments_run(benchmark, toy_flags, last_line):
    flags = toy_flags("unseen")
    benchmark("repwam").main([*flags, "--experiment", "action_free", "--arms", "mixture"])
    result = last_line()
    assert list(result["arms"]) == ["mixture"]
    assert any(line.startswith("| `mixture` | 0 |") for line in benchmark("_tables").repwam(result))
    measured = result["measured"]["0"]["mixture"]
    assert set(measured["squared_error"]) == {"true", "swapped", "none", "copy_present"}
