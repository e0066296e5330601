"""As which robot, and at which of its control rates, a policy acts: chosen in words, never guessed."""

from __future__ import annotations

from wamkit.data.contract_terms import BodyContract, Contract
from wamkit.errors import suggest
from wamkit.inference.errors import PolicyError


def same_rate(one_hz: float, other_hz: float) -> bool:
    """Whether two control rates are one, as `wamkit.data.contract.check` sees it: within 1 %."""
    return abs(one_hz / other_hz - 1) <= 0.01


def matching_bodies(contract: Contract, embodiment: str | None, rate_hz: float | None) -> list[BodyContract]:
    """The bodies of that embodiment and rate; None stands for any."""
    return [
        body
        for body in contract.bodies
        if embodiment in (None, body.embodiment) and (rate_hz is None or same_rate(rate_hz, body.rate_hz))
    ]


def find_body(contract: Contract, embodiment: str | None = None, rate_hz: float | None = None) -> BodyContract:
    """The body that is meant; what is None must be the only one there is.

    Raises:
        PolicyError: the policy was not trained on that, or on several that this does not tell apart.
    """
    known = ", ".join(dict.fromkeys(f"{body.embodiment} at {body.rate_hz:g} Hz" for body in contract.bodies))
    names = {body.embodiment for body in contract.bodies}
    if embodiment is not None and embodiment not in names:
        raise PolicyError(
            f"the policy was not trained on {embodiment!r}; it knows {known}.{suggest(embodiment, names)}"
        )
    found = matching_bodies(contract, embodiment, rate_hz)
    if not found:
        raise PolicyError(f"the policy was not trained at {rate_hz:g} Hz; it knows {known}.")
    if len({(body.embodiment, body.rate_hz) for body in found}) > 1:
        raise PolicyError(
            f"the policy knows {known}: say which, with wamkit.load(..., embodiment=, rate_hz=) or on the command line "
            "with --policy.embodiment and --policy.rate_hz."
        )
    return found[0]
