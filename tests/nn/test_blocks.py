"""Blocks: modulation, transformer, pooling, embodiments."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from wamkit.nn.adaln import AdaLNZeroBlock, AdaNorm
from wamkit.nn.embodiment_linear import EmbodimentLinear
from wamkit.nn.feed_forward import FeedForward
from wamkit.nn.query_pooling import QueryPooling
from wamkit.nn.transformer_block import TransformerBlock


def test_adaln_zero_starts_as_identity_and_learns_to_be_none():
    block, x, condition = AdaLNZeroBlock(16, 4), torch.randn(2, 5, 16), torch.randn(2, 16)
    assert torch.equal(block(x, condition), x)
    block(x, condition).square().sum().backward()
    assert block.modulation.weight.grad.abs().sum() > 0


def test_ada_norm_scales_and_shifts():
    norm, x = AdaNorm(8, 4), torch.randn(2, 3, 8)
    modulation = torch.cat([torch.full((2, 8), 0.5), torch.full((2, 8), -2.0)], dim=-1)
    torch.testing.assert_close(norm(x, modulation), F.layer_norm(x, (8,)) * 1.5 - 2.0)


def test_transformer_block_equals_torchs_pre_norm_layer():
    torch.manual_seed(0)
    ours = TransformerBlock(16, 4, activation="relu", eps=1e-5)
    theirs = torch.nn.TransformerEncoderLayer(16, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
    theirs.self_attn.load_state_dict(
        {
            "in_proj_weight": torch.cat([ours.attention.to_q.weight, ours.attention.to_kv.weight]),
            "in_proj_bias": torch.cat([ours.attention.to_q.bias, ours.attention.to_kv.bias]),
            "out_proj.weight": ours.attention.to_out.weight,
            "out_proj.bias": ours.attention.to_out.bias,
        }
    )
    theirs.linear1.load_state_dict(ours.feed_forward.up.state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward.down.state_dict())
    x = torch.randn(2, 6, 16)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_feed_forward_activations():
    x = torch.randn(3, 8)
    activations = {"gelu": F.gelu, "relu": F.relu, "gelu_tanh": lambda y: F.gelu(y, approximate="tanh")}
    for name, function in activations.items():
        layer = FeedForward(8, activation=name)
        torch.testing.assert_close(layer(x), layer.down(function(layer.up(x))))


def test_embodiment_linear_uses_each_samples_own_weights():
    layer, x = EmbodimentLinear(3, 4, 5), torch.randn(2, 6, 4)
    torch.nn.init.normal_(layer.bias)
    out = layer(x, torch.tensor([2, 0]))
    torch.testing.assert_close(out[0], x[0] @ layer.weight[2] + layer.bias[2])
    torch.testing.assert_close(out[1], x[1] @ layer.weight[0] + layer.bias[0])
    out.sum().backward()
    assert layer.weight.grad[1].abs().sum() == 0


def test_query_pooling_reads_what_the_mask_allows():
    pooling, tokens = QueryPooling(2, 8, 2, context_width=6), torch.randn(3, 5, 6)
    mask = torch.ones(3, 1, 1, 5, dtype=torch.bool)
    mask[..., 3:] = False
    out = pooling(tokens, mask)
    assert out.shape == (3, 2, 8)
    tokens[:, 3:] += 10.0
    assert torch.equal(pooling(tokens, mask), out)
    assert not torch.equal(pooling(tokens), out)
