"""What does not fit is told before a run: instructions that cannot be read, and a rate that nobody chose."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "evaluation"))
from fake_world import FakeFactory
from micro_policy import micro_policy, save, seen

import wamkit
from wamkit.cli import main
from wamkit.cli.check import refuse_misfit
from wamkit.data.synthetic import make_synthetic_dataset
from wamkit.errors import WamkitError
from wamkit.inference.policy import PolicyError

LONG = "push the disc to the far side of the table " * 2


def test_wam_check_tells_an_instruction_that_is_too_long(tmp_path, capsys):
    path = save(micro_policy(), tmp_path / "policy")
    for name, tasks in (("short", ("push the disc",)), ("long", ("push the disc", LONG))):
        make_synthetic_dataset(
            tmp_path / name, episodes=2, length=8, fps=20, resolution=(32, 32), task=tasks, embodiment="metaworld"
        )
        status = main(["check", "--policy.path", str(path), "--dataset.root", str(tmp_path / name)])
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("instruction:")]
        if name == "long":
            assert status == 1
            (line,) = said
            assert "push the disc to the far side" in line
            assert "86 bytes and the model reads 40: shorten it" in line
        else:
            assert said == []


@pytest.mark.parametrize(
    ("recipe", "preset", "said"),
    [
        ("lawam_metaworld", "paper", "has only the stages latent_action, policy: use the recipe lawam_robot, which is"),
        ("light_wam_metaworld", "paper", "choose another preset"),
    ],
)
def test_a_preset_without_a_recipes_stages_names_the_recipe_that_is_for_it(capsys, recipe, preset, said):
    assert main(["train", recipe, "--preset", preset, "--dataset.roots", "nowhere"]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_an_evaluation_takes_the_worlds_rate_and_refuses_what_cannot_be_read():
    policy = micro_policy(20.0, 10.0)
    with pytest.raises(PolicyError, match="say which"):
        policy.act(seen())
    with pytest.raises(WamkitError, match=r"does not fit the environment: .*instruction: .*shorten it") as caught:
        refuse_misfit(policy, FakeFactory()("line-a"), [LONG])
    assert "Hz" not in str(caught.value), "of the two rates it knows it took that of the world"
    assert policy.body().rate_hz == 10.0
    chosen = micro_policy(20.0, 10.0)
    chosen.choose(rate_hz=20.0)
    with pytest.raises(WamkitError, match=r"rate: the policy acts at 20 Hz and this environment has 10 Hz"):
        refuse_misfit(chosen, FakeFactory()("line-a"), [])


def test_a_checkpoint_is_loaded_as_one_of_its_robots(tmp_path, capsys):
    path = save(micro_policy(20.0, 10.0, others=("droid",)), tmp_path / "policy")
    assert wamkit.load(path, device="cpu", embodiment="metaworld", rate_hz=10.0).body().rate_hz == 10.0
    assert wamkit.load(path, device="cpu", embodiment="droid").body().embodiment == "droid"
    with pytest.raises(PolicyError, match="not trained at 15 Hz"):
        wamkit.load(path, device="cpu", rate_hz=15.0)
    assert main(["serve", "--policy.path", str(path), "--port", "0", "--device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert "knows metaworld at 20 Hz, metaworld at 10 Hz, droid at 20 Hz: say which" in said
    assert "--policy.embodiment and --policy.rate_hz" in said
    assert main(["serve", "--policy.path", str(path), "--rerun", "a.rrd"]) == 1
    assert "--calibration and --rerun belong to --monitor" in capsys.readouterr().err
