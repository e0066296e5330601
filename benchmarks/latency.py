"""How long does a chunk take, plain and through the runtime, at the model's and at the policy's boundary?

By the protocol of `wamkit.evaluation.latency`: adaptive warm-up, a ring of observations, percentiles with bootstrap
intervals, blocks A B B A of plain path and runtime in one process, and a null test. Weights are random unless a
checkpoint is named: latency of a fixed shape does not depend on them. Peers of the same arithmetic run in the same
process where they are installed (`_latency_peers`).

    python benchmarks/latency.py [--models lawam] [--preset tiny] [--threads 2] [--json]
    python benchmarks/latency.py --policy outputs/demo
    python benchmarks/latency.py --device cuda --preset paper --models lawam light_wam fast_wam

On a CPU a row has a time budget, within which the protocol's calls are cut and a warm-up may not settle; both are in
the result. ``--seconds 0`` lifts it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _latency_peers import PEERS, PeerUnavailable, beside

from wamkit.evaluation.arithmetic import Cost, bound_s, cost_of, dispatched_operations, machine_limits
from wamkit.evaluation.latency import Protocol, by_part, compare, warm_up
from wamkit.evaluation.latency_policy import description, model_call, observation_ring, policy_call, untrained_policy
from wamkit.evaluation.provenance import collect
from wamkit.evaluation.results import refuse_non_finite
from wamkit.inference.policy import Policy, checkpoint_folder, load
from wamkit.inference.runtime import Runtime, RuntimeSettings
from wamkit.inference.runtime_record import RuntimeUnsupported
from wamkit.models.registry import model_names

TOY = Protocol(ring=2, window=1, least_warm_up=1, most_warm_up=3, calls=4, slow_calls=4, resamples=50)

CPU_SECONDS = 16.0
"""Of measuring one row, where nothing else is asked for: five models then take less than three minutes on two cores."""

TARGETS: dict[tuple[str, str], dict[str, tuple[str, float]]] = {
    ("tiny", "cpu"): {"lawam": ("policy", 15.0)},
    ("paper", "cuda"): {"lawam": ("model", 15.0), "light_wam": ("model", 8.0), "fast_wam": ("model", 45.0)},
}
"""Milliseconds of the runtime's p50 that are aimed at, by preset and device; of `cuda`, one H200 in bf16."""

LEAST_RATIO = 2.0
"""Of the plain path's p50 to the runtime's, aimed at for every model on a CPU."""


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--models", nargs="+", default=list(model_names()), choices=model_names())
    flags.add_argument("--preset", default="tiny")
    flags.add_argument("--policy", type=Path, help="a checkpoint instead of random weights")
    flags.add_argument("--device", default="auto", help="cpu, cuda, or auto for a GPU where there is one")
    flags.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp8"))
    flags.add_argument("--threads", type=int, help="torch's threads; by default one a core")
    flags.add_argument("--compile", action="store_true", help="compile the runtime's recordings with TorchInductor")
    flags.add_argument("--executed", type=int, help="actions executed of each chunk; by default half")
    flags.add_argument("--calls", type=int, help="timed calls of each row instead of the protocol's 1000")
    flags.add_argument(
        "--seconds",
        type=float,
        help=f"to measure each row in; 0: no bound. By default {CPU_SECONDS:g} on a CPU, else 0",
    )
    flags.add_argument(
        "--peers",
        nargs="*",
        default=list(PEERS),
        choices=list(PEERS),
        help="set beside the models that are measured; none: no peers",
    )
    flags.add_argument("--toy", action="store_true", help="a few calls of everything: shows that it runs")
    flags.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return flags


def protocol_of(options: argparse.Namespace, device: str) -> Protocol:
    """Of each row's time, four warm-ups take 13 % each, two comparisons 18 % each, and the parts what is left."""
    if options.toy:
        return TOY
    seconds = options.seconds if options.seconds is not None else CPU_SECONDS * (device == "cpu")
    bounds = dict(warm_up_s=0.13 * seconds, measure_s=0.18 * seconds) if seconds else {}
    usual = Protocol(**bounds)
    if not options.calls:
        return usual
    # On a shared machine the warm-up need not settle: then it must not cost more than what it prepares.
    return replace(
        usual,
        calls=options.calls,
        slow_calls=min(options.calls, usual.slow_calls),
        most_warm_up=max(usual.least_warm_up, min(options.calls, usual.most_warm_up)),
    )


def for_parts(protocol: Protocol, parts: int) -> Protocol:
    """Together the parts may take two thirds of a comparison's time."""
    if protocol.measure_s is None:
        return protocol
    return replace(protocol, warm_up_s=0.25 * protocol.measure_s / parts, measure_s=0.4 * protocol.measure_s / parts)


def subject(name: str, options: argparse.Namespace, device: str) -> tuple[Policy, dict[str, float]]:
    """The policy to time, and what it cost to have it."""
    started = time.perf_counter()
    plain = "auto" if options.precision == "fp8" else options.precision
    if options.policy is not None:
        policy = load(checkpoint_folder(options.policy), device=device, precision=plain)
    else:
        policy = untrained_policy(name, options.preset, device=device, precision=plain)
    return policy, {"build_or_load_s": time.perf_counter() - started}


def with_runtime(policy: Policy, options: argparse.Namespace, ring: list[dict[str, Any]]) -> Policy:
    """The same model and terms, acting through a runtime."""
    fast = Policy(policy.model, policy.normalizer, policy.contract, stage=policy.stage)
    embodiment = policy.contract.bodies[0].embodiment
    settings = RuntimeSettings(precision=options.precision, compile=options.compile)
    calibration = [policy.observation([entry], embodiment=embodiment) for entry in ring[:4]]
    fast.runtime = Runtime(policy.model, settings, calibration=calibration)
    return fast


def costs(fast: Policy, ring: list[dict[str, Any]]) -> list[Cost]:
    assert fast.runtime is not None
    batch = fast.observation([ring[0]], embodiment=fast.contract.bodies[0].embodiment)
    return [cost_of(recording) for recording in fast.runtime.recordings(batch) if recording is not None]


def memory(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        import resource

        return {"peak_resident_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return {"allocated_mib": allocated / 2**20, "reserved_mib": reserved / 2**20}


def peers(
    name: str, options: argparse.Namespace, policy: Policy, fast: Policy, protocol: Protocol
) -> tuple[dict[str, Any], dict[str, str]]:
    """Those that stand beside this model, and why others of them do not."""
    measured, missing = {}, {}
    for peer in options.peers:
        if PEERS[peer][0] != name:
            continue
        try:
            measured[peer] = beside(peer, policy, fast, observation_ring(policy, protocol.ring), protocol)
        except PeerUnavailable as error:
            missing[peer] = str(error)
            print(f"{peer}: {error}", file=sys.stderr)
    return measured, missing


def kernels(call: Any, device: torch.device) -> int | None:
    """Kernels that a call launches on a GPU; None elsewhere."""
    if device.type != "cuda":
        return None
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        call()
        torch.cuda.synchronize(device)
    return sum(event.device_type == DeviceType.CUDA for event in profiled.events())


def target(options: argparse.Namespace, policy: Policy, boundaries: dict[str, Any]) -> dict[str, Any] | None:
    """What was aimed at for this row, and whether it was reached."""
    device = policy.device.type
    aimed = TARGETS.get((options.preset, device), {}).get(policy.model.name) if options.policy is None else None
    result: dict[str, Any] = {}
    if aimed is not None:
        p50 = boundaries[aimed[0]]["runtime"]["p50_ms"]
        result |= {"boundary": aimed[0], "p50_ms_at_most": aimed[1], "p50_ms": p50, "reached": p50 <= aimed[1]}
    if device == "cpu":
        ratio = boundaries["policy"]["ratio"]
        result |= {"ratio_at_least": LEAST_RATIO, "ratio": ratio, "ratio_reached": ratio >= LEAST_RATIO}
    return result or None


def row(
    name: str, options: argparse.Namespace, protocol: Protocol, policy: Policy, fast: Policy, cold: dict[str, float]
) -> dict[str, Any]:
    """Everything about one model."""
    ring = observation_ring(policy, protocol.ring)
    embodiment = policy.contract.bodies[0].embodiment
    runtime = fast.runtime
    assert runtime is not None
    boundaries: dict[str, Any] = {}
    for boundary, make in (("model", model_call), ("policy", policy_call)):
        plain, quick = make(policy, ring), make(fast, ring)
        warm = {"plain": warm_up(plain, protocol), "runtime": warm_up(quick, protocol)}
        boundaries[boundary] = {"warm_up": warm, **compare(plain, quick, protocol)}
        boundaries[boundary]["plain"] = boundaries[boundary].pop("first")
        boundaries[boundary]["runtime"] = boundaries[boundary].pop("second")

    policy.reset()  # the ring's pictures are no episode
    batch = policy.observation([ring[0]], embodiment=embodiment)
    stages = costs(fast, ring)
    limits = machine_limits(policy.device, runtime.dtype or torch.float32, seconds=0.05 if options.toy else 1.0)
    bound = 1e3 * bound_s(stages, limits)
    chunk = policy.act(ring[0], embodiment=embodiment)
    actions = int(chunk.valid.sum())
    executed = options.executed or max(1, actions // 2)
    fastest = boundaries["policy"]["runtime"]["p50_ms"]
    report = runtime.reports()[0]
    alone = runtime.parts(batch)
    return {
        **description(policy),
        "preset": None if options.policy else options.preset,
        "precision": {"plain": "bf16" if policy._autocast else "fp32", "runtime": runtime.precision},
        "graphs": runtime.graphs,
        "compiled": options.compile,
        "cached": "an instruction's features where a text encoder of its own makes them; nothing of one chunk is kept",
        "actions": actions,
        "executed": executed,
        "cold": cold | {"runtime": report.seconds},
        "shape": report.shape,
        "boundaries": boundaries,
        "ms_per_action": fastest / executed,
        "duty": fastest / 1e3 / (executed / policy.body(embodiment).rate_hz),
        "operations": {
            "plain": dispatched_operations(lambda: policy.model.act(batch)),
            "runtime_prefix": report.prefix_operations,
            "runtime_per_step": report.operations_per_step,
        },
        "gflop": sum(stage.flop for stage in stages) / 1e9,
        "weight_bytes": report.constant_bytes,
        "bound_ms": bound,
        "limits": vars(limits),
        "efficiency": bound / boundaries["model"]["runtime"]["p50_ms"],
        "kernels": {
            "plain": kernels(lambda: policy.act_normalised(batch), policy.device),
            "runtime": kernels(lambda: fast.act_normalised(batch), policy.device),
        },
        "target": target(options, policy, boundaries),
        "parts": by_part(alone, for_parts(protocol, len(alone))),
        "memory": memory(policy.device),
    }


def table(rows: dict[str, Any]) -> list[str]:
    """For a terminal."""
    lines = [f"{'model':12s} boundary  plain p50  runtime p50      p99                faster                 null"]
    for name, entry in rows.items():
        for boundary, cell in entry["boundaries"].items():
            low, high = cell["ci95"]
            null = cell["null"]
            lines.append(
                f"{name:12s} {boundary:8s} {cell['plain']['p50_ms']:7.2f} ms {cell['runtime']['p50_ms']:9.2f} ms"
                f" {cell['runtime']['p99_ms']:8.2f} {cell['ratio']:8.2f} [{low:.2f}, {high:.2f}]"
                f" {null['ratio']:8.3f} [{null['ci95'][0]:.3f}, {null['ci95'][1]:.3f}]"
            )
        lines.append(
            f"{'':12s} bound {entry['bound_ms']:.2f} ms, efficiency {entry['efficiency']:.2f}; operations:"
            f" plain {entry['operations']['plain']}, runtime {entry['operations']['runtime_prefix']} and"
            f" {entry['operations']['runtime_per_step']:.0f} a step"
        )
        unsettled = [
            f"{boundary} {which}"
            for boundary, cell in entry["boundaries"].items()
            for which, warm in cell["warm_up"].items()
            if not warm["settled"]
        ]
        calls = min(cell["runtime"]["n"] for cell in entry["boundaries"].values())
        cut = any(cell["cut"] for cell in entry["boundaries"].values())
        lines.append(
            f"{'':12s} n = {calls}{', cut to the time budget' if cut else ''};"
            f" warm-up {'did not settle: ' + ', '.join(unsettled) if unsettled else 'settled'}"
        )
    return lines


def peer_table(measured: dict[str, Any]) -> list[str]:
    """Each peer against our plain path (eager against eager) and against our runtime (best against best)."""
    lines = []
    for name, entry in measured.items():
        for which, cell in entry["against"].items():
            low, high = cell["ci95"]
            lines.append(
                f"{name:12s} {cell['peer']['p50_ms']:8.2f} ms;"
                f" {entry['beside']} {which} {cell['ours']['p50_ms']:.2f} ms,"
                f" {cell['ratio']:.2f} [{low:.2f}, {high:.2f}] times as fast; null {cell['null']['ratio']:.3f}"
            )
    return lines


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    protocol = protocol_of(options, device)
    names = ["policy"] if options.policy else options.models
    rows: dict[str, Any] = {}
    beside_ours: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name in names:
        policy = fast = None  # the last model's weights, before the next one's are made
        policy, cold = subject(name, options, device)
        try:
            fast = with_runtime(policy, options, observation_ring(policy, protocol.ring))
            rows[name] = row(name, options, protocol, policy, fast, cold)
        except RuntimeUnsupported as error:
            missing[name] = str(error)
            print(f"{name}: {error}", file=sys.stderr)
            continue
        measured, absent = peers(policy.model.name, options, policy, fast, protocol)
        beside_ours, missing = beside_ours | measured, missing | absent
    result = {
        "benchmark": "latency",
        "toy": options.toy,
        "protocol": vars(protocol),
        "rows": rows,
        "peers": beside_ours,
        "not_measured": missing,
        "load_average": round(os.getloadavg()[0], 2),
        "provenance": collect(seeds=[0], checkpoint=checkpoint_folder(options.policy) if options.policy else None),
    }
    refuse_non_finite(result)
    if options.json:
        print(json.dumps(result))
    else:
        print("\n".join([*table(rows), *peer_table(beside_ours)]))


if __name__ == "__main__":
    main()
