"""A LaWAM with the published names, sizes and arithmetic, written from the formulas with torch's own layers.

It is what the converter and the modules are held against: none of wamkit's blocks are used here.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def alternating_code(count: int, width: int) -> Tensor:
    """Sines on even and cosines on odd channels, [count, width]."""
    angle = torch.arange(count)[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)
    code = torch.empty(count, width)
    code[:, 0::2], code[:, 1::2] = angle.sin(), angle.cos()
    return code


def overlaid(shape: tuple[int, ...], width: int) -> Tensor:
    """Every axis's code from channel 0 on, added up: [*shape, width]."""
    sizes = [width // 2, width // 4, width - width // 2 - width // 4] if len(shape) == 3 else [width // 2] * 2
    total = torch.zeros(*shape, width)
    for axis, size in enumerate(sizes):
        code = F.pad(alternating_code(shape[axis], size), (0, width - size))
        total += code.reshape([-1 if a == axis else 1 for a in range(len(shape))] + [width])
    return total


class ByEmbodiment(nn.Module):
    """One matrix and offset for each embodiment."""

    def __init__(self, count: int, width_in: int, width_out: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(count, width_in, width_out) / math.sqrt(width_in))
        self.b = nn.Parameter(torch.randn(count, width_out) * 0.1)

    def forward(self, x: Tensor, who: Tensor) -> Tensor:
        return torch.einsum("bti,bio->bto", x, self.W[who]) + self.b[who][:, None]


class TwoByEmbodiment(nn.Module):
    def __init__(self, count: int, width_in: int, hidden: int, width_out: int) -> None:
        super().__init__()
        self.layer1 = ByEmbodiment(count, width_in, hidden)
        self.layer2 = ByEmbodiment(count, hidden, width_out)

    def forward(self, x: Tensor, who: Tensor) -> Tensor:
        return self.layer2(self.layer1(x, who).clamp(min=0), who)


class Encoder(nn.Module):
    def __init__(self, grid: int, features: int, width: int, heads: int, layers: int, latent: int) -> None:
        super().__init__()
        self.project_in, self.out_proj = nn.Linear(features, width), nn.Linear(width, latent)
        self.QFormer = nn.Module()
        self.QFormer.queries = nn.Parameter(torch.randn(1, 1, width))
        reader = self.QFormer.q_cross_attn = nn.Module()
        reader.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        reader.ff = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        reader.norm1, reader.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.QFormer.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.code = overlaid((2, grid, grid), width).flatten(0, 2)

    def forward(self, both: Tensor) -> Tensor:
        """Both frames' features one after the other, [B, 2N, D], to [B, 1, Z]."""
        x = self.project_in(both) + self.code
        reader, keys = self.QFormer.q_cross_attn, self.QFormer.q_cross_attn.norm1(x)
        query = self.QFormer.queries.expand(len(x), -1, -1)
        query = reader.norm2(query + reader.attn(query, keys, keys)[0])
        x = torch.cat([x, query + reader.ff(query)], dim=1)
        forbidden = torch.zeros(x.shape[1], x.shape[1], dtype=torch.bool)
        forbidden[:-1, -1] = True
        for layer in self.QFormer.layers:
            x = layer(x, src_mask=forbidden)
        return self.out_proj(x[:, -1:])


class Bottleneck(nn.Module):
    def __init__(self, latent: int) -> None:
        super().__init__()
        self.pre_norm, self.mu, self.logvar = nn.LayerNorm(latent), nn.Linear(latent, latent), nn.Linear(latent, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pre_norm(x)
        return self.mu(x), self.logvar(x).clamp(-10, 10)


class Decoder(nn.Module):
    def __init__(self, grid: int, features: int, width: int, heads: int, layers: int, latent: int) -> None:
        super().__init__()
        self.project_input, self.project_output = nn.Linear(features, width), nn.Linear(width, features)
        self.action_in_proj, self.last_ln = nn.Linear(latent, width), nn.LayerNorm(features)
        self.dec_layers = nn.ModuleList()
        for _ in range(layers):
            layer = nn.Module()
            layer.attn = nn.MultiheadAttention(width, heads, batch_first=True)
            layer.ffn = nn.Sequential(
                nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.0), nn.Linear(4 * width, width), nn.Dropout(0.0)
            )
            layer.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
            self.dec_layers.append(layer)
        self.code = overlaid((grid, grid), width).flatten(0, 1)

    def forward(self, present: Tensor, latent: Tensor) -> Tensor:
        x = self.project_input(present) + self.code
        condition = self.action_in_proj(latent)
        for layer in self.dec_layers:
            shift1, scale1, gate1, shift2, scale2, gate2 = layer.adaLN_modulation(condition).chunk(6, dim=-1)
            y = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale1) + shift1
            x = x + gate1 * layer.attn(y, y, y)[0]
            y = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale2) + shift2
            x = x + gate2 * layer.ffn(y)
        return self.last_ln(self.project_output(x))


class StateDecoder(nn.Module):
    def __init__(self, count: int, state: int, width: int, latent: int) -> None:
        super().__init__()
        self.z_encoder = nn.Linear(latent, width)
        self.state_encoder = TwoByEmbodiment(count, state, width, width)
        self.state_decoder = TwoByEmbodiment(count, 2 * width, width, state)

    def forward(self, latent: Tensor, state: Tensor, who: Tensor) -> Tensor:
        both = torch.cat([self.z_encoder(latent), self.state_encoder(state[:, None], who)], dim=-1)
        return self.state_decoder(both, who).tanh()[:, 0]


class LatentHead(nn.Module):
    def __init__(self, words: int, latent: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, latent))
        self.cross_attns = nn.ModuleList(
            [nn.MultiheadAttention(latent, heads, kdim=words, vdim=words, batch_first=True)]
        )
        self.norm_qs, self.norm_kvs = nn.ModuleList([nn.LayerNorm(latent)]), nn.ModuleList([nn.LayerNorm(words)])
        forward = [nn.LayerNorm(latent), nn.Linear(latent, 4 * latent), nn.GELU(), nn.Dropout(0.0)]
        self.ffns = nn.ModuleList([nn.Sequential(*forward, nn.Linear(4 * latent, latent))])
        self.final_norm = nn.LayerNorm(latent)

    def forward(self, words: Tensor) -> Tensor:
        query, keys = self.query.expand(len(words), -1, -1), self.norm_kvs[0](words)
        query = query + self.cross_attns[0](self.norm_qs[0](query), keys, keys)[0]
        return self.final_norm(query + self.ffns[0](query))


class Flow(nn.Module):
    """The action head: two streams, the words first, and a velocity that points at the actions."""

    def __init__(
        self, words: int, features: int, tokens: int, width: int, heads: int, layers: int, actions: int, count: int
    ):
        super().__init__()
        self.heads, self.width = heads, width
        self.enc_vlm = nn.Module()
        self.enc_vlm.net = nn.Sequential(nn.Linear(words, features), nn.LayerNorm(features))
        self.action_encoder = nn.Module()
        self.action_encoder.W1 = ByEmbodiment(count, actions, width)
        self.action_encoder.W2 = ByEmbodiment(count, width, width)
        self.action_decoder = TwoByEmbodiment(count, width, width, actions)
        self.cfg_embeddings = nn.Parameter(torch.randn(1, tokens, features))
        dit = self.DiT = nn.Module()
        embedder = nn.Module()
        embedder.linear_1, embedder.linear_2 = nn.Linear(256, width), nn.Linear(width, width)
        dit.timestep_encoder = nn.Module()
        dit.timestep_encoder.timestep_embedder = embedder
        dit.transformer_blocks = nn.ModuleList(
            self._block(width, features if index % 2 == 0 else width) for index in range(layers)
        )
        dit.proj_out_1, dit.proj_out_2 = nn.Linear(width, 2 * width), nn.Linear(width, width)

    @staticmethod
    def _block(width: int, context: int) -> nn.Module:
        block = nn.Module()
        block.norm1, block.attn1, block.ff = nn.Module(), nn.Module(), nn.Module()
        block.norm1.linear = nn.Linear(width, 2 * width)
        block.attn1.to_q, block.attn1.to_k = nn.Linear(width, width), nn.Linear(context, width)
        block.attn1.to_v = nn.Linear(context, width)
        block.attn1.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(0.0)])
        up = nn.Module()
        up.proj = nn.Linear(width, 4 * width)
        block.ff.net = nn.ModuleList([up, nn.Dropout(0.0), nn.Linear(4 * width, width), nn.Dropout(0.0)])
        return block

    def _attend(self, part: nn.Module, x: Tensor, context: Tensor, seen: Tensor) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.view(len(y), -1, self.heads, self.width // self.heads)

        query, key, value = heads(part.to_q(x)), heads(part.to_k(context)), heads(part.to_v(context))
        score = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
        weight = score.masked_fill(~seen[:, None, None], -math.inf).softmax(dim=-1)
        return part.to_out[0](torch.einsum("bhqk,bkhd->bqhd", weight, value).flatten(2))

    def velocity(
        self,
        noisy: Tensor,
        bucket: Tensor,
        present: Tensor,
        future: Tensor,
        words: Tensor,
        word_seen: Tensor,
        seconds: Tensor,
        valid: Tensor,
        who: Tensor,
    ) -> Tensor:
        x = self.action_encoder.W2(F.silu(self.action_encoder.W1(noisy, who)), who)
        rate = 10000.0 ** (-torch.arange(self.width // 2) / (self.width // 2 - 1))
        angle = seconds[..., None] * rate
        when = torch.cat([angle.sin(), angle.cos()], dim=-1)
        angle = bucket[:, None] * 10000.0 ** (-torch.arange(128) / 127)
        embedder = self.DiT.timestep_encoder.timestep_embedder
        level = embedder.linear_2(F.silu(embedder.linear_1(torch.cat([angle.cos(), angle.sin()], dim=-1))))
        scenes, words = torch.cat([present, future], dim=1), self.enc_vlm.net(words)
        for index, block in enumerate(self.DiT.transformer_blocks):
            scale, shift = block.norm1.linear(F.silu(level))[:, None].chunk(2, dim=-1)
            y = F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift + when
            context, seen = y, valid
            if index % 4 == 0:
                context, seen = words, word_seen
            elif index % 4 == 2:
                context, seen = scenes, torch.ones(scenes.shape[:2], dtype=torch.bool)
            x = x + self._attend(block.attn1, y, context, seen)
            y = F.gelu(block.ff.net[0].proj(F.layer_norm(x, x.shape[-1:])), approximate="tanh")
            x = x + block.ff.net[2](y)
        shift, scale = self.DiT.proj_out_1(F.silu(level))[:, None].chunk(2, dim=-1)
        x = self.DiT.proj_out_2(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)
        return self.action_decoder(x, who)

    def sample(self, noise: Tensor, steps: int, *context: Tensor) -> Tensor:
        x = noise
        for step in range(steps):
            bucket = torch.full((len(x),), float(step * 1000 // steps))
            x = x + self.velocity(x, bucket, *context) / steps
        return x
