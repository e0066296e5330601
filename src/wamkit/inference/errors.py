"""What goes wrong with a policy."""

from __future__ import annotations

from wamkit.errors import WamkitError


class PolicyError(WamkitError):
    """A checkpoint that cannot be loaded, or an observation that does not fit the policy."""
