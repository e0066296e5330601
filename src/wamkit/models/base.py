"""The contract of every world action model: `loss`, `act`, `imagine`, stages and capabilities."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypedDict

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from wamkit.encoders.base import ClipEncoder, VisualEncoder
from wamkit.errors import WamkitError
from wamkit.models.phases import ActPhases
from wamkit.types import ActionChunk, Future, FutureSpace, Losses, Observation, Window


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a model is, in the survey's and the tutorial's terms, and what it can do."""

    coupling: Literal["cascaded", "joint"]
    modality: Literal["pixel", "latent", "token"]
    paradigm: Literal["imagine_then_execute", "video_features", "joint_video_action", "auxiliary_video"]
    act_needs_future: bool
    """Whether `act` computes a future at test time."""
    imagines: tuple[FutureSpace, ...]
    action_conditioned: bool
    """Whether `imagine` can be given actions or latent actions."""
    trains_action_free: bool
    """Whether some stage learns from windows without actions."""
    inpaints_actions: bool = False
    """Whether `inpaint` can continue a chunk: flow and diffusion decoders whose velocity can be differentiated."""
    remembers: bool = False
    """Whether `act` depends on what was seen and executed earlier in the episode; see `executed` and `remember`."""
    rolls_out: bool = False
    """Whether `roll_out` goes on from what was imagined, for as long as it may be."""


class ParameterGroup(TypedDict):
    """Parameters that share an optimiser setting."""

    name: str
    params: list[nn.Parameter]
    lr_scale: float
    weight_decay: bool


class StageError(WamkitError):
    """A stage that the model does not have, or windows that the stage cannot use."""


class WorldActionModel(nn.Module):
    """Base of all models. A model holds no optimiser, logger or file, and never normalises physical units."""

    name: ClassVar[str]
    config_class: ClassVar[type]
    capabilities: ClassVar[Capabilities]
    inference_settings: ClassVar[tuple[str, ...]] = ()
    """Dotted fields of the config that change how trained weights are used: see `wamkit.inference.settings`."""
    config: Any

    @classmethod
    @abstractmethod
    def preset(cls, name: str) -> Any:
        """The config named ``tiny``, ``small`` or ``paper``."""

    @property
    @abstractmethod
    def stages(self) -> tuple[str, ...]:
        """The stages of training, in order."""

    @abstractmethod
    def prepare_stage(self, stage: str) -> None:
        """Set which parameters train in ``stage`` and which modules run in training mode."""

    @abstractmethod
    def loss(self, window: Window, stage: str, generator: torch.Generator | None = None) -> Losses:
        """Named losses of one batch of windows in one stage, a value for each sample."""

    def reads_instructions(self, stage: str) -> bool:
        """Whether a stage reads its windows' instructions, so that they must not be too long."""
        return stage == self.stages[-1]

    def check_instructions(self, tasks: Sequence[str]) -> None:
        """Raise for what the model cannot read, before it is met in training or on a robot.

        Raises:
            InstructionTooLong: an instruction is longer than the model's text length.
        """

    @abstractmethod
    def act(
        self,
        observation: Observation,
        *,
        noise: Float[Tensor, "B K A"] | None = None,
        generator: torch.Generator | None = None,
    ) -> ActionChunk:
        """The action chunk for an observation, in normalised units."""

    def inpaint(
        self,
        observation: Observation,
        known: Float[Tensor, "B K A"],
        weights: Float[Tensor, "B K A"],
        *,
        noise: Float[Tensor, "B K A"] | None = None,
        generator: torch.Generator | None = None,
    ) -> ActionChunk:
        """As `act`, but agreeing with a known plan as far as the weights say (see `wamkit.actions.flow_field`).

        Args:
            observation: The present.
            known: Normalised actions of the old plan, aligned with the new chunk; in `action_noise_shape`.
            weights: In [0, 1], by element; 0 leaves it to the decoder.
            noise: See `act`.
            generator: See `act`.

        Raises:
            WamkitError: the model cannot; its capabilities say so.
        """
        raise WamkitError(
            f"{self.name} cannot in-paint actions (capabilities.inpaints_actions is False): "
            "execute it with Asynchronous."
        )

    def executed(self, actions: Float[Tensor, "B n A"]) -> None:
        """What was executed since the last `act`, normalised: what a causal model feeds its cache with.

        Models without a memory of their own need none of it, so the default does nothing.
        """

    def observed(self, images: Mapping[str, UInt8[Tensor, "B T 3 H W"]]) -> None:
        """Pictures seen between the last `act` and the next, oldest first; the next observation's is not among them.

        Only models whose memory has pictures at a rate above that of `act` need them.
        """

    @property
    def picture_interval_s(self) -> float | None:
        """Seconds between the pictures that a model with a memory must see; None: those of `act` are enough."""
        return None

    @property
    def look_interval_s(self) -> float | None:
        """Seconds of which a whole number must pass between two calls of `act` of an episode; None: any time may."""
        return None

    def remember(self) -> Any:
        """What is remembered of the episodes under way, row by row of the last batch; None where there is nothing.

        A tuple with one entry for each row, so that rows of several batches can be put together; None: a new episode.

        Whoever holds it may `recall` it later, and more than once: what the model does in between must not change it
        (hand out tensors that are never written to again, or copies).
        """
        return None

    def recall(self, memory: Any) -> None:
        """Go on from what `remember` gave: the next `executed` and `act` speak of those rows. None: new episodes.

        So one model serves many robots, each with a memory of its own.
        """

    @abstractmethod
    def imagine(self, observation: Observation, actions: Float[Tensor, "B K A"] | None = None) -> Future:
        """What the model expects to see, under its own or the given actions."""

    def roll_out(
        self, observation: Observation, actions: Float[Tensor, "B K A"] | None = None, *, frames: int | None = None
    ) -> Iterator[Future]:
        """What follows from one look for as long as it may be, a piece at a time, each from what was imagined before.

        Args:
            observation: The first look.
            actions: Under which; None: what the model expects by itself.
            frames: How many of its own frames; None: as many as the actions span.

        Raises:
            WamkitError: the model imagines one horizon and does not go on from there.
        """
        raise WamkitError(f"{self.name} imagines one horizon from one look, and does not go on from what it imagined.")

    def decoded(self, future: Future, observation: Observation) -> Future:
        """What `act` handed out as imagined, in the space that `imagine` speaks of; by default it is in that already.

        Args:
            future: `ActionChunk.imagined`.
            observation: What was acted on.
        """
        return future

    def pictures_of(self, frames: Mapping[str, Tensor], size: Sequence[int]) -> Float[Tensor, "B T 3 h w"]:
        """True frames [B, T, 3, H, W] as `imagine` shows them: those that it speaks of, the present first.

        Args:
            frames: of each camera, uint8.
            size: height and width of what `imagine` decodes to.

        Raises:
            WamkitError: the model imagines no pixels.
        """
        raise WamkitError(f"{self.name} imagines no pixels, so there are none to compare")

    def reconstruction_of(self, window: Window) -> Float[Tensor, "B T 3 h w"]:
        """A true clip through what `imagine` decodes with: the best that it could be.

        Raises:
            WamkitError: the model imagines no pixels.
        """
        raise WamkitError(f"{self.name} imagines no pixels, so there are none to compare")

    def load_pretrained_trunks(self) -> None:
        """Load the published weights of frozen or fine-tuned parts; called when a run starts afresh."""

    def phases(self) -> ActPhases | None:
        """`act` cut into a prefix and equal denoise steps, for a runtime; None where the model does not say."""
        return None

    @property
    def action_noise_shape(self) -> tuple[int, int] | None:
        """Chunk length and action width of the noise that `act` starts from; None for deterministic decoders."""
        return None

    def chunk_noise(
        self,
        observation: Observation,
        noise: Float[Tensor, "B K A"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B K A"]:
        """What `act` starts from: the given noise, or some drawn for each sample in `action_noise_shape`."""
        if noise is not None:
            return noise
        assert self.action_noise_shape is not None, f"{self.name} decodes no noise"
        shape = (observation.batch_size, *self.action_noise_shape)
        return torch.randn(shape, generator=generator, device=observation.rate_hz.device)

    def parameter_groups(self, stage: str) -> list[ParameterGroup]:
        """The trainable parameters of a stage; by default decayed matrices and undecayed biases, norms and queries."""
        decayed, plain = [], []
        for parameter in self.parameters():
            if parameter.requires_grad:
                (decayed if parameter.ndim >= 2 else plain).append(parameter)
        groups = [
            ParameterGroup(name="matrices", params=decayed, lr_scale=1.0, weight_decay=True),
            ParameterGroup(name="biases_and_norms", params=plain, lr_scale=1.0, weight_decay=False),
        ]
        return [group for group in groups if group["params"]]

    def visual_encoder(self, stage: str) -> VisualEncoder | None:
        """The frozen encoder whose features a feature store may hold for this stage; None where there is none."""
        return None

    def feature_cameras(self, stage: str) -> tuple[str, ...] | None:
        """The cameras of the window whose features a stage reads, by the model's names; None: all of them."""
        return None

    def clip_encoder(self, stage: str) -> ClipEncoder | None:
        """The frozen encoder of whole clips whose latents a latent store may hold for this stage; None without one."""
        return None

    def fsdp_units(self) -> Sequence[nn.Module]:
        """The modules that FSDP2 gathers one by one; what lies in none of them is gathered once for a whole step.

        A unit's parameters are whole only while it is called as a module. So name what is called: a block whose parts
        are called one by one, by a function that reaches into it, is not itself a unit, but those parts may be.
        """
        return ()

    def parts(self) -> Mapping[str, Sequence[nn.Module]]:
        """Named parts, for parameter counts and the latency table."""
        return {}

    @abstractmethod
    def fake_window(self, batch_size: int = 2, *, stage: str | None = None, seed: int = 0) -> Window:
        """A random window of the right shapes, for tests and for counting."""

    def check_stage(self, stage: str) -> None:
        """Raise `StageError` for an unknown stage."""
        if stage not in self.stages:
            raise StageError(f"{self.name} has no stage {stage!r}; its stages are {', '.join(self.stages)}")

    def train_only(self, *modules: nn.Module) -> None:
        """Freeze everything but these modules, and leave only these in training mode."""
        self.eval()
        self.requires_grad_(False)
        for module in modules:
            module.requires_grad_(True)
            module.train()
