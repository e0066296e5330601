"""A model and a loader small enough to train in a test, with every kind of randomness a real one has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wamkit.data.windows import WindowSpec
from wamkit.models.base import Capabilities, WorldActionModel
from wamkit.training.config import StageConfig, TrainConfig
from wamkit.training.stages import StageData
from wamkit.types import Losses, LossTerm, Window

STATE, ACTION, CHUNK = 5, 3, 4
SHORT = 10
"""Steps of each stage in the runs that are killed."""


@dataclass(frozen=True)
class ToyConfig:
    width: int = 16
    noisy: bool = True
    """Dropout and noise in the losses; without, several ranks compute what one does."""


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(self.norm(x)).tanh()


class ToyModel(WorldActionModel):
    name = "toy"
    config_class = ToyConfig
    capabilities = Capabilities(
        coupling="cascaded",
        modality="latent",
        paradigm="imagine_then_execute",
        act_needs_future=False,
        imagines=(),
        action_conditioned=False,
        trains_action_free=False,
    )

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.Sequential(nn.Linear(STATE, config.width), Block(config.width), Block(config.width))
        self.head = nn.Linear(config.width, STATE)
        self.policy = nn.Sequential(
            Block(config.width), nn.Dropout(0.2 if config.noisy else 0.0), nn.Linear(config.width, CHUNK * ACTION)
        )
        self.tied = nn.Linear(STATE, config.width)
        self.tied.weight = self.encoder[0].weight

    @classmethod
    def preset(cls, name: str) -> ToyConfig:
        return ToyConfig()

    @property
    def stages(self) -> tuple[str, ...]:
        return ("world", "policy")

    def prepare_stage(self, stage: str) -> None:
        self.check_stage(stage)
        self.train_only(*((self.encoder, self.head) if stage == "world" else (self.policy,)))

    def loss(self, window: Window, stage: str, generator: torch.Generator | None = None) -> Losses:
        state, actions = window.state[:, 0], window.actions
        if stage == "world":
            noise = (
                0.1 * torch.randn(state.shape, generator=generator, device=state.device) if self.config.noisy else 0.0
            )
            error = (self.head(self.encoder(state + noise)) - state).square().mean(-1)
            term = LossTerm(value=error, valid=torch.ones_like(error, dtype=torch.bool))
            size = LossTerm(value=self.encoder(state).square().mean(-1), valid=error > -1, weight=1e-3)
            return Losses(terms={"reconstruction": term, "size": size})
        error = (self.policy(self.encoder(state)).view_as(actions) - actions).square().mean((1, 2))
        valid = window.action_valid.any(-1).any(-1)
        return Losses(terms={"action": LossTerm(value=error, valid=valid)}, metrics={"largest": error.detach().max()})

    def act(self, observation: Any, **_: Any) -> Any:
        raise NotImplementedError

    def imagine(self, observation: Any, actions: Any = None) -> Any:
        raise NotImplementedError

    def fsdp_units(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, Block)]

    def fake_window(self, batch_size: int = 2, *, stage: str | None = None, seed: int = 0) -> Window:
        return draw_window(range(seed, seed + batch_size))


def draw_window(draws: range) -> Window:
    """The windows of some draws: a function of the draw's number alone."""
    states, actions = [], []
    for draw in draws:
        generator = torch.Generator().manual_seed(draw)
        states.append(torch.randn(1, STATE, generator=generator))
        actions.append(torch.randn(CHUNK, ACTION, generator=generator))
    state, action, size = torch.stack(states), torch.stack(actions), len(draws)
    # Every third draw has no action: the ranks of a distributed run see different numbers of valid samples.
    valid = torch.tensor([draw % 3 != 0 for draw in draws])[:, None, None].expand_as(action)
    return Window(
        frames={},
        frame_times=torch.zeros(size, 1),
        frame_valid={},
        state=state,
        state_valid=torch.ones_like(state, dtype=torch.bool),
        actions=action,
        action_valid=valid,
        action_times=torch.arange(CHUNK).float().expand(size, -1) / 10,
        rate_hz=torch.full((size,), 10.0),
        task=("",) * size,
        embodiment=torch.ones(size, dtype=torch.long),
    )


@dataclass
class ToyLoader:
    """Windows by a counter, as `wamkit.data.mixture.WindowLoader` hands them out."""

    batch_size: int
    rank: int = 0
    world_size: int = 1
    counter: int = 0
    poison: dict[int, Any] = field(default_factory=dict)
    """At a batch: an exception to raise, or NaN."""
    draw: Callable[[range], Window] = draw_window

    def __iter__(self) -> Iterator[Window]:
        share = self.batch_size // self.world_size
        while True:
            batch = self.counter // self.batch_size
            first = self.counter + self.rank * share
            poison = self.poison.get(batch)
            if isinstance(poison, Exception):
                raise poison
            window = self.draw(range(first, first + share))
            if poison is not None:
                window.state.fill_(poison)
            self.counter += self.batch_size
            yield window

    def state_dict(self) -> dict[str, int]:
        return {"counter": self.counter}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.counter = state["counter"]


class ToyNormalizer:
    def save(self, directory: Path) -> None:
        for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
            (directory / name).write_text("{}")


def toy_config(output_dir: Path, **changes: Any) -> TrainConfig:
    spec = WindowSpec(frame_offsets_s=(0.0,), chunk_s=0.4)
    stages = (
        StageConfig(
            name="world",
            window=spec,
            steps=30,
            batch_size=8,
            learning_rate=1e-2,
            warmup_steps=5,
            ema_decay=0.9,
            accumulate=2,
        ),
        StageConfig(
            name="policy",
            window=spec,
            steps=30,
            batch_size=8,
            learning_rate=1e-2,
            schedule="constant",
            optimizer="muon",
        ),
    )
    defaults: dict[str, Any] = {
        "name": "toy run",
        "model": "toy",
        "stages": stages,
        "output_dir": str(output_dir),
        "precision": "fp32",
        "device": "cpu",
        "save_every": 7,
        "log_every": 5,
        "logger": "none",
    }
    return TrainConfig(**(defaults | changes))


def toy_model(config: TrainConfig) -> ToyModel:
    return ToyModel(config.model_config or ToyConfig())


def toy_data(
    config: TrainConfig, stage: StageConfig, model: Any, *, rank: int, world_size: int, **rest: Any
) -> StageData:
    poison = rest.get("poison", {}).get(stage.name, {})
    return StageData(
        loader=ToyLoader(stage.batch_size, rank, world_size, poison=poison),
        validation=lambda: [draw_window(range(10_000 + 8 * i, 10_008 + 8 * i)) for i in range(2)],
        normalizer=ToyNormalizer(),
        contract={"cameras": {}},
        fingerprint="toy",
        describe=lambda first, count: f"episodes {first // 10} to {(first + count - 1) // 10}",
    )


def train_until_killed(output_dir: str, resume: bool, kill_at: int | None, pause: float) -> None:
    """In a process of its own. ``kill_at``: die at that call which changes the disk; ``pause``: seconds per step."""
    import os
    import signal
    import time

    from wamkit.training import checkpoint, loop, seeding, state

    if kill_at is not None:
        calls = iter(range(10**9))

        def deadly(function):
            def call(*args, **kwargs):
                if next(calls) == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return call

        os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)
        Path.rename, Path.mkdir = deadly(Path.rename), deadly(Path.mkdir)
        checkpoint.shutil.rmtree = deadly(checkpoint.shutil.rmtree)
        state.save_weights, state.write_json = deadly(state.save_weights), deadly(state.write_json)
    if pause:
        at = seeding.StepRandomness.at
        seeding.StepRandomness.at = lambda *args: (time.sleep(pause), at(*args))[1]
    whole = toy_config(Path(output_dir), resume=resume, save_every=4)
    config = replace(whole, stages=tuple(replace(stage, steps=SHORT) for stage in whole.stages))
    loop.train(config, build_model=toy_model, build_data=toy_data)


def train_until_step(config: TrainConfig, step: int) -> None:
    """In a process of its own: real models and recordings, and SIGKILL at the beginning of that step of the run."""
    import os
    import signal

    from wamkit.training import loop, seeding

    at, steps = seeding.StepRandomness.at, iter(range(10**9))

    def deadly(*arguments: Any) -> torch.Generator:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return at(*arguments)

    seeding.StepRandomness.at = deadly
    loop.train(config)


def quiet_config(output_dir: Path, **changes: Any) -> TrainConfig:
    """Short and without noise: several ranks compute what one does."""
    whole = toy_config(output_dir, model_config=ToyConfig(noisy=False), save_every=6, **changes)
    return replace(whole, stages=tuple(replace(stage, steps=SHORT) for stage in whole.stages))


def train_as_rank(rank: int, world_size: int, port: int, output_dir: str, strategy: str) -> None:
    """In a process of its own, as a launcher would start it: the toy and, under FSDP2, every real model."""
    import os

    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    from wamkit.training import loop, stage_run

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    wrap = stage_run.wrap

    def checked(accelerator: Any, objective: Any, units: Any, strategy: str) -> nn.Module:
        wrapped = wrap(accelerator, objective, units, strategy)
        assert isinstance(wrapped, nn.parallel.DistributedDataParallel) is (strategy == "ddp")
        assert all(isinstance(p, DTensor) for p in wrapped.parameters()) is (strategy == "fsdp2")
        assert units
        assert all(isinstance(unit, FSDPModule) is (strategy == "fsdp2") for unit in units)
        return wrapped

    stage_run.wrap = checked
    folder = Path(output_dir)
    loop.train(quiet_config(folder / "toy", strategy=strategy), build_model=toy_model, build_data=toy_data)
    if strategy == "fsdp2":
        from small_models import MAKERS, small_config, small_data, small_model

        for name in MAKERS:
            config = small_config(name, folder / name, strategy)
            loop.train(config, build_model=small_model, build_data=small_data)
    assert torch.distributed.get_world_size() == world_size
    torch.distributed.destroy_process_group()
