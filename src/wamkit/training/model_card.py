"""The README.md of a checkpoint: what it is, what it learned from, how to use it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wamkit.models.base import WorldActionModel
    from wamkit.training.config import TrainConfig
    from wamkit.training.state import Position


def model_card(config: TrainConfig, model: WorldActionModel, position: Position) -> str:
    """Markdown with the hub's front matter."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    stages = "\n".join(
        f"| {stage.name} | {stage.steps} | {stage.batch_size} | {stage.learning_rate:g} | {stage.ema_decay or ''} |"
        for stage in config.stages_to_run()
    )
    recordings = "\n".join(f"- `{Path(root).name}`" for root in config.dataset.roots) or "- (none named)"
    state = "finished" if position.stage_finished else f"step {position.stage_step}"
    start = f"\nStarted from `{config.policy.path}`.\n" if config.policy.path else ""
    return f"""---
library_name: wamkit
pipeline_tag: robotics
tags:
- robotics
- world-action-model
- {config.model}
---

# {config.name}

A `{config.model}` world action model ({parameters / 1e6:.1f} M parameters), trained with wamkit. This checkpoint was
written in stage `{position.stage}` ({state}), {position.global_step} steps into the run, seed {config.seed}.
{start}
```python
import wamkit

policy = wamkit.load("path/to/pretrained_model")
chunk = policy.act(observation)
```

| stage | steps | batch | learning rate | moving average |
|---|---|---|---|---|
{stages}

Recordings:

{recordings}

`train_config.json` holds the whole configuration, `config.json` the model and its data contract.
"""
