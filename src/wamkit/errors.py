"""What wamkit raises when the user can mend it: one sentence that says what is wrong and what to do.

The command line prints a :class:`WamkitError` as one line without a traceback; any other exception is a defect.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WamkitError(Exception):
    """An error whose message a user can act on; the base of all that wamkit raises on purpose."""


class WeightsError(WamkitError, FileNotFoundError):
    """Published weights that cannot be read, or are of another size than the config; the message says what to set."""


class MisfitError(WamkitError, ValueError):
    """Data or settings of another size than a model's parts take; the message says which they take."""


def suggest(name: str, choices: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest choices, else all of them.

    Args:
        name: What was asked for.
        choices: The names that exist.

    Returns:
        A sentence with a leading space, such as ``" Did you mean 'lawam'?"``, or ``""`` without any choice;
        append it to the message.
    """
    names = sorted(set(choices))
    if not names:
        return ""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if not close:
        close = [candidate for candidate in names if name and name.lower() in candidate.lower()][:3]
    if close:
        return f" Did you mean {' or '.join(repr(candidate) for candidate in close)}?"
    shown = names if len(names) <= 20 else [*names[:20], "..."]
    return f" Choose from: {', '.join(shown)}."
