"""A model of the registry as a LeRobot policy."""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import hf_hub_download
from lerobot.configs import NormalizationMode
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import POLICY_PREPROCESSOR_DEFAULT_NAME
from torch import Tensor

from wamkit.configuration import to_dict
from wamkit.data.contract_terms import BodyContract, Contract
from wamkit.errors import WamkitError
from wamkit.integrations.lerobot import configuration_wamkit
from wamkit.integrations.lerobot.batches import observation_of, window_of
from wamkit.integrations.lerobot.configuration_wamkit import (
    DEFAULT_NORMALIZATION,
    PolicyConfigError,
    WamkitConfig,
    class_prefix,
)
from wamkit.integrations.lerobot.data_contract import contract_of
from wamkit.json_files import read_json
from wamkit.models import registry
from wamkit.training.checkpoint import WEIGHTS, save_weights
from wamkit.training.distributed import full_state, shared_names
from wamkit.training.optimizer import optimizer_groups
from wamkit.training.state import load_pretrained

logger = logging.getLogger(__name__)


class WamkitPolicy(PreTrainedPolicy):
    """One model in one stage: LeRobot's batches in, a loss or normalised actions out.

    Args:
        config: Of the model.
        dataset_stats: LeRobot's statistics; its pipeline uses them, the policy reads those in ``dataset_meta``.
        dataset_meta: The data set that is trained on; None where the policy only acts.
        fresh: Whether the weights are the initial ones, so that published trunks are to be loaded before training.

    Raises:
        PolicyConfigError: the config does not fit the data set, or names no stage to train.
    """

    config_class: ClassVar[type] = WamkitConfig
    name: ClassVar[str] = "wamkit"
    config: WamkitConfig

    def __init__(
        self,
        config: WamkitConfig,
        dataset_stats: dict[str, Any] | None = None,
        dataset_meta: Any = None,
        *,
        fresh: bool = True,
        **_: Any,
    ) -> None:
        super().__init__(config)
        config.validate_features()
        config.normalization_mapping = config.normalization_mapping or dict(DEFAULT_NORMALIZATION)
        if dataset_meta is not None:
            config.stage = config.training_stage()
            self._describe(dataset_meta)
        self.model = registry.build(config.model_name, config.model_config())
        if fresh and dataset_meta is not None:
            self.model.load_pretrained_trunks()
        self._resting: list[torch.nn.Module] = []
        self._trained_on: tuple[Contract, BodyContract] | None = None
        self._prepare_stage()
        self.reset()

    def _describe(self, meta: Any) -> None:
        """Note what the policy is trained on."""
        config = self.config
        view = config.view(config.stage)
        contract = contract_of(meta, config.input_features or {}, config.cameras, view, config.embodiment)
        config.contract = to_dict(contract)
        steps = view.spec.action_count(contract.bodies[0].rate_hz)
        if steps > view.max_actions:
            raise PolicyConfigError(
                f"a chunk of {view.chunk_s:g} s has {steps} actions at {meta.fps:g} Hz and the model {view.max_actions}"
                " tokens for them: give a shorter --policy.horizon_s or a larger --policy.max_actions."
            )
        logger.info(
            "%s, stage %s of %s: %s at %g Hz, cameras %s (the first is the primary one), chunks of %d actions",
            config.model_name,
            config.stage,
            " -> ".join(config.stages),
            contract.bodies[0].embodiment,
            meta.fps,
            ", ".join(config.cameras),
            steps,
        )

    def _prepare_stage(self) -> None:
        if self.config.stage is not None:
            self.model.prepare_stage(self.config.stage)
            self._resting = [module for module in self.model.modules() if not module.training]

    def _contract(self) -> tuple[Contract, BodyContract]:
        """What the policy was trained on, and the robot that is acted with; read once, from the config."""
        if self._trained_on is None:
            self._trained_on = self.config.the_contract(), self.config.body()
        return self._trained_on

    def train(self, mode: bool = True) -> Self:
        """Training mode for what the stage trains; frozen parts keep evaluating."""
        super().train(mode)
        for module in getattr(self, "_resting", ()) if mode else ():
            module.training = False
        return self

    # Training

    def get_optim_params(self) -> list[dict[str, Any]]:
        """The stage's parameter groups with their own learning rates and decay."""
        config = self.config
        assert config.optimizer_lr is not None
        stage = config.training_stage()
        groups = optimizer_groups(
            self.model,
            self.model.parameter_groups(stage),
            stage=stage,
            learning_rate=config.optimizer_lr,
            weight_decay=config.optimizer_weight_decay,
        )
        return [{key: group[key] for key in ("params", "lr", "weight_decay")} for group in groups]

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """The stage's loss, and its terms by name.

        Args:
            batch: LeRobot's, through the preprocessor.
            reduction: ``mean``, or ``none`` for a value of each sample [B], as LeRobot's sample weighting wants it.
        """
        config = self.config
        stage = config.stage or config.stages[-1]
        window = window_of(batch, config.cameras, config.view(stage), *self._contract())
        losses = self.model.loss(window, stage)
        scalars = {name: float(value) for name, value in losses.scalars().items()}
        if reduction == "none":
            parts = [term.weight * torch.where(term.valid, term.value, 0.0) for term in losses.terms.values()]
            return torch.stack(parts).sum(dim=0), scalars
        return losses.total(), scalars

    # Acting

    def reset(self) -> None:
        """Forget the actions that were not executed and what was seen; to be called between episodes."""
        self._queue: deque[Tensor] = deque()
        self._executed: list[Tensor] = []
        self.model.recall(None)

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], noise: Tensor | None = None, **_: Any) -> Tensor:
        """The chunk [B, K, A] in normalised units; LeRobot's postprocessor makes them physical.

        Args:
            batch: LeRobot's, through the preprocessor.
            noise: [B, K, A] of the model's own size, to begin from; None: fresh.
        """
        self.eval()
        config = self.config
        contract, body = self._contract()
        if body.action is None:
            raise PolicyConfigError("the policy was trained on recordings without actions, so it cannot act.")
        observation = observation_of(batch, config.cameras, contract, body)
        device = observation.embodiment.device
        with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            chunk = self.model.act(observation, noise=noise)
        steps = int(chunk.valid.sum(dim=1).min())
        return chunk.actions[:, :steps, : len(body.action.names)].float()

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **options: Any) -> Tensor:
        """The next action [B, A], normalised; a new chunk is computed when the last one is used up.

        A model with a memory is told of the actions on the way, and of the pictures that it must see.
        """
        if self.model.capabilities.remembers and self._executed:
            self._tell(batch)
        if not self._queue:
            chunk = self.predict_action_chunk(batch, **options)
            self._queue.extend(chunk[:, : self.config.n_action_steps].unbind(dim=1))
            self._executed = []
        action = self._queue.popleft()
        self._executed.append(action)
        return action

    def _tell(self, batch: dict[str, Any]) -> None:
        if not self._queue:
            self.model.executed(torch.stack(self._executed, dim=1))
            return
        contract, body = self._contract()
        interval_s = self.model.picture_interval_s
        if interval_s is not None and len(self._executed) % max(1, round(interval_s * body.rate_hz)) == 0:
            images = observation_of(batch, self.config.cameras, contract, body).images
            self.model.observed({camera: pictures.unsqueeze(1) for camera, pictures in images.items()})

    # Files

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """``config.json`` and ``model.safetensors`` as wamkit writes them."""
        self.config._save_pretrained(save_directory)
        weights = full_state(self.model)
        if state_dict is not None:  # gathered by LeRobot under FSDP
            whole = {name.removeprefix("model."): value for name, value in state_dict.items()}
            weights = {name: whole[name] for name in weights}
        save_weights(weights, Path(save_directory) / WEIGHTS, shared_names(self.model))

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, **options: Any) -> Self:
        """A policy from a folder or the hub, whichever library wrote it; see LeRobot for the options.

        Raises:
            PolicyConfigError: the checkpoint is not far enough for the stage that is to be trained.
        """
        config = options.get("config")
        revision = options.get("revision")
        if config is None:
            config = configuration_wamkit.PreTrainedConfig.from_pretrained(pretrained_name_or_path, revision=revision)
            options["config"] = config
        if not isinstance(config, WamkitConfig) or not isinstance(config, cls.config_class):
            raise PolicyConfigError(f"{pretrained_name_or_path} is no {cls.name} policy; it is {config.type!r}.")
        if config.normalization_mapping is None:
            config.normalization_mapping = _stored_modes(pretrained_name_or_path, revision)
        if options.get("dataset_meta") is not None:
            _check_order(config, _stored(pretrained_name_or_path, "config.json", revision).get("stage"))
        return super().from_pretrained(pretrained_name_or_path, fresh=False, **options)

    @classmethod
    def _load_as_safetensor(cls, model: Self, model_file: str, map_location: str, strict: bool) -> Self:
        """All weights or an error; LeRobot's default would only warn of missing ones."""
        load_pretrained(model.model, Path(model_file).parent)
        model._prepare_stage()
        return model


def _check_order(config: WamkitConfig, stored: str | None) -> None:
    """A stage builds on the one before it."""
    stage, stages = config.training_stage(), config.stages
    if stored in stages and stages.index(stage) > stages.index(stored) + 1:
        raise PolicyConfigError(
            f"the checkpoint ended in stage {stored!r}, and {stage!r} builds on {stages[stages.index(stage) - 1]!r}: "
            f"train --policy.stage={stages[stages.index(stored) + 1]} first."
        )


def _stored(path: str | Path, name: str, revision: str | None) -> dict[str, Any]:
    """A JSON file of a checkpoint in a folder or on the hub."""
    folder = Path(path)
    file = folder / name if folder.is_dir() else Path(hf_hub_download(str(path), name, revision=revision))
    return read_json(file, WamkitError, "name a complete checkpoint (.../pretrained_model).")


def _stored_modes(path: str | Path, revision: str | None) -> dict[str, NormalizationMode]:
    """How a checkpoint of wamkit's trainer normalises: its ``config.json`` does not say, its preprocessor does."""
    described = _stored(path, f"{POLICY_PREPROCESSOR_DEFAULT_NAME}.json", revision)
    for step in described.get("steps", ()):
        if "norm_map" in step.get("config", {}):
            return {kind: NormalizationMode(mode) for kind, mode in step["config"]["norm_map"].items()}
    return dict(DEFAULT_NORMALIZATION)


def _policy_class(model_name: str) -> type[WamkitPolicy]:
    prefix = class_prefix(model_name)
    config_class = getattr(configuration_wamkit, f"{prefix}Config")
    members = {"config_class": config_class, "name": model_name, "__module__": __name__}
    return type(f"{prefix}Policy", (WamkitPolicy,), members | {"__doc__": f"{model_name} as a LeRobot policy."})


for _name in configuration_wamkit.POLICY_TYPES:
    globals()[f"{class_prefix(_name)}Policy"] = _policy_class(_name)
