"""Where a checkpoint lies, and what its ``config.json`` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wamkit.inference.errors import PolicyError
from wamkit.json_files import read_json

LEROBOT_KEYS = frozenset(
    {
        *("n_obs_steps", "input_features", "output_features", "device", "use_amp", "use_peft", "push_to_hub"),
        *("repo_id", "private", "tags", "license", "pretrained_path", "pretrained_revision", "preset", "embodiment"),
        *("n_action_steps", "dtype", "normalization_mapping", "optimizer_lr", "optimizer_betas", "optimizer_eps"),
        *("optimizer_weight_decay", "optimizer_grad_clip_norm", "scheduler_warmup_steps"),
        "scheduler_final_lr_fraction",
    }
)
"""What `lerobot-train` writes into ``config.json`` beside the model's own config; see `wamkit.integrations.lerobot`."""


def read_config(folder: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Model name, model config and the rest (``stage``, ``contract``) of a checkpoint's ``config.json``.

    Raises:
        PolicyError: there is no checkpoint in the folder, or one whose ``config.json`` cannot be read.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise PolicyError(
            f"{folder} is no checkpoint: it has no config.json; name a folder such as RUN/checkpoints/last"
        )
    values = read_json(path, PolicyError, "copy the checkpoint again, or name another")
    name = values.pop("type", None)
    if name is None:
        raise PolicyError(f"{path} does not say which model it is ('type' is missing)")
    rest = {key: values.pop(key) for key in ("stage", "contract") if key in values}
    return name, {key: value for key, value in values.items() if key not in LEROBOT_KEYS}, rest


def checkpoint_folder(path: str | Path) -> Path:
    """The ``pretrained_model`` folder meant by ``path``: itself, a checkpoint's, or a run's last."""
    path = Path(path)
    for candidate in (path, path / "pretrained_model", path / "checkpoints" / "last" / "pretrained_model"):
        if (candidate / "config.json").is_file():
            return candidate
    if not path.exists():
        raise PolicyError(f"there is no folder {path}; name a checkpoint such as RUN/checkpoints/last/pretrained_model")
    raise PolicyError(f"{path} holds no checkpoint; name a folder such as RUN/checkpoints/last/pretrained_model")
