"""Light-WAM's configuration and its presets."""

from __future__ import annotations

from dataclasses import dataclass, field

from wamkit.actions.state_fusion import StateFusionConfig
from wamkit.dynamics.video_dit import LoRASettings, VideoDiTConfig
from wamkit.dynamics.video_flow import Pooling
from wamkit.encoders.wan_vae import WanVAEConfig
from wamkit.errors import WamkitError, suggest
from wamkit.models.video.config import VideoModelConfig, self_trained, tiny_video


@dataclass(frozen=True)
class LightWAMConfig(VideoModelConfig):
    """Everything that fixes Light-WAM's computation. Where paper and code differ see papers.md 2.9 and the README."""

    lora: LoRASettings = field(default_factory=LoRASettings)
    adapters: tuple[int, ...] = (8, 16, 24)
    """Blocks, counted from 0, after which an adapter sits; the action expert reads there."""
    adapter_width: int = 256
    expert: StateFusionConfig = field(default_factory=StateFusionConfig)
    downsample: int = 2
    """Factor by which the policy stage's future video is coarser than the latents, in height and in width."""
    downsample_pooling: Pooling = "mean"
    supervised_steps: int | None = None
    """Only the first steps of a chunk are trained on; None: all (the paper). The released scripts: 8 on LIBERO, 24 on
    RoboTwin."""

    def __post_init__(self) -> None:
        if not self.adapters or list(self.adapters) != sorted(set(self.adapters)):
            raise WamkitError(f"adapters are {self.adapters}; name blocks in ascending order, each once.")
        if self.adapters[-1] >= self.video.layers:
            raise WamkitError(
                f"adapters are {self.adapters}, but the backbone has blocks 0 to {self.video.layers - 1}."
            )


def preset(name: str) -> LightWAMConfig:
    """Light-WAM in one of its sizes.

    ``paper``: the published dimensions on Wan2.1-T2V-1.3B. ``small``: tens of millions of parameters, own VAE and
    backbone, one GPU for minutes. ``tiny``: a CPU for minutes; the same classes throughout.

    Raises:
        WamkitError: the preset does not exist.
    """
    if name == "paper":
        return LightWAMConfig()
    if name == "small":
        vae = WanVAEConfig(
            weights=None,
            channels=16,
            width=32,
            multipliers=(1, 2, 4),
            residual_blocks=1,
            temporal_downsample=(True, True),
            patch=2,
        )
        video = VideoDiTConfig(
            weights=None, channels=16, heads=6, head_width=64, mlp_width=1024, layers=12, text_width=256
        )
        return LightWAMConfig(
            **self_trained(vae, video, max_tokens=128, max_state_dim=16),
            lora=LoRASettings(rank=32, alpha=64.0),
            adapters=(3, 6, 9),
            adapter_width=96,
            expert=StateFusionConfig(action_dim=16, queries=16, heads=6, layer_width=768, trunk_width=1024),
        )
    if name == "tiny":
        return LightWAMConfig(
            **tiny_video(),
            lora=LoRASettings(rank=32, alpha=64.0),
            adapters=(1, 3, 5),
            adapter_width=64,
            expert=StateFusionConfig(action_dim=32, queries=16, heads=4, layer_width=256, trunk_width=384),
        )
    raise WamkitError(f"Light-WAM has no preset {name!r}.{suggest(name, ('tiny', 'small', 'paper'))}")
