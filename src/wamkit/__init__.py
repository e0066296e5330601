"""wamkit: one interface for World Action Models, from recorded episodes to a robot that moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wamkit.inference.policy import load

__version__ = "0.1.0"

__all__ = ["__version__", "load"]


def __getattr__(name: str):
    # `import wamkit` stays instant (the command line and the torch-free client need that): torch comes with `load`.
    if name == "load":
        from wamkit.inference.policy import load

        return load
    raise AttributeError(f"module 'wamkit' has no attribute {name!r}")
