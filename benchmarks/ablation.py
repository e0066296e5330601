"""What each part of LaWAM is worth on tasks that are not easy: the ablations, and a policy without a world model.

  lawam                  LaWM's subgoal, detached from the action loss
  without_lawm           the latent action goes to the action expert as one token; no subgoal is imagined
  without_distillation   nothing ties the policy's latent action to what the frames show
  without_insulation     the action loss may bend the subgoal
  no_world_model         neither latent action nor subgoal: images and instruction to actions

Equal steps, batches and demonstrations; the arms without LaWM get a wider action expert, so that the parameters which
act at test time differ by less than 5 %.

    python benchmarks/ablation.py [--seeds 0 1 2] [--episodes 50] [--arms ...] [--toy] [--json]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import _closed_loop as closed_loop
import torch
from torch import nn

from wamkit.actions.flow_expert import FlowExpert, FlowExpertConfig
from wamkit.models.lawam import LaWAM, LaWAMConfig, preset
from wamkit.nn.embodiment_linear import EmbodimentLinear

TASKS = ("door-open-v3", "dial-turn-v3", "lever-pull-v3")
TOLERANCE = 0.05


def acting_parameters(modules: Iterable[nn.Module]) -> int:
    """Parameters of some modules, of which one embodiment's tables count."""
    count = 0
    for module in (inner for outer in modules for inner in outer.modules()):
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        count += own // module.weight.shape[0] if isinstance(module, EmbodimentLinear) else own
    return count


def active_parameters(config: LaWAMConfig) -> int:
    """Parameters that take part in one action chunk: no teacher, and no pretext head of the encoder."""
    with torch.device("meta"):
        model = LaWAM(config)
    acting = [model.vision_encoder, model.vlm, model.flow]
    if config.subgoal != "none":
        acting.append(model.latent_head)
    if config.subgoal in ("insulated", "coupled"):
        acting.append(model.lam.decoder)
    if config.subgoal == "latent_action_only":
        acting.append(model.latent_token)
    pretext = getattr(model.vision_encoder, "pretext", None)
    return acting_parameters(acting) - (acting_parameters([pretext]) if pretext is not None else 0)


def widened_to(config: LaWAMConfig, target: int) -> LaWAMConfig:
    """The action expert's width that brings the active parameters nearest to ``target``."""
    expert = config.action

    def size(candidate: FlowExpertConfig) -> int:
        with torch.device("meta"):
            flow = FlowExpert(candidate, dynamics_width=config.encoder.width, language_width=config.vlm.width)
        return acting_parameters([flow])

    wanted = target - active_parameters(config) + size(expert)
    widths = range(expert.width, 3 * expert.width, 2 * expert.heads)
    candidates = [dataclasses.replace(expert, width=width) for width in widths]
    return dataclasses.replace(config, action=min(candidates, key=lambda candidate: abs(size(candidate) - wanted)))


def configs(base: LaWAMConfig) -> dict[str, LaWAMConfig]:
    """The arms' models, of equal size where it counts."""
    target = active_parameters(base)
    arms = {
        "lawam": base,
        "without_lawm": widened_to(dataclasses.replace(base, subgoal="latent_action_only"), target),
        "without_distillation": dataclasses.replace(base, distillation_weight=0.0),
        "without_insulation": dataclasses.replace(base, subgoal="coupled"),
        "no_world_model": widened_to(dataclasses.replace(base, subgoal="none"), target),
    }
    for name, config in arms.items():
        gap = active_parameters(config) / target - 1
        assert abs(gap) < TOLERANCE, f"{name} has {gap:+.1%} active parameters: search other widths"
    return arms


def main(arguments: Sequence[str] | None = None) -> None:
    options = closed_loop.parsed(closed_loop.parser(__doc__, TASKS, "ablation"), arguments)
    models = configs(preset(options.preset))
    chosen = closed_loop.chosen(options, models)
    arms = [
        closed_loop.TrainedArm(name, config, lambda root: closed_loop.dataset(options, root))
        for name, config in models.items()
    ]
    closed_loop.run(
        options,
        arms,
        [("lawam", name) for name in models if name != "lawam"],
        active_parameters={name: active_parameters(models[name]) for name in chosen},
        expert_width={name: models[name].action.width for name in chosen},
    )


if __name__ == "__main__":
    main()
