"""The command ``wam``: one module per verb, imported only when that verb is called.

``wam --help`` imports neither torch nor tyro. A verb's module has ``run(arguments) -> int`` and does its own heavy
imports inside. What a user can mend is one line on standard error; ``--debug`` shows the traceback of anything else.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from wamkit.errors import WamkitError, suggest

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "record, train, imagine, evaluate and report on three MetaWorld tasks, on a laptop"),
    "record": ("record", "record demonstrations of a simulator's expert into a LeRobot data set"),
    "import": ("import_data", "turn other recordings into a LeRobot data set"),
    "train": ("train", "run a recipe: every stage of a model, resumable"),
    "eval": ("evaluate", "closed-loop success with intervals and control arms"),
    "calibrate": ("calibrate", "set the threshold of a policy's monitor on its own successful episodes"),
    "imagine": ("imagine", "measure what a world model imagines on held-out episodes"),
    "serve": ("serve", "serve a policy to robots, over openpi's websocket protocol"),
    "bench": ("bench", "latency, loader and rendering speed on this machine"),
    "check": ("check", "compare a policy's contract with a data set or an environment"),
    "report": ("report", "write report.html from a run's results"),
    "info": ("info", "models, presets, parameter counts, and a diagnosis of the installation"),
    "convert": ("convert", "read published checkpoints into wamkit's layout, and back"),
}
"""Verb -> (module of this package, what it does in one line), in the order of the help."""

USAGE_STATUS = 2
FAILURE_STATUS = 1


class UsageError(WamkitError):
    """The command line itself is wrong; ends with status 2."""


def help_text() -> str:
    """The text of ``wam --help``."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {summary}" for verb, (_, summary) in VERBS.items())
    return (
        "usage: wam VERB [flags]\n\n"
        "World Action Models: from recorded episodes to a robot that moves.\n\n"
        f"verbs:\n{verbs}\n\n"
        "`wam VERB --help` lists a verb's flags. Everywhere: --debug shows tracebacks, --version the version."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit status: 0 done, 1 failed or violated, 2 wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if arguments[0] == "--version":
        from wamkit import __version__

        print(f"wamkit {__version__}")
        return 0
    verb = arguments[0]
    try:
        return _run(verb, arguments[1:])
    except KeyboardInterrupt:
        print(f"wam {verb}: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return FAILURE_STATUS
    except WamkitError as error:
        if debug:
            raise
        print(_line(verb, error), file=sys.stderr)
        return USAGE_STATUS if isinstance(error, UsageError) else FAILURE_STATUS
    except ModuleNotFoundError as error:
        if debug:
            raise
        print(_line(verb, _missing_module(error)), file=sys.stderr)
        return FAILURE_STATUS
    except Exception as error:
        if debug:
            raise
        print(
            _line(verb, f"{type(error).__name__}: {error}") + " (not foreseen: --debug shows the traceback)",
            file=sys.stderr,
        )
        return FAILURE_STATUS


def _run(verb: str, arguments: list[str]) -> int:
    if verb not in VERBS:
        raise UsageError(f"no verb {verb!r}.{suggest(verb, VERBS)}")
    module = importlib.import_module(f"wamkit.cli.{VERBS[verb][0]}")
    return int(module.run(arguments) or 0)


def _line(verb: str, message: object) -> str:
    prefix = f"wam {verb}: " if verb in VERBS else "wam: "
    # Messages are written for Python's callers; here the same thing is a flag.
    return prefix + " ".join(str(message).split()).replace("resume=True", "--resume")


def _missing_module(error: ModuleNotFoundError) -> str:
    extras = {
        "metaworld": "sim",
        "mujoco": "sim",
        "libero": "libero",
        "robosuite": "libero",
        "websockets": "serve",
        "msgpack": "serve",
    }
    missing = (error.name or "").partition(".")[0]
    if missing in extras:
        return f"this needs the package {missing}: pip install 'wamkit[{extras[missing]}]'"
    return f"{error}; the installation is incomplete (`wam info` diagnoses it)"
