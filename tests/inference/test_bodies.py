"""As which robot a policy acts: chosen in words where it knows several, never guessed."""

from __future__ import annotations

import numpy as np
import pytest
from micro_policy import micro_policy, seen

from wamkit.inference.policy import PolicyError


def test_the_only_robot_needs_no_choice():
    policy = micro_policy(20.0)
    assert policy.body().rate_hz == 20.0
    assert policy.body("metaworld") is policy.body()
    assert policy.act_batch([seen()], seeds=[0]).shape == (1, 8, 2)


def test_several_rates_want_a_choice_and_each_has_its_own_chunk_and_statistics():
    policy = micro_policy(20.0, 10.0, 5.0)
    with pytest.raises(PolicyError, match=r"knows metaworld at 20 Hz, metaworld at 10 Hz, metaworld at 5 Hz: say"):
        policy.act(seen())
    with pytest.raises(PolicyError, match="say which"):
        policy.body("metaworld")
    chunks = {}
    for rate in (20.0, 10.0, 5.0):
        assert policy.choose(rate_hz=rate).rate_hz == rate
        chunk = policy.act(seen(), seeds=[0])
        chunks[rate] = chunk.actions[0]
        assert int(chunk.valid.sum()) == round(0.4 * rate)
        np.testing.assert_allclose(chunk.times[0, 1], 1 / rate)
    assert chunks[5.0].abs().mean() > 2 * chunks[20.0].abs().mean()  # statistics four times as wide
    assert policy.choose("metaworld", 10.05).rate_hz == 10.0


def test_what_the_policy_does_not_know_is_refused_with_the_choices():
    policy = micro_policy(20.0, 10.0, others=("droid",))
    with pytest.raises(PolicyError, match=r"not trained on 'drod'; it knows .*Did you mean 'droid'"):
        policy.choose("drod")
    with pytest.raises(PolicyError, match=r"not trained at 30 Hz; it knows metaworld at 20 Hz, .*droid at 20 Hz"):
        policy.choose("metaworld", 30.0)
    with pytest.raises(PolicyError, match="say which"):
        policy.choose(rate_hz=20.0)
    assert policy.choose("droid").embodiment == "droid"
    assert policy.body("droid").rate_hz == 20.0


def test_the_robot_at_hand_settles_what_nobody_chose():
    policy = micro_policy(20.0, 10.0)
    policy.choose_like("metaworld", 33.0)
    with pytest.raises(PolicyError):
        policy.body()
    policy.choose_like("metaworld", 10.0)
    assert policy.body().rate_hz == 10.0
    policy.choose_like("metaworld", 20.0)
    assert policy.body().rate_hz == 10.0, "a choice is not overruled"


def test_an_instruction_that_is_too_long_says_what_to_do():
    from wamkit.encoders.byte_text import InstructionTooLong

    policy = micro_policy()
    with pytest.raises(InstructionTooLong, match=r"has 44 bytes and the model reads 40: shorten it, or train"):
        policy.act(seen(task="open the door " * 3 + "ok"))
    with pytest.raises(InstructionTooLong):
        policy.model.check_instructions(["short", "open the door " * 9])
    policy.model.check_instructions(["short", "x" * 40])
