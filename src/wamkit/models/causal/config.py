"""What every causal world action model is configured by: RepWAM, LingBot-VA."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from wamkit.actions.grouped_actions import ActionTokensConfig, OwnExpert
from wamkit.data.canvas import CanvasKind
from wamkit.dynamics.causal_attention import AttentionKind
from wamkit.dynamics.causal_layout import Order
from wamkit.dynamics.video_dit import VideoDiTConfig
from wamkit.encoders.base import VideoTokenizer
from wamkit.encoders.repvitok import RepViTok, RepViTokConfig
from wamkit.encoders.umt5 import UMT5Settings
from wamkit.encoders.wan_vae import WanVAE, WanVAEConfig
from wamkit.errors import WamkitError
from wamkit.models.chunk import StepRounding

Mode = Literal["video_and_action", "action_only"]
TokenizerConfig = RepViTokConfig | WanVAEConfig


@dataclass(frozen=True)
class CausalModelConfig:
    """Tokenizer, words, experts, cameras, times and sampling; the defaults are RepWAM's (papers.md 3)."""

    tokenizer: TokenizerConfig = field(default_factory=RepViTokConfig)
    text: UMT5Settings = field(default_factory=UMT5Settings)
    video: VideoDiTConfig = field(default_factory=VideoDiTConfig)
    action: ActionTokensConfig = field(default_factory=OwnExpert)

    cameras: tuple[str, ...] = ("image",)
    """In the canvas's order."""
    canvas: CanvasKind = "single"
    resolution: tuple[int, int] = (256, 256)
    """Height and width of each camera's frames."""
    frame_s: float = 0.4
    """Seconds of one latent frame after the first; the actions of one group."""
    pictures: Literal["each", "held"] = "each"
    """Of the four pictures of a latent frame: each at its own time, or the last one four times over. With ``held``
    one picture a latent frame is all that must be seen, in training as on the robot."""
    actions_per_frame: int = 20
    """n: action tokens of a latent frame, padding included."""
    valid_steps: StepRounding = "round"
    training_frames: int = 128
    """F: latent frames of a training sequence after the first."""
    max_chunk_frames: int = 4
    """A training sequence is cut into chunks of 1 to this many latent frames, drawn anew for each batch."""
    chunk_frames: int = 2
    """Of a chunk at inference."""
    window: int = 64
    """Latent frames before its chunk that a token sees, and that are remembered: 32 chunks of 2. Fewer than
    ``training_frames``, or every training sequence has its first frame in sight, as no long episode has."""
    order: Order = "beside_video"
    attention: AttentionKind = "sdpa"

    mode: Mode = "video_and_action"
    """``video_and_action``: the next frames are imagined, then the actions that lead there. ``action_only``: the
    actions at once. Two masks over one set of weights."""
    video_steps: int = 5
    action_steps: int = 10
    video_shift: float = 1.0
    """Of the noise schedules, in training and in sampling."""
    action_shift: float = 1.0
    video_until: float = 0.0
    """Noise level at which denoising video stops before actions are read off it; 0: at the end."""
    video_guidance: float = 1.0
    """Classifier-free guidance; 1: none."""
    action_guidance: float = 1.0

    text_dropout: float = 0.1
    """How often a training sequence has no instruction."""
    action_dropout: float = 0.0
    """How often a training sequence's past holds frames alone, as it does where video is imagined without actions."""
    noisy_history: float = 0.0
    """How often the history's latents are noisy in training."""
    noisy_history_level: float = 0.5
    """Up to which noise level, before the shift."""
    forward_share: float = 0.5
    """How often frames are predicted under their chunk's true actions (forward dynamics)."""
    levels: Literal["chunk", "frame"] = "chunk"
    """Whether a chunk's frames share a noise level in training."""
    weighting: Literal["uniform", "bell"] = "uniform"
    """Of noise levels; ``bell`` is Wan's."""
    video_weight: float = 1.0
    action_weight: float = 1.0
    inverse_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.training_frames < 1 or self.chunk_frames < 1 or self.max_chunk_frames < 1:
            raise CausalModelError("training_frames, chunk_frames and max_chunk_frames are at least 1")
        if self.video_steps < 1 or self.action_steps < 1:
            raise CausalModelError("video_steps and action_steps are at least 1")
        if not 0.0 <= self.video_until < 1.0:
            raise CausalModelError(f"video_until is {self.video_until}: it is a noise level from 0 to below 1")
        if self.window < 1:
            raise CausalModelError(f"window is {self.window}: a chunk must see at least one latent frame before it")
        if self.order == "after_video" and self.forward_share > 0:
            raise CausalModelError(
                "clean actions that come after their chunk's video have seen it, so frames cannot be predicted under"
                " them: set forward_share to 0, or order to 'beside_video'"
            )

    @property
    def picture_offsets_s(self) -> tuple[float, ...]:
        """Seconds from a latent frame's beginning to its four pictures."""
        per = VideoTokenizer.TEMPORAL
        return tuple(self.frame_s * (1.0 if self.pictures == "held" else (i + 1) / per) for i in range(per))

    def offsets_s(self, frames: int) -> tuple[float, ...]:
        """Seconds from the first picture of all pictures of a clip with ``frames`` more latent frames."""
        return (0.0, *(self.frame_s * frame + offset for frame in range(frames) for offset in self.picture_offsets_s))

    @property
    def frame_offsets_s(self) -> tuple[float, ...]:
        """Of a training sequence: what the stages' windows must ask for."""
        return self.offsets_s(self.training_frames)

    @property
    def sequence_s(self) -> float:
        """Length of a training sequence: what the acting stages' windows must ask for as their chunk."""
        return self.training_frames * self.frame_s

    @property
    def sequence_actions(self) -> int:
        """Most actions of a training sequence."""
        return self.training_frames * self.actions_per_frame

    @property
    def horizon_s(self) -> float:
        """Length of a chunk at inference."""
        return self.chunk_frames * self.frame_s

    @property
    def max_actions(self) -> int:
        """Most actions of a chunk at inference."""
        return self.chunk_frames * self.actions_per_frame

    @property
    def guided(self) -> bool:
        """Whether a second past, without instruction, is carried along."""
        return self.video_guidance != 1.0 or self.action_guidance != 1.0


class CausalModelError(WamkitError, ValueError):
    """A causal model that cannot be built, or an episode that it cannot follow."""


def video_tokenizer(config: TokenizerConfig) -> VideoTokenizer:
    """The tokenizer that a config names."""
    return WanVAE(config) if isinstance(config, WanVAEConfig) else RepViTok(config)
