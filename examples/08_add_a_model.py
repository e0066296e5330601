"""Write a world action model of your own and let the library train it: here the smallest that acts and imagines.

It sees the picture as an 8 x 8 grid of mean colours, predicts the grid one horizon ahead, and acts on both. It trains
on random windows, which shows that it runs; with a recording, drop `build_data` and name its folder in
`DatasetConfig.roots`. A model that stays gets a folder in `src/wamkit/models/` and a line in `models/registry.py`:
then `wam train`, `wam eval` and the tests know it. See docs/adding_a_model.md.

    python examples/08_add_a_model.py
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wamkit.data.windows import WindowSpec
from wamkit.models.base import Capabilities, WorldActionModel
from wamkit.training.checkpoint import WEIGHTS, load_weights
from wamkit.training.config import StageConfig, TrainConfig
from wamkit.training.loop import train
from wamkit.training.stages import StageData
from wamkit.types import ActionChunk, Future, Losses, LossTerm, Observation, Window


@dataclass(frozen=True)
class ColourGridConfig:
    """Everything that fixes the computation."""

    cameras: tuple[str, ...] = ("front",)
    width: int = 64
    horizon_s: float = 0.2
    max_actions: int = 8
    action_dim: int = 4


class ColourGrid(WorldActionModel):
    """Imagine first, then act: the grid now, the grid at the horizon, the actions."""

    name = "colour_grid"
    config_class = ColourGridConfig
    capabilities = Capabilities(
        coupling="cascaded",
        modality="pixel",
        paradigm="imagine_then_execute",
        act_needs_future=True,
        imagines=("features",),
        action_conditioned=False,
        trains_action_free=False,
    )

    def __init__(self, config: ColourGridConfig) -> None:
        super().__init__()
        self.config = config
        self.world = nn.Sequential(nn.Linear(3, config.width), nn.GELU(), nn.Linear(config.width, 3))
        self.head = nn.Linear(2 * 64 * 3, config.max_actions * config.action_dim)

    @classmethod
    def preset(cls, name: str) -> ColourGridConfig:
        """Its sizes."""
        return ColourGridConfig(width={"tiny": 64, "small": 256, "paper": 1024}[name])

    @property
    def stages(self) -> tuple[str, ...]:
        """One: world and actions together."""
        return ("joint",)

    def prepare_stage(self, stage: str) -> None:
        """What trains."""
        self.check_stage(stage)
        self.train_only(self.world, self.head)

    def encode(self, frames: Tensor) -> Tensor:
        """Frames uint8 [B, 3, H, W] to tokens [B, 64, 3]."""
        return nn.functional.adaptive_avg_pool2d(frames.float() / 127.5 - 1.0, 8).flatten(2).transpose(1, 2)

    def predict(self, present: Tensor) -> Tensor:
        """One horizon ahead; the change is predicted, so that it starts from the present."""
        return present + self.world(present)

    def actions(self, present: Tensor, future: Tensor) -> Tensor:
        """[B, K, A] from both grids."""
        both = torch.cat([present, future], dim=1).flatten(1)
        return self.head(both).view(-1, self.config.max_actions, self.config.action_dim)

    def loss(self, window: Window, stage: str, generator: torch.Generator | None = None) -> Losses:
        """Of the imagined grid and of the actions."""
        self.check_stage(stage)
        camera = self.config.cameras[0]
        present, future = (self.encode(window.frames[camera][:, index]) for index in (0, -1))
        imagined = self.predict(present)
        # A value for each sample and whether it counts: the trainer reduces, so padding and gaps weigh nothing.
        world = LossTerm(value=(imagined - future).square().mean((1, 2)), valid=window.frame_valid[camera].all(dim=1))
        error = (self.actions(present, imagined.detach()) - window.actions).square()
        mask = window.action_valid.to(error.dtype)
        count = mask.sum((1, 2))
        action = LossTerm(value=(error * mask).sum((1, 2)) / count.clamp(min=1), valid=count > 0)
        return Losses(terms={"world": world, "action": action})

    @torch.no_grad()
    def act(
        self, observation: Observation, *, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> ActionChunk:
        """Without noise: the same picture gives the same actions."""
        present = self.encode(observation.images[self.config.cameras[0]])
        index = torch.arange(self.config.max_actions, device=present.device)
        times = index / observation.rate_hz[:, None]
        valid = index < (self.config.horizon_s * observation.rate_hz).round()[:, None]
        return ActionChunk(actions=self.actions(present, self.predict(present)), times=times, valid=valid)

    @torch.no_grad()
    def imagine(self, observation: Observation, actions: Tensor | None = None) -> Future:
        """The grid one horizon ahead."""
        present = self.encode(observation.images[self.config.cameras[0]])
        times = torch.full((observation.batch_size, 1), self.config.horizon_s)
        return Future(space="features", values=self.predict(present).unsqueeze(1), times=times, present=present)

    def fake_window(self, batch_size: int = 2, *, stage: str | None = None, seed: int = 0) -> Window:
        """Random pictures and actions."""
        config, generator = self.config, torch.Generator().manual_seed(seed)
        shape = (batch_size, config.max_actions, config.action_dim)
        rate = torch.full((batch_size,), config.max_actions / config.horizon_s)
        frames = torch.randint(0, 256, (batch_size, 2, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return Window(
            frames={config.cameras[0]: frames},
            frame_times=torch.tensor([0.0, config.horizon_s]).expand(batch_size, -1),
            frame_valid={config.cameras[0]: torch.ones(batch_size, 2, dtype=torch.bool)},
            state=torch.zeros(batch_size, 2, 0),
            state_valid=torch.zeros(batch_size, 2, 0, dtype=torch.bool),
            actions=torch.randn(shape, generator=generator),
            action_valid=torch.ones(shape, dtype=torch.bool),
            action_times=torch.arange(config.max_actions) / rate[:, None],
            rate_hz=rate,
            task=("do something",) * batch_size,
            embodiment=torch.ones(batch_size, dtype=torch.long),
        )


class FakeWindows:
    """The same four batches for ever, and where it stands."""

    def __init__(self, model: WorldActionModel, batch_size: int) -> None:
        self.batches = [model.fake_window(batch_size, seed=seed) for seed in range(4)]
        self.counter = 0

    def __iter__(self) -> Iterator[Window]:
        for number in itertools.count(self.counter):
            self.counter = number + 1
            yield self.batches[number % len(self.batches)]

    def state_dict(self) -> dict[str, int]:
        """Where it stands."""
        return {"counter": self.counter}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from there."""
        self.counter = state["counter"]


if __name__ == "__main__":
    stage = StageConfig(
        name="joint",
        window=WindowSpec(frame_offsets_s=(0.0, 0.2), chunk_s=0.2),
        steps=100,
        batch_size=16,
        learning_rate=3e-3,
    )
    config = TrainConfig(
        name="colour_grid",
        model="colour_grid",
        model_config=ColourGridConfig(),
        stages=(stage,),
        output_dir="outputs/examples/colour_grid",
        logger="none",
        resume=True,
    )
    checkpoint = train(
        config,
        build_model=lambda config: ColourGrid(config.model_config),
        build_data=lambda config, stage, model, **_: StageData(loader=FakeWindows(model, stage.batch_size)),
    )

    model = ColourGrid(config.model_config)
    window = model.fake_window(16)
    before = model.loss(window, "joint").scalars()
    model.load_state_dict(load_weights(checkpoint / WEIGHTS))
    after = model.loss(window, "joint").scalars()
    print({name: f"{float(before[name]):.3f} -> {float(after[name]):.3f}" for name in after})
    chunk, future = model.act(window.observation()), model.imagine(window.observation())
    print(f"{tuple(chunk.actions.shape)} actions, and a future {float(future.times[0, 0]):.1f} s ahead")
