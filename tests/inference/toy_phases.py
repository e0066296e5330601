"""A model of a few linear layers that declares its phases: what the runtime is tested on without a real one."""

from __future__ import annotations

import torch
from torch import nn

from wamkit.models.phases import ActPhases, Phase
from wamkit.types import ActionChunk, Future, Observation

WIDTH, CHUNK, ACTIONS, TOKENS = 16, 5, 3, 6


class ToyPhases(ActPhases):
    def __init__(self, model: ToyModel) -> None:
        self.model = model

    @property
    def steps(self) -> int:
        return self.model.steps

    def inputs(self, observation: Observation, text_tokens: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
        length = max(len(text) for text in observation.task)
        length = next((room for room in sorted(text_tokens) if room >= length), length)
        words = torch.zeros(observation.batch_size, length, dtype=torch.long)
        for row, text in zip(words, observation.task, strict=True):
            row[: len(text)] = torch.tensor([ord(letter) % 30 + 1 for letter in text])
        return {"image": observation.images["image"], "words": words, "rate_hz": observation.rate_hz}

    def prefix(self) -> tuple[Phase, ...]:
        return Phase("see", self.see), Phase("read", self.read)

    def see(self, state):
        pixels = state["image"].float().flatten(1)[:, : TOKENS * WIDTH].view(-1, TOKENS, WIDTH) / 255.0
        return {"tokens": nn.functional.layer_norm(pixels, (WIDTH,))}

    def read(self, state):
        heard = self.model.embed(state["words"]) * (state["words"] > 0).unsqueeze(-1)
        if self.model.peeks and state["rate_hz"].sum().item() > 0:
            heard = heard * 2
        context = torch.cat([state["tokens"], heard], dim=1)
        keys, values = self.model.to_kv(context).chunk(2, dim=-1)
        mask = torch.cat([torch.ones_like(state["tokens"][..., 0], dtype=torch.bool), state["words"] > 0], dim=1)
        times = torch.arange(CHUNK) / state["rate_hz"][:, None]
        return {"keys": keys, "values": values, "mask": mask[:, None, None], "times": times}

    def schedule(self):
        levels = torch.linspace(1.0, 0.0, self.steps + 1)[:-1]
        return self.model.modulation(levels[:, None].expand(-1, WIDTH))

    def step(self, x, step, schedule, state):
        model = self.model
        scale, shift = schedule[step].chunk(2)
        if model.counts:
            shift = shift + step
        y = nn.functional.layer_norm(model.enter(x), (WIDTH,)) * (1 + scale) + shift
        attended = nn.functional.scaled_dot_product_attention(
            model.to_q(nn.functional.rms_norm(y, (WIDTH,))).unsqueeze(1),
            state["keys"].unsqueeze(1),
            state["values"].unsqueeze(1),
            attn_mask=state["mask"],
        ).squeeze(1)
        y = y + attended
        y = y + model.down(nn.functional.silu(model.gate(y)) * model.up(y))
        return x + model.leave(nn.functional.gelu(y, approximate="tanh")) / self.steps

    def chunk(self, x, state):
        actions = self.model.leave(state["values"][:, :CHUNK]) if x is None else x
        valid = torch.ones_like(state["times"], dtype=torch.bool)
        expected = Future(
            space="features",
            values=state["values"][:, None, :TOKENS],
            times=torch.full((1, 1), 0.25).expand(len(actions), 1),
            present=state["tokens"],
            decode=self.model.decode,
        )
        return ActionChunk(actions=actions.float(), times=state["times"], valid=valid, imagined=expected)


class ToyModel(nn.Module):
    """``peeks``: a phase asks for a tensor's value, which no recording can hold; ``counts``: its steps differ."""

    name = "toy"

    def __init__(self, *, steps: int = 3, peeks: bool = False, counts: bool = False, width: int = WIDTH) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.steps, self.peeks, self.counts = steps, peeks, counts
        self.decode = None
        self.embed = nn.Embedding(32, width)
        self.enter = nn.Linear(ACTIONS, width)
        self.to_q = nn.Linear(width, width)
        self.to_kv = nn.Linear(width, 2 * width)
        self.gate, self.up = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width)
        self.modulation = nn.Linear(width, 2 * width)
        self.leave = nn.Linear(width, ACTIONS)
        self.eval()

    def phases(self) -> ToyPhases:
        return ToyPhases(self)

    @property
    def action_noise_shape(self) -> tuple[int, int] | None:
        return (CHUNK, ACTIONS) if self.steps else None

    @torch.no_grad()
    def act(self, observation, *, noise=None):
        return self.phases().act(observation, noise)


def toy_observation(batch: int = 1, *, task: str = "open it", seed: int = 0) -> Observation:
    generator = torch.Generator().manual_seed(seed)
    return Observation(
        images={"image": torch.randint(0, 256, (batch, 3, 8, 8), generator=generator, dtype=torch.uint8)},
        task=(task,) * batch,
        embodiment=torch.ones(batch, dtype=torch.long),
        rate_hz=torch.full((batch,), 20.0),
    )


def toy_noise(batch: int = 1, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, CHUNK, ACTIONS, generator=torch.Generator().manual_seed(seed))
