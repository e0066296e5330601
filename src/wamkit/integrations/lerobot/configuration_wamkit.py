"""LeRobot's config of each model of the registry: the model's own fields, and what a LeRobot policy needs besides.

``config.json`` is one file for both libraries: what wamkit writes, LeRobot reads through these classes, and
`wamkit.load` reads what LeRobot writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.optim import AdamWConfig, LRSchedulerConfig
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_IMAGES, OBS_STATE
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from wamkit.configuration import from_dict, to_dict
from wamkit.data.contract_terms import BodyContract, Contract
from wamkit.data.embodiments import embodiment_id
from wamkit.data.windows import WindowSpec
from wamkit.errors import WamkitError, suggest
from wamkit.integrations.lerobot import LEROBOTS_OWN
from wamkit.integrations.lerobot.stage_view import SecondsAhead, StageView, skeleton, stage_view
from wamkit.models import registry
from wamkit.models.base import WorldActionModel
from wamkit.training.config import StageConfig
from wamkit.training.optimizer import learning_rate_factor
from wamkit.training.precision import resolve_precision

OF_THE_PRESET = "<of the preset>"
"""Stands where a field of the model's config was not given; None is a value of its own there."""
DEFAULT_NORMALIZATION = {
    "VISUAL": NormalizationMode.IDENTITY,
    "STATE": NormalizationMode.MEAN_STD,
    "ACTION": NormalizationMode.MEAN_STD,
}


class PolicyConfigError(WamkitError, ValueError):
    """A policy's flags that do not fit the model, its stages or the data set."""


@LRSchedulerConfig.register_subclass("wamkit")
@dataclass
class WamkitSchedulerConfig(LRSchedulerConfig):
    """The schedule of wamkit's trainer over the whole run: linear warm-up, then a cosine to a fraction of the peak."""

    num_warmup_steps: int | None = 50
    final_lr_fraction: float = 0.05

    def build(self, optimizer: Optimizer, num_training_steps: int) -> LambdaLR:
        """As `wamkit.training.optimizer.learning_rate_factor`; a run shorter than the warm-up only warms up."""
        stage = StageConfig(
            name="lerobot",
            window=WindowSpec(),
            steps=num_training_steps,
            batch_size=1,
            learning_rate=1.0,
            warmup_steps=min(self.num_warmup_steps or 0, num_training_steps),
            final_lr_fraction=self.final_lr_fraction,
        )
        return LambdaLR(optimizer, lambda step: learning_rate_factor(stage, step))


@dataclass
class WamkitConfig(PreTrainedConfig):
    """What the configs of all models share; the fields of a model's own config come on top, see `_config_class`."""

    model_name: ClassVar[str] = ""
    model_fields: ClassVar[tuple[str, ...]] = ()

    preset: str = "tiny"
    """Where the model's fields come from that are not given: tiny, small or paper."""
    stage: str | None = None
    """The stage that this run trains; in a checkpoint, the one that it was written in."""
    embodiment: str | None = None
    """Which robot; None: what the data set says, or the only one that the policy was trained on."""
    contract: dict[str, Any] | None = None
    """What the policy was trained on: cameras, rate, dimensions. Written, not given."""
    n_action_steps: int | None = None
    """Actions executed of each chunk before the next observation; None: the whole chunk."""
    dtype: str = "auto"
    """bfloat16 (autocast; weights stay in float32), float32, or auto: bfloat16 where the processor computes in it."""
    normalization_mapping: dict[str, NormalizationMode] | None = None
    """None: MEAN_STD for states and actions, or the modes of the checkpoint that the run starts from."""

    optimizer_lr: float | None = None
    """Peak learning rate; None: 1e-3 for tiny, 1e-4 otherwise."""
    optimizer_betas: tuple[float, float] = (0.9, 0.95)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 1e-2
    """Of matrices; biases, norms and other vectors are not decayed."""
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 50
    scheduler_final_lr_fraction: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype == "auto":
            bf16 = resolve_precision("auto", "cpu" if self.device == "cpu" else "cuda") == "bf16"
            self.dtype = "bfloat16" if bf16 else "float32"
        if self.dtype not in ("bfloat16", "float32"):
            raise PolicyConfigError(f"There is no dtype {self.dtype!r}.{suggest(self.dtype, ('bfloat16', 'float32'))}")
        if self.optimizer_lr is None:
            self.optimizer_lr = 1e-3 if self.preset == "tiny" else 1e-4
        if self.embodiment is not None:
            embodiment_id(self.embodiment)
        self.cameras_given = getattr(self, "cameras", OF_THE_PRESET) != OF_THE_PRESET
        self._views: dict[str, StageView] = {}
        self._skeleton: WorldActionModel | None = None
        self._complete_model_fields()
        if self.contract is not None and not self.input_features:
            self._take_features_from_contract()

    # The model

    def _complete_model_fields(self) -> None:
        chosen = registry.model_class(self.model_name)
        given = {name: getattr(self, name) for name in self.model_fields}
        given = {name: value for name, value in given.items() if value != OF_THE_PRESET}
        # A checkpoint speaks for itself: what it leaves out has the class's default, as `wamkit.load` reads it.
        values = given if self.contract is not None else _merged(to_dict(chosen.preset(self.preset)), given)
        config = from_dict(chosen.config_class, values, f"policy {self.model_name}")
        for name, value in to_dict(config).items():
            setattr(self, name, value)

    def model_config(self) -> Any:
        """The model's own frozen config."""
        chosen = registry.model_class(self.model_name)
        return from_dict(chosen.config_class, {name: getattr(self, name) for name in self.model_fields})

    def _shape(self) -> WorldActionModel:
        """The model without memory for its weights; built once, since LeRobot asks for every feature of a data set."""
        if self._skeleton is None:
            self._skeleton = skeleton(self.model_name, self.model_config())
        return self._skeleton

    @property
    def stages(self) -> tuple[str, ...]:
        """The model's stages, in order."""
        return self._shape().stages

    def view(self, stage: str | None = None) -> StageView:
        """What a stage asks of a data set; None: the last."""
        stage = stage or self.stages[-1]
        if stage not in self._views:
            self._views[stage] = stage_view(self._shape(), stage)
        return self._views[stage]

    def training_stage(self) -> str:
        """The stage that a run trains.

        Raises:
            PolicyConfigError: none is named and there are several, it is unknown, or what it builds on is missing.
        """
        stages = list(self.stages)
        stage = stages[0] if self.stage is None and len(stages) == 1 else self.stage
        if stage is None:
            raise PolicyConfigError(
                f"{self.model_name} is trained in stages, {' -> '.join(stages)}, each in a run of lerobot-train of its "
                f"own: begin with --policy.type={self.model_name} --policy.stage={stages[0]}, then go on with "
                f"--policy.path=RUN/checkpoints/last/pretrained_model --policy.stage={stages[1]}."
            )
        if stage not in stages:
            raise PolicyConfigError(f"{self.model_name} has no stage {stage!r}.{suggest(stage, stages)}")
        if stage != stages[0] and self.pretrained_path is None:
            before = stages[stages.index(stage) - 1]
            raise PolicyConfigError(
                f"Stage {stage!r} builds on {before!r}: start from a checkpoint of that stage with "
                f"--policy.path=RUN/checkpoints/last/pretrained_model --policy.stage={stage} (without --policy.type)."
            )
        return stage

    # What the policy was trained on

    def the_contract(self) -> Contract:
        """What the policy was trained on.

        Raises:
            PolicyConfigError: nothing yet.
        """
        if self.contract is None:
            raise PolicyConfigError(
                f"this {self.model_name} was not trained on anything, so it knows no robot: give a checkpoint with "
                "--policy.path, or train one with lerobot-train or wam train."
            )
        return from_dict(Contract, self.contract, "contract")

    def body(self) -> BodyContract:
        """The robot that is acted with, at the highest rate that the policy knows it at.

        Raises:
            PolicyConfigError: there are several and none is named, or not the named one.
        """
        bodies = self.the_contract().bodies
        known = tuple(dict.fromkeys(body.embodiment for body in bodies))
        name = self.embodiment or (known[0] if len(known) == 1 else None)
        if name is None:
            raise PolicyConfigError(f"the policy knows {', '.join(known)}: say which with --policy.embodiment")
        if name not in known:
            raise PolicyConfigError(f"the policy was not trained on {name!r}.{suggest(name, known)}")
        return max((body for body in bodies if body.embodiment == name), key=lambda body: body.rate_hz)

    def _take_features_from_contract(self) -> None:
        contract = self.the_contract()
        features = {
            f"{OBS_IMAGES}.{camera}": PolicyFeature(FeatureType.VISUAL, (3, *size)) for camera, size in contract.cameras
        }
        vectors = {}
        for body in contract.bodies[:1]:
            if body.state is not None:
                features[OBS_STATE] = PolicyFeature(FeatureType.STATE, (len(body.state.names),))
            if body.action is not None:
                vectors[ACTION] = PolicyFeature(FeatureType.ACTION, (len(body.action.names),))
        self.input_features = features
        self.output_features = self.output_features or vectors

    # What LeRobot asks

    @property
    def observation_delta_indices(self) -> list:
        """The stage's frames, at its offsets in seconds."""
        return [SecondsAhead(offset) for offset in self.view(self.training_stage()).frame_offsets_s]

    @property
    def action_delta_indices(self) -> list:
        """The padded chunk; which of its actions lie within the horizon depends on the data set's rate."""
        return list(range(self.view(self.training_stage()).max_actions))

    @property
    def reward_delta_indices(self) -> None:
        """No reward is learned from."""
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW; the policy's parameter groups carry their own rates and decay."""
        assert self.optimizer_lr is not None
        return AdamWConfig(
            lr=self.optimizer_lr,
            betas=self.optimizer_betas,
            eps=self.optimizer_eps,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> WamkitSchedulerConfig:
        """See `WamkitSchedulerConfig`."""
        return WamkitSchedulerConfig(self.scheduler_warmup_steps, self.scheduler_final_lr_fraction)

    def validate_features(self) -> None:
        """Take the data set's cameras where none were named, and refuse named ones that it lacks.

        Raises:
            PolicyConfigError: there is no camera, or not the named one.
        """
        there = tuple(camera_name(key) for key, feature in self.image_features.items() if feature.shape[0] == 3)
        if not there:
            raise PolicyConfigError(f"{self.model_name} needs a camera, and there is none among the observations.")
        if not self.cameras_given and self.contract is None:
            self.cameras = list(there)
        for camera in self.cameras:
            if camera not in there:
                raise PolicyConfigError(
                    f"the policy sees camera {camera!r}, and there is none among {', '.join(there)}."
                    f"{suggest(camera, there)} Name the cameras with --policy.cameras, the primary one first."
                )


def camera_name(key: str) -> str:
    """The camera of a LeRobot key: ``observation.images.top`` is ``top``, ``observation.image`` is ``image``."""
    return "image" if key == OBS_IMAGE else key.removeprefix(f"{OBS_IMAGES}.")


def class_prefix(model_name: str) -> str:
    """``light_wam`` -> ``LightWam``, as LeRobot's naming convention wants it."""
    return "".join(part.capitalize() for part in model_name.split("_"))


def _merged(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` over ``base``, nested objects field by field unless they are of another kind."""
    merged = dict(base)
    for key, value in given.items():
        old = base.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            same_kind = value.get("kind", old.get("kind")) == old.get("kind")
            value = _merged(old, value) if same_kind else value
        merged[key] = value
    return merged


def _config_class(model_name: str) -> type[WamkitConfig]:
    """The registered config class of one model.

    The model's fields are untyped here, so that their YAML reaches `wamkit.configuration.from_dict`, which knows their
    types, unions included.
    """
    names = tuple(field.name for field in dataclasses.fields(registry.model_class(model_name).config_class))
    taken = {field.name for field in dataclasses.fields(WamkitConfig)} & set(names)
    if taken:
        raise PolicyConfigError(f"fields of {model_name}'s config clash with LeRobot's: rename {', '.join(taken)}.")
    built = dataclasses.make_dataclass(
        f"{class_prefix(model_name)}Config",
        [(name, Any, dataclasses.field(default=OF_THE_PRESET)) for name in names],
        bases=(WamkitConfig,),
        namespace={"model_name": model_name, "model_fields": names, "__doc__": f"LeRobot's config of {model_name}."},
        module=__name__,
    )
    return PreTrainedConfig.register_subclass(model_name, built)


POLICY_TYPES = tuple(name for name in registry.model_names() if name not in LEROBOTS_OWN)
"""The models that are policy types of LeRobot through this plug-in."""

for _name in POLICY_TYPES:
    globals()[f"{class_prefix(_name)}Config"] = _config_class(_name)
