"""The command line: its surface is a frozen list, its errors are one line, its help costs nothing."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from wamkit.cli import VERBS, UsageError, help_text, main
from wamkit.cli.parsing import flags, parse

# Changing this list changes what people have typed into scripts: say so in docs/log.md when you do.
SURFACE = """
demo --output_dir --seed --toy
record --env.type --env.task --env.cameras --env.resolution --env.gripper --output_dir --episodes --seed \
--action_noise --video_rate_hz --workers --resume
import SOURCE --output_dir --format --episodes --limit --skip_broken --fps --embodiment --task --resume
train RECIPE --any.field
eval --policy.path --policy.settings --policy.embodiment --policy.rate_hz --env.type --env.task --env.cameras \
--env.resolution --env.gripper --output_dir --eval.n_episodes --eval.first_trial --eval.split --eval.n_action_steps \
--eval.arms --eval.forward_size --eval.batch_size --eval.workers --eval.max_steps --eval.timeout_s --eval.videos \
--seed --device --runtime --calibration --resume
calibrate --policy.path --policy.settings --policy.embodiment --policy.rate_hz --env.type --env.task --env.cameras \
--env.resolution --env.gripper --output_dir --false_alarm_rate --n_episodes --first_trial --n_action_steps --memory \
--max_steps --batch_size --workers --timeout_s --seed --device --runtime --resume
imagine --policy.path --policy.settings --dataset.root --output_dir --episodes --windows --horizons --rollouts \
--seed --device
serve --policy.path --policy.settings --policy.embodiment --policy.rate_hz --host --port --device --precision \
--runtime --max_batch --batch_wait_ms --max_message_mb --max_sessions --token_file --certificate --key \
--drain_timeout_s --seed --monitor --calibration --rerun
bench NAME
check --policy.path --dataset.root --env.type --env.task
report DIRECTORY --output --title
info --json
convert MODEL SOURCE DESTINATION
"""

POSITIONAL = {
    "import": "SOURCE",
    "train": "RECIPE",
    "bench": "NAME",
    "report": "DIRECTORY",
    "convert": "MODEL SOURCE DESTINATION",
}


def surface() -> str:
    """The verbs and flags as they are."""
    lines = []
    for verb, (module_name, _) in VERBS.items():
        module = importlib.import_module(f"wamkit.cli.{module_name}")
        words = [verb, *POSITIONAL.get(verb, "").split()]
        classes = [value for name, value in vars(module).items() if name.endswith("Arguments")]
        words += [f"--{flag.name}" for kind in classes for flag in flags(kind)]
        lines.append(" ".join([*words, "--any.field"] if verb == "train" else words))
    return "\n".join(lines)


def run(*arguments: str, capsys) -> tuple[int, str, str]:
    status = main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_surface_is_frozen():
    assert surface() == SURFACE.strip()


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys; from wamkit.cli import main; assert main(['--help']) == 0;"
        "heavy = {'torch', 'numpy', 'tyro', 'lerobot', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    before = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert time.perf_counter() - before < 1.0
    assert done.stdout.strip() == help_text()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_without_torch(verb):
    code = (
        f"import sys; from wamkit.cli import main\ntry: main([{verb!r}, '--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"usage: wam {verb}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evla"], "wam: no verb 'evla'. Did you mean 'eval'?"),
        (["eval", "--policy.pth", "x"], "no flag --policy.pth. Did you mean '--policy.path'"),
        (["record", "--env.tsk", "x"], "no flag --env.tsk. Did you mean '--env.task'"),
        (["eval", "--env.task", "a"], "missing --policy.path, --output_dir."),
        (["record", "--output_dir", "x", "--episodes", "many"], "--episodes"),
        (["record", "--output_dir", "x", "--resume=maybe"], "--resume is a switch"),
        (["train", "lawam_metawrld"], "no recipe 'lawam_metawrld'. Did you mean 'lawam_metaworld'"),
        (["train"], "name a recipe first"),
        (["bench", "loadr"], "no benchmark 'loadr'"),
        (["import", "--output_dir", "x"], "missing SOURCE"),
        (["check", "--policy.path", "x"], "either --dataset.root DIR or --env.type NAME"),
    ],
)
def test_wrong_usage_is_one_line_with_a_suggestion(arguments, said, capsys):
    status, out, err = run(*arguments, capsys=capsys)
    assert status == 2
    assert said in err
    assert out == ""
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["eval", "--policy.path", "nowhere", "--env.task", "reach-v3", "--output_dir", "x"], "no folder nowhere"),
        (["import", "nowhere", "--output_dir", "x"], "nowhere does not exist"),
        (["report", "nowhere"], "nowhere is not a folder"),
        (["convert", "lawm", "a", "b"], "no converter for 'lawm'. Did you mean 'lawam'?"),
        (["record", "--output_dir", "x"], "name one or several with --env.task"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_1(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(*arguments, capsys=capsys)
    assert status == 1
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match="does not exist"):
        main(["import", "nowhere", "--output_dir", "x", "--debug"])


def test_an_unforeseen_error_is_one_line_that_names_the_way_to_its_traceback(monkeypatch, capsys):
    import wamkit.cli.info as info

    def broken(argv):
        raise ZeroDivisionError("a\ndefect")

    monkeypatch.setattr(info, "run", broken)
    status, _, err = run("info", capsys=capsys)
    assert status == 1
    assert err == "wam info: ZeroDivisionError: a defect (not foreseen: --debug shows the traceback)\n"


def test_a_missing_extra_is_named(monkeypatch, capsys):
    import wamkit.cli.info as info

    def broken(argv):
        raise ModuleNotFoundError("No module named 'metaworld'", name="metaworld.envs")

    monkeypatch.setattr(info, "run", broken)
    status, _, err = run("info", capsys=capsys)
    assert status == 1
    assert "pip install 'wamkit[sim]'" in err


def test_version(capsys):
    import wamkit

    assert run("--version", capsys=capsys)[1] == f"wamkit {wamkit.__version__}\n"


@dataclass(frozen=True)
class Inner:
    steps: int = 1
    fast: bool = False


@dataclass(frozen=True)
class Outer:
    """A config as recipes have them: groups, and a tuple of named stages."""

    root: Path
    stages: tuple[Inner, ...] = (Inner(), Inner(steps=2))
    inner: Inner = Inner()
    resume: bool = False


def test_nested_configs_parse_from_dotted_flags():
    default = Outer(root=Path("a"))
    config = parse(Outer, ["--stages.1.steps", "9", "--inner.fast=true", "--resume=false"], verb="x", default=default)
    assert config == Outer(root=Path("a"), stages=(Inner(), Inner(steps=9)), inner=Inner(fast=True))
    assert parse(Outer, ["--root", "b", "--inner.no_fast", "--resume=TRUE"], verb="x").resume is True


def test_unknown_nested_flag():
    with pytest.raises(UsageError, match=r"no flag --inner.stps. Did you mean '--inner.steps'"):
        parse(Outer, ["--inner.stps", "9"], verb="x")


def test_info_json_has_the_promised_shape(capsys):
    status, out, _ = run("info", "--json", capsys=capsys)
    assert status == 0
    facts = json.loads(out)
    lawam = facts["models"]["lawam"]
    assert {"tiny", "small", "paper"} <= set(lawam["presets"])
    for counts in lawam["presets"].values():
        assert 0 < counts["trainable"] <= counts["parameters"]
        assert counts["parts"]["lawm"] > 0
        assert sum(counts["parts"].values()) <= counts["parameters"] * 1.001
    assert lawam["stages"]
    assert lawam["capabilities"]
    assert {entry["subject"] for entry in facts["installation"]} >= {"python", "torch", "rendering"}


def train_config(monkeypatch, *arguments: str):
    """What `wam train` would run."""
    import wamkit.training.loop as loop

    seen = []
    monkeypatch.setattr(loop, "train", lambda config, progress=None: seen.append(config) or Path("done"))
    assert main(["train", *arguments, "--debug"]) == 0
    return seen[0]


def test_any_field_of_a_recipe_is_a_flag(monkeypatch):
    config = train_config(
        monkeypatch,
        *["lawam_metaworld", "--dataset.roots", "a", "b", "--output_dir", "out", "--seed", "3", "--resume"],
        *["--stages.policy.steps", "77", "--stages.latent_action.warmup_steps=1", "--policy.path", "start"],
    )
    assert config.dataset.roots == ("a", "b")
    assert (config.output_dir, config.seed, config.resume) == ("out", 3, True)
    assert {stage.name: stage.steps for stage in config.stages}["policy"] == 77
    assert {stage.name: stage.warmup_steps for stage in config.stages}["latent_action"] == 1
    assert config.policy.path == "start"
    assert config.model_config is None


def test_a_field_of_the_model_is_a_flag_on_top_of_its_preset(monkeypatch):
    from wamkit.models import registry

    config = train_config(monkeypatch, "lawam_metaworld", "--preset", "small", "--model_config.kl_weight", "0.5")
    small = registry.model_class("lawam").preset("small")
    assert config.model_config.kl_weight == 0.5
    assert config.model_config.encoder == small.encoder


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--stages.polcy.steps", "no stage 'polcy' in this recipe. Did you mean 'policy'?"),
        ("--stages.policy.stps", "Did you mean '--stages.2.steps'"),
        ("--dataset.rots", "Did you mean '--dataset.roots'"),
        ("--model_config.kl_wight", "Did you mean '--model_config.kl_weight'"),
    ],
)
def test_a_mistyped_field_of_a_recipe_gets_a_suggestion(flag, said, capsys):
    status, _, err = run("train", "lawam_metaworld", flag, "1", capsys=capsys)
    assert status == 2
    assert said in err
