"""From a stage's config to what it trains on: stores, mixture, loader, held-out windows, contract."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from wamkit.data.augment import Augmentation
from wamkit.data.cache import FeatureStore, FrameStore
from wamkit.data.contract import describe_mixture
from wamkit.data.latent_store import LatentStore
from wamkit.data.lerobot import LeRobotSource
from wamkit.data.loader import WindowLoader
from wamkit.data.mixture import Mixture, fit_normalizer
from wamkit.data.normalize import Normalizer
from wamkit.data.windows import MixtureEntry
from wamkit.encoders.byte_text import InstructionTooLong
from wamkit.training.errors import TrainingError
from wamkit.training.failed_episodes import successful, successful_of_held_out
from wamkit.training.seeding import derive_seed
from wamkit.training.validation import evaluation_mode
from wamkit.types import Window

if TYPE_CHECKING:
    from wamkit.models.base import WorldActionModel
    from wamkit.training.config import StageConfig, TrainConfig


class Loader(Protocol):
    """What the loop asks of a loader of windows: to go on for ever, and to know where it stands."""

    def __iter__(self) -> Iterator[Window]:
        """This rank's slices of the global batches, from the counter on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, counting what was handed out, not what was read ahead."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


@dataclass(frozen=True, kw_only=True)
class StageData:
    """What a stage trains on and is validated on."""

    loader: Loader
    validation: Callable[[], Iterable[Window]] | None = None
    """The held-out windows, the same at each call; None without held-out episodes."""
    normalizer: Any = None
    """Has ``save(directory)``."""
    contract: Any = None
    fingerprint: str = ""
    """Changes when the recordings do."""
    describe: Callable[[int, int], str] | None = None
    """``describe(first_draw, count)``: which episodes those draws come from, for an error message."""
    notes: tuple[str, ...] = ()
    """Lines that a user should read: what of the recordings is not used."""

    def close(self) -> None:
        """Stop the loader's background work."""
        close = getattr(self.loader, "close", None)
        if close is not None:
            close()


def build_model(config: TrainConfig) -> WorldActionModel:
    """The model that a config names, with its initial weights."""
    from wamkit.models import registry

    return registry.build(config.model, config.preset if config.model_config is None else config.model_config)


def build_stage_data(
    config: TrainConfig,
    stage: StageConfig,
    model: WorldActionModel,
    *,
    rank: int,
    world_size: int,
    progress: Callable[..., None] | None = None,
) -> StageData:
    """Open a stage's recordings, build the stores that are missing, and draw windows from them.

    Args:
        config: The run.
        stage: Its windows, batch size and seed.
        model: As it enters the stage, on its device; its frozen encoder fills the feature store where the windows
            ask for features.
        rank: This process; all of them build the same data and read their share of each batch.
        world_size: How many there are.
        progress: Told of decoding and encoding.

    Raises:
        WamkitError: a recording, a store or the spec is not as it should be.
    """
    if not config.dataset.roots:
        raise TrainingError("The run has no recordings: name their folders with --dataset.roots.")
    # At the first stage already: what only the last one reads should not stop the run after hours.
    if any(model.reads_instructions(name) for name in config.selected_stages or [s.name for s in config.stages]):
        check_instructions(config, model)
    entries, held_out = [], []
    for index in range(len(config.dataset.roots)):
        train, rest = _entries_of_root(config, stage, model, index, progress)
        entries.append(train)
        held_out += [rest] if rest is not None else []
    notes: tuple[str, ...] = ()
    rule = config.dataset.failed_episodes
    if rule == "left_out":
        (entries, notes), held_out = successful(entries), successful_of_held_out(held_out)
    # Before the stages part ways: what one of them learned, the next reads in the same units.
    normalizer = _normalizer(config, entries)
    if rule == "not_imitated" and stage.window.chunk_s is not None:
        (entries, notes), held_out = successful(entries), successful_of_held_out(held_out)
    seed = derive_seed(config.seed + stage.seed_offset, stage.name, "draws")
    mixture = Mixture(entries, stage.window, normalizer, seed)
    loader = WindowLoader(
        mixture,
        stage.batch_size,
        rank=rank,
        world_size=world_size,
        workers=config.workers,
        pin_memory=next(model.parameters()).device.type == "cuda",
    )
    return StageData(
        loader=loader,
        validation=_validation(config, stage, held_out, normalizer, rank, world_size) if held_out else None,
        normalizer=normalizer,
        contract=describe_mixture(mixture),
        fingerprint=mixture.fingerprint(),
        describe=mixture.describe,
        notes=notes,
    )


def check_instructions(config: TrainConfig, model: WorldActionModel) -> None:
    """Refuse recordings whose instructions the model cannot read, before anything is decoded or trained.

    Raises:
        TrainingError: with the folder of the recording.
    """
    for root in config.dataset.roots:
        tasks = sorted({episode.task for episode in LeRobotSource(Path(root)).episodes})
        try:
            model.check_instructions(tasks)
        except InstructionTooLong as error:
            raise TrainingError(f"{root}: {error}") from error
        except OSError as error:
            raise TrainingError(
                f"the tokenizer of {model.name} cannot be loaded, and it is to read words: {error}"
            ) from error


def holdout_split(episodes: int, held_out: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which episodes of a recording are trained on, and which are held out, evenly spread over it.

    Evenly spread, because recordings of several tasks are usually stored task after task.

    Raises:
        TrainingError: nothing would be left to train on.
    """
    if held_out >= episodes > 0:
        raise TrainingError(
            f"holdout_episodes is {held_out}, but a recording has {episodes} episodes; lower dataset.holdout_episodes."
        )
    chosen = {int((index + 0.5) * episodes / held_out) for index in range(held_out)}
    return tuple(e for e in range(episodes) if e not in chosen), tuple(sorted(chosen))


def _entries_of_root(
    config: TrainConfig, stage: StageConfig, model: WorldActionModel, index: int, progress: Callable[..., None] | None
) -> tuple[MixtureEntry, MixtureEntry | None]:
    """The training and the held-out episodes of one root, with their stores."""
    dataset, spec = config.dataset, stage.window
    directory = Path(dataset.cache_dir) if dataset.cache_dir is not None else Path(config.output_dir) / "cache"
    source = LeRobotSource(Path(dataset.roots[index]))
    renamed = dict(dataset.cameras[index]) if dataset.cameras else {}
    cameras = source.cameras
    if spec.cameras is not None:
        wanted = {renamed.get(camera, camera) for camera in spec.cameras}
        cameras = tuple(camera for camera in source.cameras if camera in wanted)
    frames = FrameStore.build(source, directory, cameras, spec.resolution, progress=progress, resize=spec.resize)
    features: FeatureStore | LatentStore | None = None
    if spec.feature_views > 0 and cameras:
        if model.clip_encoder(stage.name) is not None:
            features = _latent_store(stage, model, frames, directory, renamed, progress)
        else:
            features = _feature_store(config, stage, model, frames, directory, renamed, progress)
    train, held_out = holdout_split(len(source.episodes), dataset.holdout_episodes)
    entry = MixtureEntry(
        source=source,
        frame_store=frames,
        feature_store=features,
        weight=dataset.weights[index] if dataset.weights else None,
        camera_map=renamed,
        episodes=train,
        stride=dataset.strides[index] if dataset.strides else 1,
        combine=dataset.combine[index] if dataset.combine else "last",
    )
    return entry, replace(entry, episodes=held_out) if held_out else None


def _feature_store(
    config: TrainConfig,
    stage: StageConfig,
    model: WorldActionModel,
    frames: FrameStore,
    directory: Path,
    renamed: Mapping[str, str],
    progress: Callable[..., None] | None,
) -> FeatureStore:
    encoder = model.visual_encoder(stage.name)
    if encoder is None:
        raise TrainingError(
            f"Stage {stage.name!r} asks for features of a frozen encoder, and {model.name} has none in that stage;"
            " set window.feature_views to 0."
        )
    read = model.feature_cameras(stage.name)
    cameras = frames.cameras
    if read is not None:
        named = [renamed.get(camera, camera) for camera in read]
        # A recording without them is drawn from all the same, as one whose views are missing.
        cameras = tuple(own for own in frames.cameras if own in named) or frames.cameras[:1]
    # As many views as any stage wants: stages that share the encoder then share the store.
    views = max(other.window.feature_views for other in config.stages)
    if views > 1:
        views = max(views, config.dataset.stored_views)
    device = next(encoder.parameters()).device
    with evaluation_mode(encoder):
        return FeatureStore.build(
            frames,
            lambda pictures: encoder(pictures.to(device)),
            encoder_hash=encoder.weights_hash(),
            preprocessing=encoder.preprocessing,
            directory=directory,
            cameras=cameras,
            views=views,
            augment=Augmentation() if views > 1 else None,
            progress=progress,
        )


def _latent_store(
    stage: StageConfig,
    model: WorldActionModel,
    frames: FrameStore,
    directory: Path,
    renamed: Mapping[str, str],
    progress: Callable[..., None] | None,
) -> LatentStore:
    encoder = model.clip_encoder(stage.name)
    assert encoder is not None
    device = next(model.parameters()).device
    with evaluation_mode(model):
        return LatentStore.build(
            frames,
            lambda clips: encoder({camera: clip.to(device) for camera, clip in clips.items()}),
            encoder_hash=encoder.weights_hash(),
            preprocessing=encoder.preprocessing,
            offsets_s=stage.window.offsets(frames.source.embodiment).tolist(),
            directory=directory,
            cameras={camera: renamed.get(camera, camera) for camera in encoder.cameras},
            progress=progress,
        )


def _normalizer(config: TrainConfig, entries: Sequence[MixtureEntry]) -> Normalizer:
    dataset = config.dataset
    if dataset.statistics == "policy":
        if config.policy.path is None:
            raise TrainingError("dataset.statistics is 'policy', but the run starts from none; give --policy.path.")
        return Normalizer.load(config.policy.path)
    return fit_normalizer(entries, state_mode=dataset.state_normalization, action_mode=dataset.action_normalization)


def _validation(
    config: TrainConfig,
    stage: StageConfig,
    held_out: Sequence[MixtureEntry],
    normalizer: Normalizer,
    rank: int,
    world_size: int,
) -> Callable[[], Iterator[Window]]:
    """Always the same draws from the held-out episodes; this rank's share of each batch."""
    mixture = Mixture(held_out, replace(stage.window, frame_jitter_s=0.0), normalizer, derive_seed("validation"))
    share = stage.batch_size // world_size

    def windows() -> Iterator[Window]:
        for batch in range(config.validation_batches):
            first = batch * stage.batch_size + rank * share
            yield mixture.window(range(first, first + share))

    return windows
