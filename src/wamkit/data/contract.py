"""What a policy was trained on, and whether a data set or an environment is that: found before a run, not after it.

Each convention here fails silently elsewhere: a camera under another name or upside down, a gripper in [0, 1] where
[-1, 1] is meant, degrees for radians, actions at another rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from wamkit.data.contract_terms import (
    BodyContract,
    CameraContract,
    Candidate,
    Contract,
    EnvironmentDescription,
    VectorContract,
    Violation,
)
from wamkit.data.lerobot import DatasetError, LeRobotSource
from wamkit.data.mixture import Mixture
from wamkit.data.normalize import ACTION, STATE
from wamkit.data.orientation import layout_problem, thumbnail
from wamkit.data.windows import MixtureEntry
from wamkit.errors import suggest

__all__ = ["BodyContract", "CameraContract", "Contract", "VectorContract", "Violation", "check", "describe_mixture"]

_RATE_TOLERANCE = 0.01
_SCALE_RATIO = 8.0  # standard deviations that differ by more are other units: degrees are 57 radians
_SHIFT = 6.0  # means that differ by more standard deviations are another frame of reference


def describe_mixture(mixture: Mixture, *, pictures: int = 64) -> Contract:
    """The contract of a policy that is trained on a mixture.

    Args:
        mixture: With its normaliser and frame stores.
        pictures: Frames of each camera that its thumbnail is made of.
    """
    bodies = {entry.statistics_key: _body(mixture, entry, pictures) for entry in reversed(mixture.entries)}
    sizes = {camera.name: camera.size for body in bodies.values() for camera in body.cameras}
    normalizer = mixture.normalizer
    return Contract(
        cameras=tuple((camera, sizes[camera]) for camera in mixture.cameras if camera in sizes),
        resolution=mixture.spec.size,
        resize=mixture.spec.resize,
        horizon_s=mixture.spec.chunk_s,
        bodies=tuple(reversed(bodies.values())),
        statistics_hash=normalizer.statistics_hash() if normalizer is not None else None,
    )


def check(
    contract: Contract,
    candidate: LeRobotSource | EnvironmentDescription,
    pictures: Mapping[str, np.ndarray] | None = None,
) -> list[Violation]:
    """Compares a policy's contract with a data set or an environment.

    Args:
        contract: Of the policy.
        candidate: The data set, or an environment's description.
        pictures: Some frames by camera, uint8 ``[n, H, W, 3]``, to see flips by; None: a data set's own are decoded,
            an environment is not looked at.

    Returns:
        One violation for each point that does not fit; none where it fits.
    """
    found: list[Violation] = []
    if isinstance(candidate, LeRobotSource):
        described = _of_source(candidate)
        found += _check_files(candidate)
        if pictures is None and not found:
            pictures = _sampled(candidate)
    else:
        described = _of_environment(candidate)
    body = _matching_body(contract, described)
    if body is None:
        trained = sorted({body.embodiment for body in contract.bodies})
        found.append(
            Violation(
                "embodiment",
                f"this is {described.embodiment!r} and the policy was trained on {', '.join(trained)}: use a policy "
                "for this robot, or train on its recordings.",
            )
        )
        body = contract.bodies[0]
    found += _check_cameras(body, described, pictures or {})
    if abs(described.rate_hz / body.rate_hz - 1) > _RATE_TOLERANCE:
        found.append(
            Violation(
                "rate",
                f"the policy acts at {body.rate_hz:g} Hz and this {described.kind} has {described.rate_hz:g} Hz: run "
                f"it at {body.rate_hz:g} Hz, or train on recordings at {described.rate_hz:g} Hz.",
            )
        )
    found += _check_vector("state", STATE, body.state, described.state_names, described)
    found += _check_vector("action", ACTION, body.action, described.action_names, described)
    return found + _check_ranges(body, described)


# What is compared


def _body(mixture: Mixture, entry: MixtureEntry, pictures: int) -> BodyContract:
    source, key = entry.source, entry.statistics_key
    cameras = []
    for name in mixture.cameras:
        own = entry.camera_map.get(name, name)
        if own is not None and own in source.cameras:
            shown = thumbnail(_stored(entry, own, pictures)) if entry.frame_store is not None else None
            camera = CameraContract(name=name, recorded_as=own, size=source.resolution(own), thumbnail=shown)
            cameras.append(camera)
    vectors: dict[str, VectorContract] = {}
    for feature, names in ((STATE, source.state_names), (ACTION, source.action_names)):
        if names is None or mixture.normalizer is None or not mixture.normalizer.has(feature, key):
            continue
        measured = mixture.normalizer.statistics[key][feature]
        low, high = source.extra.get("action_low", ()), source.extra.get("action_high", ())
        declared = feature == ACTION and len(low) == len(high) == len(names)
        vectors[feature] = VectorContract(
            names=names,
            **{
                name: tuple(float(value) for value in measured.get(statistic, np.full(len(names), np.nan)))
                for name, statistic in (("mean", "mean"), ("std", "std"), ("low", "q01"), ("high", "q99"))
            },
            bounds=tuple(zip(map(float, low), map(float, high), strict=True)) if declared else None,
        )
    return BodyContract(
        embodiment=source.embodiment,
        statistics=key,
        rate_hz=entry.rate_hz,
        cameras=tuple(cameras),
        state=vectors.get(STATE),
        action=vectors.get(ACTION),
        from_simulator="recording" in source.extra,
    )


def _of_source(source: LeRobotSource) -> Candidate:
    return Candidate(
        kind="data set",
        cameras={camera: source.resolution(camera) for camera in source.cameras},
        state_names=source.state_names or (),
        action_names=source.action_names or (),
        rate_hz=source.fps,
        embodiment=source.embodiment,
        bounds=None,
        statistics=source.stats,
    )


def _of_environment(description: EnvironmentDescription) -> Candidate:
    return Candidate(
        kind="environment",
        cameras=dict(description.cameras),
        state_names=tuple(description.state_names),
        action_names=tuple(description.action_names),
        rate_hz=description.rate_hz,
        embodiment=description.embodiment,
        bounds=tuple(zip(description.action_low, description.action_high, strict=True)),
        statistics=None,
    )


def _matching_body(contract: Contract, candidate: Candidate) -> BodyContract | None:
    """The body of the same embodiment, the nearest in rate."""
    same = [body for body in contract.bodies if body.embodiment == candidate.embodiment]
    return min(same, key=lambda body: abs(body.rate_hz - candidate.rate_hz)) if same else None


def _stored(entry: MixtureEntry, camera: str, count: int) -> np.ndarray:
    store = entry.frame_store
    assert store is not None
    episodes = [e for e in entry.chosen_episodes() if camera not in entry.source.episodes[e].absent_cameras]
    places = np.concatenate([store.first[e] + np.arange(store.counts[e]) for e in episodes])
    chosen = places[np.linspace(0, len(places) - 1, min(count, len(places))).astype(int)]
    return np.moveaxis(store.gather(camera, chosen), 1, -1)


def _sampled(source: LeRobotSource, episodes: int = 8) -> dict[str, np.ndarray]:
    """A few frames of each camera, spread over the data set."""
    chosen = np.unique(np.linspace(0, len(source.episodes) - 1, episodes).astype(int)).tolist()
    frames: dict[str, np.ndarray] = {}
    for camera in source.cameras:
        seen = [source.episodes[e] for e in chosen if camera not in source.episodes[e].absent_cameras]
        parts = [source.decode(camera, e.index, np.array([0.0, (e.length // 2) / source.fps])) for e in seen]
        if parts:
            frames[camera] = np.concatenate(parts)
    return frames


# The points


def _check_files(source: LeRobotSource) -> list[Violation]:
    try:
        if not source.episodes:
            return [Violation("data set", f"{source.root} has no episode: record or import some.")]
        source.verify_files()
        source.verify_frames(episodes=4)
    except DatasetError as error:
        return [Violation("time stamps", str(error))]
    return []


def _check_cameras(body: BodyContract, candidate: Candidate, pictures: Mapping[str, np.ndarray]) -> list[Violation]:
    found = []
    thumbnails = {camera.name: camera.thumbnail for camera in body.cameras if camera.thumbnail is not None}
    for trained in body.cameras:
        camera, size = trained.name, trained.size
        renamed = candidate.kind == "data set" and trained.recorded_as in candidate.cameras
        own = trained.recorded_as if renamed else camera
        if own not in candidate.cameras:
            there = ", ".join(candidate.cameras) or "none"
            found.append(
                Violation(
                    f"camera {camera!r}",
                    f"it is missing; this {candidate.kind} has {there}.{suggest(camera, candidate.cameras)} Give the "
                    "camera that shows what the policy saw under this name.",
                )
            )
            continue
        height, width = candidate.cameras[own]
        if (height, width) != tuple(size):
            found.append(
                Violation(
                    f"camera {camera!r}",
                    f"its pictures are {height}x{width} here and were {size[0]}x{size[1]} in training: render or "
                    f"record {size[0]}x{size[1]}.",
                )
            )
        if own in pictures and (problem := layout_problem(camera, pictures[own], thumbnails)):
            found.append(
                Violation(
                    f"camera {camera!r}",
                    f"its pictures look {problem}, compared with training: turn or exchange them before the policy.",
                )
            )
    return found


def _check_vector(
    subject: str, feature: str, trained: VectorContract | None, names: Sequence[str], candidate: Candidate
) -> list[Violation]:
    if trained is None:
        return []
    if not names:
        missing = f"this {candidate.kind} has none; give the {len(trained.names)} dimensions of training."
        return [Violation(subject, missing)]
    if len(names) != len(trained.names):
        return [
            Violation(
                subject,
                f"{len(names)} dimensions here ({', '.join(names)}) and {len(trained.names)} in training "
                f"({', '.join(trained.names)}): give the same dimensions in the same order.",
            )
        ]
    found = []
    differing = [(old, new) for old, new in zip(trained.names, names, strict=True) if old != new]
    if differing:
        old, new = differing[0]
        how = "the order differs" if sorted(trained.names) == sorted(names) else "the names differ"
        found.append(
            Violation(
                subject,
                f"{how} ({new!r} stands where training had {old!r}): order and name the dimensions as in training.",
            )
        )
    if candidate.statistics is not None:
        found += _check_statistics(subject, feature, trained, candidate.statistics)
    return found


def _check_statistics(
    subject: str, feature: str, trained: VectorContract, statistics: Mapping[str, Mapping[str, np.ndarray]]
) -> list[Violation]:
    subject = f"statistics of {subject}"
    own = statistics.get(feature, {})
    missing = [name for name in ("mean", "std", "min", "max") if name not in own]
    if missing:
        return [Violation(subject, f"meta/stats.json lacks {', '.join(missing)}: compute the statistics again.")]
    measured = {name: np.asarray(own[name], np.float64).reshape(-1) for name in ("mean", "std", "min", "max")}
    if any(len(values) != len(trained.names) for values in measured.values()):
        return [Violation(subject, "meta/stats.json has other dimensions than the rows: compute the statistics again.")]
    bad = sorted({int(i) for values in measured.values() for i in np.flatnonzero(~np.isfinite(values))})
    if bad:
        names = ", ".join(trained.names[i] for i in bad)
        return [Violation(subject, f"they are not finite for {names}: mend the recording and compute them again.")]
    found = []
    for i, name in enumerate(trained.names):
        here, then = float(measured["std"][i]), trained.std[i]
        shift = abs(float(measured["mean"][i]) - trained.mean[i])
        scaled = min(here, then) > 1e-6 and max(here / then, then / here) > _SCALE_RATIO
        if scaled or (min(here, then) > 1e-6 and shift > _SHIFT * max(here, then)):
            found.append(
                Violation(
                    subject,
                    f"{name!r} is {measured['mean'][i]:.3g} ± {here:.3g} here and was {trained.mean[i]:.3g} ± "
                    f"{then:.3g} in training: bring it to the same unit and frame of reference.",
                )
            )
    return found


def _check_ranges(body: BodyContract, candidate: Candidate) -> list[Violation]:
    """Recorded actions against an environment's bounds; the gripper's convention above all."""
    trained, bounds = body.action, candidate.bounds
    if trained is None or bounds is None or len(bounds) != len(trained.names):
        return []
    found = []
    for i, (name, (low, high)) in enumerate(zip(trained.names, bounds, strict=True)):
        slack = 0.01 * (high - low)
        declared = trained.bounds[i] if trained.bounds is not None else None
        if declared is not None:
            if max(abs(declared[0] - low), abs(declared[1] - high)) > slack:
                found.append(_range_violation(name, declared, (low, high)))
            continue
        seen = (trained.low[i], trained.high[i])
        outside = seen[0] < low - slack or seen[1] > high + slack
        if outside or (not body.from_simulator and _one_sided_gripper(name, seen, low, slack)):
            found.append(_range_violation(name, seen, (low, high)))
    return found


def _one_sided_gripper(name: str, seen: tuple[float, float], low: float, slack: float) -> bool:
    """Whether a gripper used [0, something] where the environment also has a negative half."""
    return "grip" in name.lower() and seen[0] >= -slack and seen[1] > 10 * slack and low < -slack


def _range_violation(name: str, seen: tuple[float, float], bounds: tuple[float, float]) -> Violation:
    return Violation(
        f"action {name!r}",
        f"it lay in [{seen[0]:.3g}, {seen[1]:.3g}] in training and this environment takes "
        f"[{bounds[0]:g}, {bounds[1]:g}]: map one to the other (and mind the sign).",
    )
