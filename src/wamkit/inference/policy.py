"""The Python door: a checkpoint as a policy that speaks LeRobot's keys and physical units.

policy = wamkit.load("outputs/demo/checkpoints/last/pretrained_model")
chunk = policy.act({"observation.images.corner2_near": picture, "observation.state": state, "task": "open the door"})
future = policy.imagine(observation)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wamkit.actions.flow_field import soft_mask
from wamkit.configuration import from_dict
from wamkit.data.contract_terms import BodyContract, Contract
from wamkit.data.normalize import Normalizer
from wamkit.errors import suggest
from wamkit.inference.bodies import find_body, matching_bodies
from wamkit.inference.checkpoints import checkpoint_folder, read_config
from wamkit.inference.errors import PolicyError
from wamkit.inference.observing import observation_of, picture_of, pictures_of
from wamkit.inference.settings import with_settings
from wamkit.models import registry
from wamkit.models.base import WorldActionModel
from wamkit.training.precision import resolve_precision
from wamkit.training.state import load_pretrained
from wamkit.types import ActionChunk, Future, Observation

if TYPE_CHECKING:
    from wamkit.inference.runtime import Runtime, RuntimeSettings


def load(
    path: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    runtime: bool | RuntimeSettings = False,
    embodiment: str | None = None,
    rate_hz: float | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Policy:
    """Load a checkpoint's ``pretrained_model`` folder.

    Args:
        path: the folder; a run's folder or a ``checkpoints/<step>`` is followed down to it.
        device: ``cpu``, ``cuda``, or ``auto`` for a GPU where there is one.
        precision: ``fp32``, ``bf16`` (autocast), or ``auto``: bf16 where the processor computes in it, else fp32.
        runtime: act through `wamkit.inference.runtime`, in this precision, or with these settings.
        embodiment: which robot to act as, where the policy was trained on several.
        rate_hz: at which control rate, where it was trained on several rates of that robot.
        settings: how the weights are used, in place of what the checkpoint says, such as ``{"mode": "action_only"}``;
            a model's class lists its own as ``inference_settings``.

    Raises:
        PolicyError: no checkpoint there, one without a contract, or one that knows no such robot, rate or setting.
        ConfigError: a setting's value is none that it knows.
        ResumeError: its weights are not those of its config.
        RuntimeUnsupported: a runtime is asked for that model or device cannot have.
    """
    folder = checkpoint_folder(path)
    name, values, rest = read_config(folder)
    chosen = registry.model_class(name)
    config = with_settings(chosen, from_dict(chosen.config_class, values, "config.json"), settings or {})
    model = chosen(config)
    load_pretrained(model, folder)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if rest.get("contract") is None:
        raise PolicyError(
            f"{folder} holds weights but no contract (cameras, rates, statistics) that says what its numbers mean:"
            " train or fine-tune it on recordings with wam train RECIPE --policy.path"
        )
    contract = from_dict(Contract, rest["contract"], "contract")
    # Statistics that LeRobot wrote name no embodiment; the contract does.
    normalizer = Normalizer.load(folder, embodiment=contract.bodies[0].statistics)
    return Policy(
        model.to(device).eval(),
        normalizer,
        contract,
        stage=rest.get("stage", ""),
        precision=precision,
        runtime=runtime,
        embodiment=embodiment,
        rate_hz=rate_hz,
    )


class Policy:
    """A model with its normaliser and contract: observations in, physical actions out."""

    def __init__(
        self,
        model: WorldActionModel,
        normalizer: Normalizer,
        contract: Contract,
        *,
        stage: str = "",
        precision: str = "auto",
        runtime: bool | RuntimeSettings = False,
        embodiment: str | None = None,
        rate_hz: float | None = None,
    ) -> None:
        if precision not in ("auto", "fp32", "bf16"):
            raise PolicyError(f"there is no precision {precision!r}.{suggest(precision, ('auto', 'fp32', 'bf16'))}")
        self.model, self.normalizer, self.contract, self.stage = model, normalizer, contract, stage
        self._chosen: BodyContract | None = None
        if embodiment is not None or rate_hz is not None:
            self.choose(embodiment, rate_hz)
        self._autocast = resolve_precision(precision, self.device.type) == "bf16"
        self.runtime: Runtime | None = None
        if runtime is not False:
            from wamkit.inference.runtime import Runtime, RuntimeSettings

            settings = runtime if isinstance(runtime, RuntimeSettings) else RuntimeSettings(precision=precision)
            self.runtime = Runtime(model, settings)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras that an observation must hold, the primary view first."""
        return tuple(self.model.config.cameras)

    def reset(self) -> None:
        """Forget what was seen; to be called between episodes."""
        self.model.recall(None)

    @property
    def remembers(self) -> bool:
        """Whether acting depends on what was seen and executed before: then tell it, with `observed` and `executed`."""
        return self.model.capabilities.remembers

    @property
    def picture_interval_s(self) -> float | None:
        """Seconds between the pictures that a policy with a memory must see; None: those that it acts on are enough."""
        return self.model.picture_interval_s

    def remember(self) -> Any:
        """The memory of the episodes under way, for `recall`; None for a model without one."""
        return self.model.remember()

    def recall(self, memory: Any) -> None:
        """Go on from what `remember` gave; None: new episodes. One policy so serves many robots."""
        self.model.recall(memory)

    def observation(self, observations: Sequence[Mapping[str, Any]], *, embodiment: str | None = None) -> Observation:
        """LeRobot's keys of some samples as one batch, checked and normalised.

        Raises:
            PolicyError: a camera is missing or its picture is none, the state is missing, or the embodiment is open.
        """
        body = self.body(embodiment)
        return observation_of(observations, self.cameras, body, self.contract, self.normalizer).to(self.device)

    def choose(self, embodiment: str | None = None, rate_hz: float | None = None) -> BodyContract:
        """Act as this robot, at this control rate, from now on; what is None must be the only one there is.

        Raises:
            PolicyError: the policy was not trained on that, or on several that this does not tell apart.
        """
        self._chosen = find_body(self.contract, embodiment, rate_hz)
        return self._chosen

    def choose_like(self, embodiment: str, rate_hz: float) -> None:
        """As `choose`, of a robot that is at hand; nothing where one is chosen already or this one is not known."""
        known = matching_bodies(self.contract, embodiment, rate_hz)
        if self._chosen is None and known:
            self._chosen = known[0]

    def body(self, embodiment: str | None = None) -> BodyContract:
        """The robot and rate that is acted with: what was chosen (`choose`), or the only one.

        Args:
            embodiment: another robot than the chosen one, at the only rate that the policy knows of it.

        Raises:
            PolicyError: the policy was not trained on it, or on several and none is chosen.
        """
        if self._chosen is not None and embodiment in (None, self._chosen.embodiment):
            return self._chosen
        return find_body(self.contract, embodiment)

    def act(
        self,
        observation: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        embodiment: str | None = None,
        seeds: Sequence[int] | None = None,
    ) -> ActionChunk:
        """The action chunk for one observation or a list of them, in physical units, on the CPU.

        Args:
            observation: LeRobot's keys: ``observation.images.<camera>`` uint8 [H, W, 3], ``observation.state`` [S],
                ``task``.
            embodiment: which robot, where the policy was trained on several.
            seeds: one for each sample; what is sampled for it depends on its seed alone. None: fresh noise.

        Returns:
            ActionChunk with ``actions`` [B, K, A], ``times`` in seconds and ``valid``; ``imagined``, on the device,
            where the model hands out what it imagined on the way (elsewhere ask `imagine`; latents: `decoded`).
        """
        observations = [observation] if isinstance(observation, Mapping) else list(observation)
        batch = self.observation(observations, embodiment=embodiment)
        noise = self._noise(len(observations), seeds)
        chunk = self.act_normalised(batch, noise=noise)
        actions = self.normalizer.unnormalize_action(chunk.actions.cpu().float(), self.body(embodiment).statistics)
        return ActionChunk(actions=actions, times=chunk.times.cpu(), valid=chunk.valid.cpu(), imagined=chunk.imagined)

    def act_normalised(self, observation: Observation, *, noise: Tensor | None = None) -> ActionChunk:
        """The model's own chunk, on its device, through the runtime where there is one."""
        if self.runtime is not None:
            return self.runtime.act(observation, noise=noise)
        with torch.inference_mode(), self._precision():
            return self.model.act(observation, noise=noise)

    def act_batch(self, observations: list[dict[str, Any]], *, seeds: Sequence[int] | None = None) -> np.ndarray:
        """As `act`, as a float32 array [B, K, A] holding the valid actions only."""
        chunk = self.act(observations, seeds=seeds)
        steps = int(chunk.valid.sum(dim=1).min())
        return chunk.actions[:, :steps].numpy()

    def inpaint(
        self,
        observations: Sequence[Mapping[str, Any]],
        previous: Sequence[np.ndarray | None],
        delays: Sequence[int],
        *,
        embodiment: str | None = None,
        seeds: Sequence[int] | None = None,
    ) -> ActionChunk:
        """As `act`, but each chunk goes on from a plan under way (real-time chunking, `wamkit.actions.flow_field`).

        Args:
            observations: LeRobot's keys, one mapping for each sample.
            previous: The plan from the observation on, physical units, [M, A] with M at most the chunk's length; None
                for a sample without a plan.
            delays: How many rows of it will be executed in any case; these begin the new chunk unchanged.
            embodiment: See `act`.
            seeds: See `act`.

        Raises:
            PolicyError: a plan or a delay does not fit.
            WamkitError: the model cannot in-paint.
        """
        batch = self.observation(observations, embodiment=embodiment)
        body, shape = self.body(embodiment), self.model.action_noise_shape
        if shape is None or not self.model.capabilities.inpaints_actions:
            raise PolicyError(f"{self.model.name} cannot in-paint actions: execute it with Asynchronous instead.")
        if not len(observations) == len(previous) == len(delays):
            raise PolicyError(f"{len(observations)} observations need as many plans and delays.")
        known, weights = torch.zeros(len(previous), *shape), torch.zeros(len(previous), *shape)
        plans: list[Tensor | None] = []
        for index, (plan, delay) in enumerate(zip(previous, delays, strict=True)):
            rows = 0 if plan is None else len(plan)
            if rows > shape[0] or not 0 <= delay <= rows:
                raise PolicyError(
                    f"a plan of {rows} actions, {delay} of them frozen, does not fit a chunk of {shape[0]}: "
                    "give what is left of the last chunk, and a delay within it"
                )
            under_way = None if plan is None else torch.from_numpy(np.array(plan, np.float32))
            plans.append(under_way)
            if under_way is not None and rows:
                normalised = self.normalizer.normalize_action(under_way, body.statistics)
                known[index, :rows, : normalised.shape[-1]] = normalised
                weights[index, :, : normalised.shape[-1]] = soft_mask(rows, delay, shape[0])[:, None]
        noise = self._noise(len(observations), seeds)
        # Not inference mode: the guidance differentiates the decoder.
        with torch.no_grad(), self._precision():
            chunk = self.model.inpaint(batch, known.to(self.device), weights.to(self.device), noise=noise)
        actions = self.normalizer.unnormalize_action(chunk.actions.cpu().float(), body.statistics)
        for index, (plan, delay) in enumerate(zip(plans, delays, strict=True)):
            if plan is not None:
                actions[index, :delay] = plan[:delay]
        return ActionChunk(actions=actions, times=chunk.times.cpu(), valid=chunk.valid.cpu(), imagined=chunk.imagined)

    def inpaint_batch(
        self,
        observations: Sequence[Mapping[str, Any]],
        previous: Sequence[np.ndarray | None],
        delays: Sequence[int],
        *,
        seeds: Sequence[int] | None = None,
    ) -> np.ndarray:
        """As `inpaint`, as a float32 array [B, K, A] holding the valid actions only."""
        chunk = self.inpaint(observations, previous, delays, seeds=seeds)
        steps = int(chunk.valid.sum(dim=1).min())
        return chunk.actions[:, :steps].numpy()

    def executed(self, actions: np.ndarray, *, embodiment: str | None = None) -> None:
        """Tell a causal model what was executed since its last chunk, [n, A] in physical units."""
        array = torch.from_numpy(np.array(actions, np.float32))
        normalised = self.normalizer.normalize_action(array, self.body(embodiment).statistics)
        self.model.executed(normalised[None].to(self.device))

    def observed(self, observations: Sequence[Mapping[str, Any]]) -> None:
        """Show a model with a memory what was seen since its last chunk, oldest first: ``observation.images.*``."""
        images = pictures_of(observations, self.cameras, self.contract)
        self.model.observed({camera: pictures[None].to(self.device) for camera, pictures in images.items()})

    def imagine(
        self,
        observation: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        actions: np.ndarray | None = None,
        *,
        embodiment: str | None = None,
        **options: Any,
    ) -> Future:
        """What the model expects to see, under its own intention or the given physical actions [B, K, A].

        Args:
            observation: See `act`.
            actions: For models that are driven by robot actions (RepWAM); others refuse them.
            embodiment: See `act`.
            **options: The model's own, such as LaWAM's ``latent_actions`` [B, T, Q, Z]: it imagines under these.
        """
        observations = [observation] if isinstance(observation, Mapping) else list(observation)
        batch = self.observation(observations, embodiment=embodiment)
        given = None
        if actions is not None:
            array = torch.from_numpy(np.asarray(actions, np.float32))
            given = self.normalizer.normalize_action(array, self.body(embodiment).statistics).to(self.device)
        with torch.inference_mode(), self._precision():
            return self.model.imagine(batch, given, **options)

    def decoded(
        self, future: Future, observations: Sequence[Mapping[str, Any]], *, embodiment: str | None = None
    ) -> Future:
        """What came with a chunk as imagined, in the space that `imagine` speaks of; costs no pass of the model.

        Args:
            future: ``imagined`` of the chunk.
            observations: What it was acted on.
            embodiment: See `act`.
        """
        with torch.inference_mode(), self._precision():
            return self.model.decoded(future, self.observation(observations, embodiment=embodiment))

    def picture(self, value: Any) -> np.ndarray:
        """A picture of the primary camera as the model sees it, uint8 [h, w, 3]."""
        return picture_of(value, self.cameras[0], self.contract)[0].permute(1, 2, 0).numpy()

    def _noise(self, batch: int, seeds: Sequence[int] | None) -> Tensor | None:
        shape = self.model.action_noise_shape
        if shape is None:
            return None
        if seeds is None:
            return torch.randn(batch, *shape, device=self.device)
        if len(seeds) != batch:
            raise PolicyError(f"{batch} observations need {batch} seeds, got {len(seeds)}")
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(drawn).to(self.device)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast)

    def checkpoint_hash(self) -> str:
        """SHA-256 of the weights, as loaded."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
