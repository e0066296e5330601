"""Files of tensors (safetensors): a damaged one is one sentence that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from wamkit.errors import WamkitError

if TYPE_CHECKING:
    from torch import Tensor


def read_tensors(path: Path, error: type[WamkitError], mend: str) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU.

    Args:
        path: The file.
        error: What is raised where it cannot be read.
        mend: What the user can do about it; the end of the error's sentence.

    Raises:
        WamkitError: As ``error``: the file is missing, cut short or no safetensors.
    """
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as reason:
        raise error(f"{path} cannot be read ({reason}): {mend}") from reason


def read_metadata(path: Path, error: type[WamkitError], mend: str) -> dict[str, str]:
    """What was written beside the tensors. Reads the head alone, and finds out whether the file is whole.

    Args:
        path: The file.
        error: See `read_tensors`.
        mend: See `read_tensors`.

    Raises:
        WamkitError: As ``error``: the file is missing, cut short or no safetensors.
    """
    try:
        with safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as reason:
        raise error(f"{path} cannot be read ({reason}): {mend}") from reason
