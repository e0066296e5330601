"""``wam serve``: a policy on a port, for robots and for whoever speaks openpi's protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wamkit.cli.groups import ActingPolicyFlags
from wamkit.cli.parsing import parse
from wamkit.errors import WamkitError


@dataclass(frozen=True)
class ServeArguments:
    """Serve a policy over websockets until SIGTERM or Ctrl-C, then finish what was accepted. Logs are JSON lines."""

    policy: ActingPolicyFlags
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int = 8000
    """Port to listen on; 0 takes a free one, which the log names."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    precision: str = "auto"
    """fp32, bf16, or auto."""
    runtime: bool = False
    """Act through the runtime (wamkit.inference.runtime): faster, the same actions up to rounding, a longer start."""
    max_batch: int = 16
    """Most requests that one run of the policy answers."""
    batch_wait_ms: float = 0.0
    """How long a request may wait for others to share its run; 0 takes what is there."""
    max_message_mb: float | None = None
    """Largest request, in MiB; by default twice an observation without JPEG, and 1."""
    max_sessions: int = 64
    """Most clients at a time."""
    token_file: Path | None = None
    """File with a token that clients must send."""
    certificate: Path | None = None
    """PEM file for TLS, with --key."""
    key: Path | None = None
    """PEM file of the certificate's key."""
    drain_timeout_s: float = 30.0
    """Longest that a shutdown waits for running requests."""
    seed: int = 0
    """Fixes what the policy samples, session by session."""
    monitor: bool = False
    """Show what is imagined against what is seen on a page at /monitor, live."""
    calibration: Path | None = None
    """Of the monitor (a file of wam calibrate): the page then shows the threshold, and counts alarms."""
    rerun: str | None = None
    """With --monitor: log to Rerun as well, into a file NAME.rrd or to a viewer's address (needs rerun-sdk)."""


def run(argv: Sequence[str]) -> int:
    """Runs the verb."""
    arguments = parse(ServeArguments, argv, verb="serve")
    import asyncio

    from wamkit.inference.monitor_calibration import Calibration
    from wamkit.serving.config import ServerConfig
    from wamkit.serving.live_rerun import RerunLog
    from wamkit.serving.logs import log, log_to

    config = ServerConfig(
        host=arguments.host,
        port=arguments.port,
        max_batch=arguments.max_batch,
        batch_wait_s=arguments.batch_wait_ms / 1e3,
        max_message_bytes=None if arguments.max_message_mb is None else int(arguments.max_message_mb * 2**20),
        max_sessions=arguments.max_sessions,
        token=_token(arguments.token_file),
        certificate=arguments.certificate,
        key=arguments.key,
        drain_timeout_s=arguments.drain_timeout_s,
        seed=arguments.seed,
    )
    config.tls()  # a wrong certificate is told before the policy is loaded
    if not arguments.monitor and (arguments.calibration or arguments.rerun):
        raise WamkitError("--calibration and --rerun belong to --monitor: add it, or leave them out.")
    calibration = None if arguments.calibration is None else Calibration.load(arguments.calibration)
    sinks = [] if arguments.rerun is None else [RerunLog(arguments.rerun)]

    from wamkit.evaluation.provenance import checkpoint_record
    from wamkit.inference.policy import checkpoint_folder, load
    from wamkit.inference.settings import identity
    from wamkit.serving.served import ServedPolicy
    from wamkit.serving.server import PolicyServer, serve_until_signal

    log_to()
    folder = checkpoint_folder(arguments.policy.path)
    settings, checkpoint = arguments.policy.inference_settings(), checkpoint_record(folder)["sha256"]
    if calibration is not None:
        calibration.refuse_other(identity(checkpoint, settings))
    policy = load(
        folder,
        device=arguments.device,
        precision=arguments.precision,
        runtime=arguments.runtime,
        embodiment=arguments.policy.embodiment,
        rate_hz=arguments.policy.rate_hz,
        settings=settings,
    )
    facts = {"checkpoint": checkpoint, "stage": policy.stage} | ({"settings": settings} if settings else {})
    served = ServedPolicy(policy, facts=facts)
    shapes = served.warm_up(arguments.max_batch)
    log("loaded", device=str(policy.device), runtime_shapes=shapes, **served.metadata())

    live = served.watch(calibration, sinks) if arguments.monitor else None

    async def serve() -> None:
        await serve_until_signal(PolicyServer(served, config, live))

    try:
        asyncio.run(serve())
    finally:
        for sink in sinks:
            sink.close()
    return 0


def _token(path: Path | None) -> str | None:
    """The token in a file; not a flag, because other users see a process's flags.

    Raises:
        WamkitError: There is no such file, or nothing in it.
    """
    if path is None:
        return None
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise WamkitError(f"--token_file {path} cannot be read: {error.strerror}.") from error
    if not token:
        raise WamkitError(f"--token_file {path} is empty: write a token into it.")
    return token
