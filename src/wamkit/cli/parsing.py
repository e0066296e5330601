"""From a frozen dataclass to a verb's command line: tyro reads it, and a mistyped flag gets a suggestion.

Flags are dotted and spelled with underscores, as LeRobot's are: ``--eval.n_episodes 20``. A boolean is
``--resume`` / ``--no_resume``, or LeRobot's ``--resume=true`` / ``--resume=false``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_type_hints

import tyro

from wamkit.cli import UsageError
from wamkit.errors import suggest


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag: its dotted name without dashes, whether it is a switch, and whether it must be given."""

    name: str
    switch: bool
    required: bool

    @property
    def negation(self) -> str:
        """The name of the switch that turns it off: ``eval.videos`` -> ``eval.no_videos``."""
        group, dot, leaf = self.name.rpartition(".")
        return f"{group}{dot}no_{leaf}"


def flags(kind: type, default: Any = None, prefix: str = "") -> Iterator[Flag]:
    """All flags of a config class, nested groups included, in the order of its fields.

    Args:
        kind: A dataclass.
        default: An instance whose values say what fields annotated loosely hold.
        prefix: Dotted path of the group, with the trailing dot.
    """
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        if not field.init or _is_positional(hints[field.name]):
            continue
        name = prefix + field.name
        value = getattr(default, field.name) if default is not None else _field_default(field)
        hint = hints[field.name]
        if dataclasses.is_dataclass(value):
            yield from flags(type(value), value, name + ".")
        elif isinstance(value, tuple) and value and all(dataclasses.is_dataclass(item) for item in value):
            for index, item in enumerate(value):
                yield from flags(type(item), item, f"{name}.{index}.")
        elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from flags(hint, None, name + ".")
        else:
            required = default is None and field.default is field.default_factory is dataclasses.MISSING
            yield Flag(name, switch=hint is bool, required=required)


def parse[Arguments](
    kind: type[Arguments], arguments: Sequence[str], *, verb: str, default: Arguments | None = None, about: str = ""
) -> Arguments:
    """Reads a verb's arguments into its config.

    Args:
        kind: Frozen dataclass of the verb; a ``tyro.conf.Positional`` field has no dashes.
        arguments: What follows the verb.
        verb: For messages.
        default: Values to start from instead of the class's own.
        about: Replaces the class's docstring in the help.

    Raises:
        UsageError: An unknown flag (with a suggestion), a missing or an ill-formed value.
    """
    known = tuple(flags(kind, default))
    prepared = [_prepared(argument, known, verb) for argument in arguments]
    if "--help" not in prepared and "-h" not in prepared:
        given = {argument[2:].partition("=")[0] for argument in prepared if argument.startswith("--")}
        if missing := [f"--{flag.name}" for flag in known if flag.required and flag.name not in given]:
            raise UsageError(f"missing {', '.join(missing)}. `wam {verb} --help` explains.")
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                kind,
                prog=f"wam {verb}",
                args=prepared,
                default=tyro.MISSING_NONPROP if default is None else default,
                description=about or None,
                use_underscores=True,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_one_line(complaint.getvalue(), verb)) from None


def _prepared(argument: str, known: Sequence[Flag], verb: str) -> str:
    """Checks one token's flag and rewrites LeRobot's ``--switch=true``."""
    if not argument.startswith("--") or argument in ("--", "--help"):
        return argument
    name, equals, value = argument[2:].partition("=")
    name = name.replace("-", "_")
    for flag in known:
        if flag.switch and name == flag.name and equals:
            if value.lower() not in ("true", "false"):
                raise UsageError(f"--{name} is a switch: --{name}=true or --{name}=false, not {value!r}.")
            return f"--{flag.name}" if value.lower() == "true" else f"--{flag.negation}"
        if name == flag.name or (flag.switch and name == flag.negation):
            return f"--{name}{equals}{value}"
    hint = suggest(f"--{name}", [f"--{flag.name}" for flag in known])
    raise UsageError(f"no flag --{name}.{hint} `wam {verb} --help` lists them all.")


def _one_line(box: str, verb: str) -> str:
    """What tyro says in a drawn box, as one line."""
    border = r"[\u2500-\u257f]|-{4,}|^[|+]|[|+]$"  # drawn, or spelled where the terminal is ASCII
    lines = [re.sub(border, "", line).strip() for line in box.strip().splitlines()]
    text = " ".join(line for line in lines[1:] if line)
    text = re.sub(r"(Argument helptext:|For full helptext,).*$", "", text).strip()
    text = re.sub(r"^Missing from wam \w+: ", "missing ", text).replace(" (required)", "")
    return f"{text.rstrip('.')}. `wam {verb} --help` explains."


def _is_positional(hint: Any) -> bool:
    return any(
        "Positional" in repr(mark) or "_PositionalMarker" in repr(mark) for mark in getattr(hint, "__metadata__", ())
    )


def _field_default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None
