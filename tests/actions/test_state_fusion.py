"""The state-fusion action expert: parts, compositions, and an independent forward of the published form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from wamkit.actions.state_fusion import LayerStates, StateFusionActionExpert, StateFusionConfig

CONFIG = StateFusionConfig(action_dim=3, queries=4, heads=2, layer_width=12, trunk_width=20, step_width=8)
WIDTH, TOKENS = 16, 6


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def expert(**changes) -> StateFusionActionExpert:
    torch.manual_seed(0)
    model = StateFusionActionExpert(replace(CONFIG, **changes), width=WIDTH, layers=2, tokens=TOKENS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(parameter.numel())))
    return model


def states(seed: int = 0) -> list[LayerStates]:
    return [LayerStates(*torch.randn(2, 2, TOKENS, WIDTH, generator=seeded(seed + i))) for i in range(2)]


def published(model: StateFusionActionExpert, given: list[LayerStates], steps: int) -> torch.Tensor:
    """The released expert from its description (papers.md 2.3), on torch's own multi-head attention."""
    own = model.state_dict()

    def linear(name, x):
        return F.linear(x, own[f"{name}.weight"], own[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], own[f"{name}.weight"], own[f"{name}.bias"])

    vectors = []
    for layer, state in enumerate(given):
        pool = f"pools.{layer}.adapted"
        tokens = norm(f"{pool}.token_norm", state.adapted)
        attention = torch.nn.MultiheadAttention(WIDTH, CONFIG.heads, batch_first=True)
        attention.load_state_dict(
            {
                "in_proj_weight": torch.cat([own[f"{pool}.attention.to_{p}.weight"] for p in ("q", "kv")]),
                "in_proj_bias": torch.cat([own[f"{pool}.attention.to_{p}.bias"] for p in ("q", "kv")]),
                "out_proj.weight": own[f"{pool}.attention.to_out.weight"],
                "out_proj.bias": own[f"{pool}.attention.to_out.bias"],
            }
        )
        answers, _ = attention(own[f"{pool}.queries"].expand(2, -1, -1), tokens, tokens)
        merged = (answers * own[f"{pool}.merge_logits"].softmax(0)[:, None]).sum(1)
        x = norm(f"compressors.{layer}.norm", norm(f"{pool}.output_norm", merged))
        hidden = F.gelu(linear(f"compressors.{layer}.enter", x), approximate="tanh")
        vectors.append(linear(f"compressors.{layer}.leave", hidden))
    fused = linear("fuse", norm("fused_norm", torch.cat(vectors, dim=-1)))
    hidden = F.gelu(linear("trunk.0.enter", norm("trunk.0.norm", fused)), approximate="tanh")
    fused = fused + linear("trunk.0.leave", hidden)
    frequency = 10000.0 ** (-torch.arange(4) / 4)
    phase = torch.arange(steps)[:, None] * frequency
    code = norm("step_code.0", torch.cat([phase.cos(), phase.sin()], dim=-1))
    code = linear("step_code.3", F.gelu(linear("step_code.1", code), approximate="tanh"))
    x = norm("output_norm", fused[:, None] + code[None])
    return linear("output.2", F.gelu(linear("output.0", x), approximate="tanh"))


@torch.no_grad()
def test_equals_the_published_form():
    model, given = expert(), states()
    torch.testing.assert_close(model(given, 5), published(model, given, 5), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_papers_mean_is_the_codes_softmax_at_its_start():
    model, mean = expert(), expert(merge="mean")
    weights = model.state_dict()
    mean.load_state_dict({name: value for name, value in weights.items() if "merge_logits" not in name})
    given = states()
    assert not torch.allclose(model(given, 3), mean(given, 3))
    for pool in model.pools:
        pool["adapted"].merge_logits.zero_()
    torch.testing.assert_close(model(given, 3), mean(given, 3))


@torch.no_grad()
def test_sources_are_what_they_say():
    given = states()
    other_backbone = [state._replace(backbone=state.backbone.flip(-1)) for state in given]
    assert torch.equal(expert()(given, 2), expert()(other_backbone, 2))
    for source in ("backbone", "delta"):
        model = expert(sources=(source,))
        assert not torch.allclose(model(given, 2), model(other_backbone, 2))
    assert torch.equal(given[0].source("delta"), given[0].adapted - given[0].backbone)


@pytest.mark.parametrize("pooling", ["learned_query", "attention", "concatenation", "mean"])
def test_poolings_are_of_one_interface_and_learn(pooling):
    model = expert(pooling=pooling, sources=("backbone", "adapted"))
    actions = model(states(), 4)
    assert actions.shape == (2, 4, 3)
    actions.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["learned_query", "attention", "mean"])
def test_order_of_tokens_has_no_say_but_in_concatenation(pooling):
    given = states()
    turned = [LayerStates(state.backbone.flip(1), state.adapted.flip(1)) for state in given]
    torch.testing.assert_close(expert(pooling=pooling)(given, 2), expert(pooling=pooling)(turned, 2))
    concatenation = expert(pooling="concatenation")
    assert not torch.allclose(concatenation(given, 2), concatenation(turned, 2))


def test_steps_differ():
    with torch.no_grad():
        actions = expert()(states(), 4)
    assert not torch.allclose(actions[:, 0], actions[:, 1])


def test_sources_must_be_named_once():
    for sources in ((), ("adapted", "adapted")):
        with pytest.raises(ValueError, match="once each"):
            expert(sources=sources)
