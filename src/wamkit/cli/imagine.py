"""``wam imagine``: what a world model sees coming, measured on held-out episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wamkit.cli.groups import DatasetFlags, UsedPolicyFlags
from wamkit.cli.parsing import parse
from wamkit.errors import WamkitError
from wamkit.json_files import read_json

if TYPE_CHECKING:
    import numpy as np

    from wamkit.data.lerobot import LeRobotSource
    from wamkit.data.windows import MixtureEntry, WindowSpec
    from wamkit.inference.policy import Policy
    from wamkit.models.base import WorldActionModel
    from wamkit.training.config import TrainConfig
    from wamkit.types import Window

BATCH = 32


@dataclass(frozen=True)
class ImagineArguments:
    """Measure a world model on recorded episodes: error by horizon, action dependence, probes, belief."""

    policy: UsedPolicyFlags
    dataset: DatasetFlags
    output_dir: Path
    """Folder for imagine.json, examples and decoded frames."""
    episodes: Literal["held_out", "all"] = "held_out"
    """Of recordings that the policy was trained on, only the episodes held out from it; of others, all."""
    windows: int = 384
    """At most so many windows, drawn without replacement."""
    horizons: int = 3
    """How many of the model's own horizons to roll ahead."""
    rollouts: int = 3
    """How many episodes a causal model imagines from their first picture to their last, as films too; 0: none."""
    seed: int = 0
    """Of the draw of windows, noise and resampling."""
    device: str = "auto"
    """cpu, cuda, or auto."""


def run(argv: Sequence[str]) -> int:
    """Runs the verb."""
    print(imagine(parse(ImagineArguments, argv, verb="imagine")))
    return 0


def imagine(arguments: ImagineArguments) -> str:
    """Writes ``imagine.json`` and example pictures, and returns a summary.

    Raises:
        WamkitError: The checkpoint or the recording is not as it should be, or no episode was held out.
    """
    from wamkit.cli.report import EXAMPLES_FILE
    from wamkit.data.lerobot import LeRobotSource
    from wamkit.evaluation.held_out import encode_held_out, latent_action_of
    from wamkit.evaluation.imagine import examples, imagine_report
    from wamkit.evaluation.latent_action_metrics import add_latent_actions
    from wamkit.evaluation.provenance import collect
    from wamkit.evaluation.report_figures import save_examples
    from wamkit.evaluation.results import write_json
    from wamkit.inference.policy import checkpoint_folder, load
    from wamkit.training.config import TrainConfig

    folder = checkpoint_folder(arguments.policy.path)
    settings = arguments.policy.inference_settings()
    policy = load(folder, device=arguments.device, settings=settings)
    mend = "name a checkpoint that `wam train` wrote, or copy it again."
    config = TrainConfig.from_dict(read_json(folder / "train_config.json", WamkitError, mend))
    source = LeRobotSource(arguments.dataset.root)
    windows, episodes, rows = held_out_windows(arguments, policy, config, source)
    record = collect(checkpoint=folder, settings=settings, config=arguments, seeds=[arguments.seed])
    if "pixels" in policy.model.capabilities.imagines:
        from wamkit.evaluation.imagined_video import video_report

        strips = arguments.output_dir / "imagined"
        result = video_report(policy.model, windows, episodes, provenance=record, seed=arguments.seed, pictures=strips)
        if policy.model.capabilities.action_conditioned and windows[0].actions.shape[-1]:
            result |= _told_actions(policy.model, windows, episodes, result["not_measured"], arguments.seed)
        if arguments.rollouts:
            result |= _whole_episodes(arguments, policy, config, source, result["not_measured"])
        else:
            result["not_measured"]["episode_rollouts"] = "None was asked for (--rollouts 0)."
        if latent_action_of(policy.model) is not None:
            held_out = encode_held_out(policy.model, windows, episodes)
            result = add_latent_actions(result, policy.model, held_out, seed=arguments.seed)
            shown = examples(policy.model, held_out, seed=arguments.seed)
            save_examples(arguments.output_dir / EXAMPLES_FILE, *shown)
        return "\n".join([*summary(result), str(write_json(arguments.output_dir / "imagine.json", result))])
    held_out = encode_held_out(policy.model, windows, episodes)
    kept = held_out.kept
    positions, unknown = _object_positions(source, episodes[kept], rows[kept])
    result = imagine_report(policy.model, held_out, positions=positions, provenance=record, seed=arguments.seed)
    result["not_measured"] |= unknown
    path = write_json(arguments.output_dir / "imagine.json", result)
    save_examples(arguments.output_dir / EXAMPLES_FILE, *examples(policy.model, held_out, seed=arguments.seed))
    return "\n".join([*summary(result), str(path)])


def _object_positions(
    source: LeRobotSource, episodes: np.ndarray, rows: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Where objects were at these rows, or why nobody knows."""
    from wamkit.evaluation.recorded_objects import object_positions
    from wamkit.evaluation.world_metrics import WorldMetricsError

    try:
        return object_positions(source, episodes, rows), {}
    except WorldMetricsError as reason:
        return {}, {"encoder_probe.object": str(reason)}


def _told_actions(
    model: WorldActionModel, windows: list[Window], episodes: np.ndarray, missing: dict[str, str], seed: int
) -> dict[str, Any]:
    """``forward_dynamics`` of a model that imagines under actions, or why there is none."""
    from wamkit.evaluation.forward_dynamics import forward_dynamics
    from wamkit.evaluation.world_metrics import WorldMetricsError

    try:
        return {"forward_dynamics": forward_dynamics(model, windows, episodes.tolist(), seed=seed)}
    except WorldMetricsError as reason:
        missing["forward_dynamics"] = str(reason)
        return {}


def _whole_episodes(
    arguments: ImagineArguments,
    policy: Policy,
    config: TrainConfig,
    source: LeRobotSource,
    missing: dict[str, str],
) -> dict[str, Any]:
    """``episode_rollouts`` of a model that goes on from what it imagined, or why there are none."""
    from wamkit.cli.progress import progress_bar
    from wamkit.evaluation.episode_rollout import episode_rollouts
    from wamkit.evaluation.whole_episodes import WholeEpisodes

    model = policy.model
    if not model.capabilities.rolls_out:
        missing["episode_rollouts"] = f"{model.name} imagines one horizon, and does not go on from what it imagined."
        return {}
    try:
        entry, spec = _held_out_entry(arguments, policy, config, source)
        recorded = WholeEpisodes(model, entry, spec, policy.normalizer)
        with progress_bar("rolling out") as progress:
            return {
                "episode_rollouts": episode_rollouts(
                    model,
                    recorded,
                    count=arguments.rollouts,
                    seed=arguments.seed,
                    folder=arguments.output_dir,
                    progress=progress,
                )
            }
    except WamkitError as reason:
        missing["episode_rollouts"] = str(reason)
        return {}


def held_out_windows(
    arguments: ImagineArguments, policy: Policy, config: TrainConfig, source: LeRobotSource
) -> tuple[list[Window], np.ndarray, np.ndarray]:
    """Windows at 0, tau, 2 tau, ... for the checkpoint's tau, or at its own clip's times.

    Returns:
        Batches of them; of each window its episode, and the row of the episode at which it is the present.

    Raises:
        WamkitError: The checkpoint's stage looks at no future, or no episode was held out.
    """
    import numpy as np

    from wamkit.data.mixture import Mixture

    stage = next(stage for stage in config.stages if stage.name == policy.stage)
    tau = float(stage.window.offsets(source.embodiment)[-1])
    if tau <= 0:
        raise WamkitError(f"a checkpoint of stage {stage.name!r} has no future to imagine: name a later stage's.")
    clip = tuple(stage.window.offsets(source.embodiment)) if "pixels" in policy.model.capabilities.imagines else ()
    entry, window = _held_out_entry(arguments, policy, config, source)
    spec = replace(
        window,
        frame_offsets_s=clip or tuple(tau * step for step in range(arguments.horizons + 1)),
        last_offset_by_embodiment=(),
        frame_jitter_s=0.0,
        feature_views=0,
        past_end="drop",
    )
    mixture = Mixture([entry], spec, policy.normalizer, arguments.seed)
    draws = np.arange(min(arguments.windows, len(mixture)))
    windows = [mixture.window(draws[first : first + BATCH]) for first in range(0, len(draws), BATCH)]
    _, of_episode, rows = mixture.locate(draws)
    return windows, of_episode, rows


def _held_out_entry(
    arguments: ImagineArguments, policy: Policy, config: TrainConfig, source: LeRobotSource
) -> tuple[MixtureEntry, WindowSpec]:
    """The episodes that may be measured on, with their decoded frames, and what the checkpoint's stage looks at."""
    from wamkit.cli.progress import progress_bar
    from wamkit.data.cache import FrameStore
    from wamkit.data.windows import MixtureEntry

    spec = next(stage for stage in config.stages if stage.name == policy.stage).window
    chosen, renamed = _episodes_and_cameras(arguments, config, source)
    wanted = [renamed.get(camera, camera) for camera in (spec.cameras or source.cameras)]
    with progress_bar("decoding") as progress:
        store = FrameStore.build(
            source, arguments.output_dir / "cache", wanted, spec.resolution, progress=progress, resize=spec.resize
        )
    return MixtureEntry(source=source, frame_store=store, camera_map=renamed, episodes=chosen), spec


def _episodes_and_cameras(
    arguments: ImagineArguments, config: TrainConfig, source: LeRobotSource
) -> tuple[tuple[int, ...], dict[str, str]]:
    """Which episodes may be measured on, and which of the recording's cameras are the model's."""
    from wamkit.training.stages import holdout_split

    every = tuple(range(len(source.episodes)))
    roots = [Path(root).resolve() for root in config.dataset.roots]
    if arguments.dataset.root.resolve() not in roots:
        return every, {}
    index = roots.index(arguments.dataset.root.resolve())
    renamed = dict(config.dataset.cameras[index]) if config.dataset.cameras else {}
    if arguments.episodes == "all":
        return every, renamed
    _, held_out = holdout_split(len(every), config.dataset.holdout_episodes)
    if not held_out:
        raise WamkitError(
            f"the policy was trained on every episode of {source.root}: train with --dataset.holdout_episodes, "
            "measure on another recording, or say --episodes all and read the numbers as training error."
        )
    return held_out, renamed


def summary(result: dict[str, Any]) -> list[str]:
    """The main numbers of ``imagine.json``, a line each."""
    lines = [f"{result['windows']['n']} windows of {result['windows']['episodes']} episodes"]
    if error := result.get("feature_error"):
        for horizon, model, copy in zip(error["horizon_s"], error["model"], error["copy_present"], strict=True):
            lines.append(f"feature error {horizon:.2f} s ahead: {model:.4f}, copy-the-present {copy:.4f}")
    if pixels := result.get("pixel_error"):
        for index, horizon in enumerate(pixels["horizon_s"]):
            of = {name: values[index] for name, values in pixels["psnr"].items()}
            lines.append(
                f"video {horizon:.2f} s ahead: PSNR {of['model']:.1f} dB, copy-the-present {of['copy_present']:.1f} dB,"
                f" the VAE alone {of['reconstruction']:.1f} dB"
            )
    if told := result.get("forward_dynamics"):
        for name, words in (("over_copy", "over copying the present"), ("swapped_over_true", "told wrong, over told")):
            if told[name] is not None:
                low, high = told[f"{name}_ci95"]
                lines.append(f"video told its actions: squared error {words} {told[name]:.2f} [{low:.2f}, {high:.2f}]")
    if rolled := result.get("episode_rollouts"):
        lines += _rollout_lines(rolled)
    if probe := result.get("latent_action_probe"):
        lines.append(f"latent action to end-effector motion: R2 {probe['r2']:.2f}")
    for name, probe in result.get("encoder_probe", {}).items():
        lines.append(f"encoder's features to {name.replace('_', ' ')} position: R2 {probe['r2']:.2f}")
    if region := result.get("effect_region"):
        lines.append(f"effect of the latent action on the arm over the background: {region['ratio']:.2f}")
    if moved := result.get("transfer"):
        lines.append(f"effect in another scene, on its arm over the first scene's: {moved['target_over_source']:.2f}")
    lines += [f"not measured: {name} ({reason})" for name, reason in result.get("not_measured", {}).items()]
    return lines


def _rollout_lines(rolled: dict[str, Any]) -> list[str]:
    """Of whole episodes: how well the imagined video holds, and whether it listens."""
    from wamkit.evaluation.report_text import ratio_text

    told = "told its actions" if rolled["main"] == "true" else "told no actions"
    lines = []
    for name, words in (
        ("over_copy", f"squared error {told}, over copying the first picture"),
        ("swapped_over_true", "squared error told another episode's, over told its own"),
        ("none_over_true", "squared error told none, over told its own"),
        ("swap_effect", "moved by swapped actions, over how far the real video goes"),
    ):
        if rolled.get(name) is not None:
            ends = rolled[f"{name}_ci95"]
            interval = "" if ends is None else f" [{ratio_text(ends[0])}, {ratio_text(ends[1])}]"
            counted = f"whole episodes ({len(rolled['episodes'])})"
            lines.append(f"{counted}: {words} {ratio_text(rolled[name])}{interval}")
    lines += [f"film of episode {entry['episode']}: {entry['film']}" for entry in rolled["episodes"] if entry["film"]]
    return lines + [f"not measured: roll-outs, {name} ({why})" for name, why in rolled["not_measured"].items()]
