"""The action expert: contexts projected once, draws, padding, time.

Its arithmetic is held against a reference in tests/models/test_lawam_convert.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from wamkit.actions.flow_expert import FlowExpert, FlowExpertConfig

CONFIG = FlowExpertConfig(width=32, layers=8, heads=4, action_dim=6, embodiments=3, dropout=0.0, denoise_steps=5)
BATCH, CHUNK = 2, 7


def expert_of(**changes) -> FlowExpert:
    torch.manual_seed(0)
    expert = FlowExpert(replace(CONFIG, **changes), dynamics_width=12, language_width=20).eval()
    for parameter in expert.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return expert


def inputs(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    heard = torch.ones(BATCH, 5, dtype=torch.bool)
    heard[1, 3:] = False
    valid = torch.ones(BATCH, CHUNK, dtype=torch.bool)
    valid[1, 4:] = False
    times = torch.arange(CHUNK) / torch.tensor([[20.0], [10.0]])
    return normal(BATCH, 8, 12), normal(BATCH, 5, 20), heard, normal(BATCH, CHUNK, 6), times, valid


WHO = torch.tensor([1, 2])


def test_each_context_is_projected_once_per_chunk():
    expert, calls = expert_of(), []
    for index, block in enumerate(expert.blocks):
        if index % 2 == 0:
            block.attention.to_kv.register_forward_hook(lambda *_, index=index: calls.append(index))
    dynamics, words, heard, noise, times, valid = inputs()
    expert.sample(noise, expert.prepare(dynamics, words, heard), times, valid, WHO)
    assert calls == [0, 2, 4, 6]


def test_words_come_first_then_the_scene():
    expert = expert_of()
    dynamics, words, heard, *_ = inputs()
    first = expert.prepare(dynamics, words, heard).streams
    other = expert.prepare(dynamics + 1, words, heard).streams
    changed = [not torch.equal(one.keys, two.keys) for one, two in zip(first, other, strict=True)]
    assert changed == [False, True, False, True]


@pytest.mark.parametrize("time_code_at", ["input", "every_block"])
def test_draws_of_one_context_equal_separate_calls(time_code_at):
    expert = expert_of(time_code_at=time_code_at)
    dynamics, words, heard, _, times, valid = inputs()
    context, code = expert.prepare(dynamics, words, heard), expert.time_code(times)
    noisy = torch.randn(BATCH, 3, CHUNK, 6)
    modulations = expert.modulations(torch.rand(BATCH, 3))
    together = expert.velocity(noisy, modulations, context, code, valid, WHO)
    for draw in range(3):
        alone = expert.velocity(
            noisy[:, draw : draw + 1], [m[:, draw : draw + 1] for m in modulations], context, code, valid, WHO
        )
        torch.testing.assert_close(together[:, draw : draw + 1], alone, rtol=1e-5, atol=1e-5)


def test_padding_never_influences_valid_actions():
    expert = expert_of()
    dynamics, words, heard, noise, times, valid = inputs()
    first = expert.sample(noise, expert.prepare(dynamics, words, heard), times, valid, WHO)
    noise, words, times = noise.clone(), words.clone(), times.clone()
    noise[1, 4:], times[1, 4:], words[1, 3:] = 50.0, 9.0, -50.0
    second = expert.sample(noise, expert.prepare(dynamics, words, heard), times, valid, WHO)
    assert torch.equal(first[valid], second[valid])


def test_shorter_padding_gives_the_same_actions():
    expert = expert_of()
    dynamics, words, heard, noise, times, valid = inputs()
    padded = expert.sample(noise, expert.prepare(dynamics, words, heard), times, valid, WHO)
    cut = expert.sample(
        noise[1:, :4],
        expert.prepare(dynamics[1:], words[1:, :3], heard[1:, :3]),
        times[1:, :4],
        valid[1:, :4],
        WHO[1:],
    )
    torch.testing.assert_close(padded[1:, :4], cut, rtol=1e-4, atol=1e-4)


def test_equal_times_have_equal_codes():
    expert = expert_of()
    rates = torch.tensor([[5.0], [20.0]])
    slow, fast = expert.time_code(torch.arange(9) / rates)
    torch.testing.assert_close(slow[:3], fast[::4], rtol=0, atol=1e-6)
    by_index = expert_of(time_code="index").time_code(torch.arange(9) / rates)
    assert torch.equal(by_index[0], by_index[1])


def test_modulations_do_not_depend_on_the_bucket_s_inside():
    """Levels of one thousandth are one bucket, and 0.3 (data time 0.7) is not taken for 699."""
    expert = expert_of()
    near = expert.modulations(torch.tensor([0.3, 0.29990, 0.2989]))[0]
    assert torch.equal(near[0], near[1])
    assert not torch.equal(near[0], near[2])
    steps = torch.linspace(1.0, 0.0, 11)[:-1]
    exact = expert.modulations(1.0 - torch.arange(10, dtype=torch.float64).div(10).float())
    assert torch.equal(expert.modulations(steps)[0], exact[0])


def test_embodiments_have_their_own_ends():
    expert = expert_of()
    dynamics, words, heard, noise, times, valid = inputs()
    context = expert.prepare(dynamics, words, heard)
    first = expert.sample(noise, context, times, valid, WHO)
    second = expert.sample(noise, context, times, valid, torch.tensor([1, 0]))
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


def test_layers_come_in_groups_of_four():
    with pytest.raises(ValueError, match="6 layers cannot be"):
        expert_of(layers=6)
