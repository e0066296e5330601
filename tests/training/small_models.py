"""Every real model, as small as it gets, trained by one process or by several on the same windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from micro_causal import LINGBOT, REPWAM, lingbot, repwam
from micro_lawam import lawam
from micro_video import VIDEO, fast, light
from toy_training import ToyLoader, ToyNormalizer

from wamkit.data.windows import WindowSpec
from wamkit.models.base import WorldActionModel
from wamkit.training.config import StageConfig, TrainConfig
from wamkit.training.stages import StageData
from wamkit.types import Window

# As few blocks as there can be: two processes that share a model speak to each other at every one of them.
MAKERS = {
    "lawam": lawam,
    "fast_wam": lambda: fast(video=replace(VIDEO, layers=1)),
    "light_wam": lambda: light(video=replace(VIDEO, layers=2)),
    "repwam": lambda: repwam(video=replace(REPWAM.video, layers=1)),
    "lingbot_va": lambda: lingbot(video=replace(LINGBOT.video, layers=1)),
}
STEPS = {
    "lawam": {"latent_action": 2, "policy": 2},
    "fast_wam": {"policy": 1},
    "light_wam": {"policy": 1},
    "repwam": {"adapt": 1},
    "lingbot_va": {"adapt": 1},
}
"""Of each model's stages."""


def small_config(name: str, output_dir: Path, strategy: Any = "ddp") -> TrainConfig:
    # With AdamW's usual eps a weight whose gradient is all but zero moves by the sign of a rounding error.
    stages = tuple(
        StageConfig(
            name=stage,
            window=WindowSpec(),
            steps=steps,
            batch_size=4,
            learning_rate=1e-3,
            eps=1e-4,
            schedule="constant",
        )
        for stage, steps in STEPS[name].items()
    )
    return TrainConfig(
        name=name,
        model=name,
        stages=stages,
        output_dir=str(output_dir),
        precision="fp32",
        device="cpu",
        strategy=strategy,
        logger="none",
    )


def small_model(config: TrainConfig) -> WorldActionModel:
    model = MAKERS[config.model]()
    loss = model.loss

    def evenly(*arguments: Any) -> Any:
        with same_draws_for_every_sample():
            return loss(*arguments)

    model.loss = evenly
    return model


@contextmanager
def same_draws_for_every_sample() -> Iterator[None]:
    """Noise that a sample gets whichever process it falls to: the batch's axis is the first of what is drawn."""

    def even(draw: Any) -> Any:
        def drawn(*size: Any, generator: torch.Generator | None = None, **rest: Any) -> torch.Tensor:
            shape = tuple(size[0]) if isinstance(size[0], tuple) else size
            source = torch.Generator().manual_seed(len(shape))
            return draw(1, *shape[1:], generator=source, **rest).expand(shape).clone()

        return drawn

    whole = torch.randint

    def length(low: int, high: int, size: tuple[()], generator: torch.Generator | None = None, **rest: Any) -> Any:
        assert size == ()  # one for the batch: how long its chunks are
        return whole(low, high, size, generator=torch.Generator().manual_seed(0), **rest)

    draws = {"rand": even(torch.rand), "randn": even(torch.randn), "randint": length}
    with patch.multiple(torch, **draws):
        yield


def small_data(
    config: TrainConfig, stage: StageConfig, model: WorldActionModel, *, rank: int, world_size: int, **_: Any
) -> StageData:
    draw = partial(_windows, model, stage.name)
    return StageData(
        loader=ToyLoader(stage.batch_size, rank, world_size, draw=draw),
        normalizer=ToyNormalizer(),
        contract={"cameras": {}},
        fingerprint="small",
    )


def _windows(model: Any, stage: str, draws: range) -> Window:
    windows = [model.fake_window(1, stage=stage, seed=draw) for draw in draws]
    joined = {each.name: _joined([getattr(window, each.name) for window in windows]) for each in fields(Window)}
    if model.name == "lawam":  # two views of the present and the horizon
        shape = (2, 2, model.vision_encoder.tokens, model.vision_encoder.width)
        features = [torch.randn(shape, generator=torch.Generator().manual_seed(draw)) for draw in draws]
        joined["features"] = {model.config.cameras[0]: torch.stack(features)}
    return Window(**joined)


def _joined(values: list[Any]) -> Any:
    if isinstance(values[0], torch.Tensor):
        return torch.cat(values)
    if isinstance(values[0], Mapping):
        return {key: _joined([value[key] for value in values]) for key in values[0]}
    return sum(values, ())
