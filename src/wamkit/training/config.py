"""What a training run is: frozen dataclasses that travel as JSON with every checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from wamkit.configuration import from_dict, to_dict
from wamkit.data.windows import WindowSpec
from wamkit.errors import suggest
from wamkit.training.errors import ResumeError, TrainingError
from wamkit.training.failed_episodes import FailedEpisodes


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of a model: its windows, its length and its optimiser."""

    name: str
    """A stage that the model declares."""
    window: WindowSpec
    steps: int
    batch_size: int
    """Over all processes."""
    learning_rate: float
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the matrices of linear layers, AdamW for the rest (`wamkit.training.muon`)."""
    weight_decay: float = 1e-2
    """Of matrices; biases, norms and other vectors are not decayed."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup_steps: int = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    final_lr_fraction: float = 0.05
    """Where the cosine ends, as a fraction of ``learning_rate``."""
    clip_norm: float | None = 1.0
    """Largest global norm of the gradient; None does not clip (the norm is logged all the same)."""
    ema_decay: float | None = None
    """Decay of the moving average of weights; with one, it is the average that is saved, validated and built on."""
    accumulate: int = 1
    """Batches per step; the step's gradient is the mean of theirs."""
    seed_offset: int = 0
    """Added to the run's seed in this stage."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise TrainingError(f"Stage {self.name!r}: {name} is {getattr(self, name)}; it must be at least 1.")
        if self.warmup_steps > self.steps:
            raise TrainingError(
                f"Stage {self.name!r}: warmup_steps ({self.warmup_steps}) exceed steps ({self.steps});"
                f" lower --stages.{self.name}.warmup_steps too."
            )


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Which recordings a run learns from. Settings for each root are empty, or as many as there are roots."""

    roots: tuple[str, ...] = ()
    """Folders of LeRobotDataset v3; one may stand here several times, under different strides."""
    weights: tuple[float, ...] = ()
    """How often each is drawn from, relative to the others; empty: by its number of windows."""
    cameras: tuple[tuple[tuple[str, str], ...], ...] = ()
    """For each root, pairs (the model's camera, the recording's camera); empty: names are the same."""
    strides: tuple[int, ...] = ()
    """View each root at its rate divided by this; empty: as recorded."""
    combine: tuple[Literal["sum", "last"] | tuple[Literal["sum", "last"], ...], ...] = ()
    """How actions combine under a stride: for each root one rule, or one for each of its dimensions; empty: the last
    counts."""
    holdout_episodes: int = 0
    """Episodes of each root, evenly spread over it, that are never trained on and serve validation."""
    state_normalization: Literal["IDENTITY", "MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10"] = "MEAN_STD"
    action_normalization: Literal["IDENTITY", "MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10"] = "MEAN_STD"
    failed_episodes: FailedEpisodes = "not_imitated"
    """What becomes of episodes that their recording calls failed. ``not_imitated``: stages whose windows hold actions
    leave them out, since a policy would learn to fail alike; the others, which learn what things look like and how
    they move, keep them. ``left_out``: no stage sees them. ``kept``: every stage does. The run says how many were left
    out. A recording that does not say how its episodes ended is taken whole."""
    statistics: Literal["recordings", "policy"] = "recordings"
    """Where normalisation statistics come from: the training episodes (those of all stages, so that units do not
    change between stages), or the policy that the run starts from."""
    stored_views: int = 0
    """Views that a feature store keeps of each frame where a stage asks for several: at least as many as it asks for.
    With more, every window draws its views among them. Each takes as much disk as the first."""
    cache_dir: str | None = None
    """Where decoded frames and features are kept; None: ``cache`` in the output directory."""

    def __post_init__(self) -> None:
        for name in ("weights", "cameras", "strides", "combine"):
            given = getattr(self, name)
            if given and len(given) != len(self.roots):
                raise TrainingError(
                    f"dataset.{name} holds {len(given)} settings for {len(self.roots)} roots; give one each, or none."
                )


@dataclass(frozen=True, kw_only=True)
class StartingPolicy:
    """Weights to start from."""

    path: str | None = None
    """A checkpoint's ``pretrained_model``; None: random weights (and the model's own pretrained parts)."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole run: a model, its recordings and its stages in order."""

    name: str
    model: str
    preset: str = "tiny"
    model_config: Any = None
    """The model's own config; None: that of ``preset``."""
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    stages: tuple[StageConfig, ...]
    selected_stages: tuple[str, ...] = ()
    """Run these alone, in the order of ``stages``; empty: all."""
    policy: StartingPolicy = field(default_factory=StartingPolicy)
    seed: int = 0
    output_dir: str = "outputs/train"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16: autocast, with weights and optimiser in fp32. auto: bf16 where the processor computes in it, else fp32;
    the checkpoint's config says which it was."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    """How several processes share the model; of no effect in one."""
    workers: int = 1
    """Background readers of windows."""
    save_every: int = 1000
    """Steps between checkpoints; each stage's end is saved in any case."""
    keep_last: int = 2
    """Checkpoints kept beside those at the stages' ends."""
    log_every: int = 20
    validate_every: int = 0
    """Steps between validations on the held-out episodes; 0: at each stage's end, if episodes are held out."""
    validation_batches: int = 8
    logger: Literal["none", "tensorboard", "wandb"] = "tensorboard"
    resume: bool = False
    """Go on with the run in ``output_dir``; where it has no checkpoint yet, start it."""

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names:
            raise TrainingError(f"Run {self.name!r} has no stage; give it at least one.")
        if len(set(names)) != len(names):
            raise TrainingError(f"Run {self.name!r} names a stage twice: {', '.join(names)}.")
        for name in self.selected_stages:
            if name not in names:
                raise TrainingError(f"Run {self.name!r} has no stage {name!r}.{suggest(name, names)}")
        for name, least in (("save_every", 1), ("keep_last", 1), ("log_every", 1), ("validate_every", 0)):
            if getattr(self, name) < least:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be at least {least}.")

    def stages_to_run(self) -> tuple[StageConfig, ...]:
        """The selected stages in order.

        Raises:
            TrainingError: a stage was left out that a later one builds on, and no checkpoint stands in for it.
        """
        chosen = tuple(stage for stage in self.stages if not self.selected_stages or stage.name in self.selected_stages)
        if chosen[0] is not self.stages[0] and self.policy.path is None:
            raise TrainingError(
                f"Stage {chosen[0].name!r} builds on {self.stages[0].name!r};"
                " give the checkpoint to start from with --policy.path."
            )
        return chosen

    def to_dict(self) -> dict[str, Any]:
        """As nested dicts, ready for JSON."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], model_config_class: type | None = None) -> TrainConfig:
        """Build from what `to_dict` returned.

        Args:
            values: The JSON object.
            model_config_class: Class of ``model_config``; None: looked up in the model registry.

        Raises:
            ConfigError: an unknown key, with a suggestion, or a value of the wrong type.
        """
        values = dict(values)
        model_config = values.pop("model_config", None)
        config = from_dict(cls, values)
        if model_config is None:
            return config
        if model_config_class is None:
            from wamkit.models import registry

            model_config_class = registry.model_class(config.model).config_class
        return dataclasses.replace(
            config, model_config=from_dict(model_config_class, model_config, "config.model_config")
        )


# What may change between a run and its resumption without changing a bit of the outcome, and where data lies.
_FREE = {"resume", "output_dir", "save_every", "keep_last", "log_every", "workers", "logger", "device", "strategy"}
_FREE |= {"validate_every", "validation_batches", "policy"}
_FREE_OF_DATASET = {"roots", "cache_dir"}


def check_resumable(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse to resume a run under a config that would train something else.

    Args:
        stored: ``train_config.json`` of the checkpoint.
        asked: `TrainConfig.to_dict` of the run that is to go on.

    Raises:
        ResumeError: naming what differs.
    """
    differing = [
        path
        for path in sorted(_differences(stored, asked))
        if path.split(".")[0] not in _FREE and path.removeprefix("dataset.").split("[")[0] not in _FREE_OF_DATASET
    ]
    if differing:
        shown = ", ".join(
            f"{path} (was {_lookup(stored, path)!r}, now {_lookup(asked, path)!r})" for path in differing[:4]
        )
        raise ResumeError(
            f"Cannot resume: the run in this output directory was started with another {shown}."
            " Give it the same values, or start a new run in another output directory."
        )


def _flat(values: Any, path: str = "") -> dict[str, Any]:
    if isinstance(values, Mapping) and values:
        return {k: v for key, item in values.items() for k, v in _flat(item, f"{path}.{key}" if path else key).items()}
    if isinstance(values, (list, tuple)) and values:
        return {k: v for i, item in enumerate(values) for k, v in _flat(item, f"{path}[{i}]").items()}
    return {path: [] if isinstance(values, (list, tuple)) else values}


def _differences(one: Any, other: Any) -> set[str]:
    first, second = _flat(one), _flat(other)
    missing = object()
    return {path for path in first.keys() | second.keys() if first.get(path, missing) != second.get(path, missing)}


def _lookup(values: Any, path: str) -> Any:
    return _flat(values).get(path)
