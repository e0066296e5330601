"""Does the policy server lose or mix up a request under load, does its memory grow, and what does SIGTERM cost?

A server in a process of its own, with a policy that computes nothing but tells in its actions whose request it
answers; many clients in other processes, each asking again as soon as it has its answer, every second one with JPEG
pictures. Each answer must be that of its request. The server's memory is read once a second. Then the same load meets
SIGTERM, with several requests of each client under way: every request that was accepted must have been answered.

    python benchmarks/serving.py [--clients 16] [--requests 20000] [--json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from wamkit.client import PolicyClient
from wamkit.evaluation.provenance import collect
from wamkit.serving.requests import RequestFormat
from wamkit.serving.wire import pack, unpack

CHUNK, WIDTH = 16, 4
OUTSTANDING = 3
"""Requests of each client under way when SIGTERM comes."""


class EchoPolicy:
    """Each row of its actions is (client, request, mean of the picture, 0)."""

    def __init__(self, size: int, infer_s: float) -> None:
        self.request_format = RequestFormat(
            cameras={"front": (size, size)}, state_names=("client", "request"), action_dim=WIDTH
        )
        self.infer_s = infer_s

    def metadata(self) -> dict[str, Any]:
        """What clients are told."""
        return {"model": "echo", "action": {"shape": [CHUNK, WIDTH]}, "rate_hz": 80.0, "chunk": {"length": CHUNK}}

    def violations(self, observation: Any, robot: Any) -> list[str]:
        """Every robot fits."""
        return []

    def remember(self) -> None:
        """Nothing."""

    def act(self, items: Sequence[Any]) -> list[np.ndarray]:
        """Wait, and tell whose request each item is."""
        time.sleep(self.infer_s)
        rows = [
            (*item.observation["observation.state"], item.observation["observation.images.front"].mean(), 0.0)
            for item in items
        ]
        return [np.tile(np.array(row, np.float32), (CHUNK, 1)) for row in rows]


class ServerProcess:
    """The server, its log and its memory."""

    def __init__(self, size: int, infer_ms: float) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", "--size", str(size)]
        self.process = subprocess.Popen([*command, "--infer_ms", str(infer_ms)], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.log: list[dict[str, Any]] = []
        for line in self.process.stderr:
            self.log.append(json.loads(line))
            if self.log[-1]["event"] == "listening":
                break
        else:
            raise SystemExit("the server did not start")
        self.port = self.log[-1]["port"]
        rest = (json.loads(line) for line in self.process.stderr)
        self._reader = threading.Thread(target=self.log.extend, args=(rest,), daemon=True)
        self._reader.start()

    @property
    def address(self) -> str:
        """Where clients find it."""
        return f"ws://127.0.0.1:{self.port}"

    def metric(self, name: str) -> float:
        """One of `/metrics`."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as reply:
            found = re.search(rf"^{name} (\S+)$", reply.read().decode(), flags=re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def memory_mib(self) -> float:
        """Resident memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def terminate(self) -> tuple[dict[str, Any], float, int]:
        """SIGTERM: the last line of the log, how long it took in s, the exit status."""
        began = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        took = time.perf_counter() - began
        self._reader.join(10)
        return self.log[-1], took, status


def pictures(size: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (size, size, 3), np.uint8) // 8 + 25 * number for number in range(8)]


def observation(shown: np.ndarray, client: int, count: int) -> dict[str, Any]:
    state = np.array([client, count], np.float32)
    return {"observation/images/front": shown, "observation/state": state, "prompt": "go"}


def is_answer(actions: np.ndarray, client: int, count: int, shown: np.ndarray, slack: float) -> bool:
    right = actions.shape == (CHUNK, WIDTH) and bool((actions[:, :2] == (client, count)).all())
    return right and abs(float(actions[0, 2]) - float(shown.mean())) < slack


def ask_on_and_on(address: str, clients: Sequence[int], requests: int, size: int) -> dict[str, Any]:
    """Some clients, a thread each, ask ``requests`` times: latencies in ms and how many answers were not theirs."""

    def one(client: int) -> tuple[list[float], int, int]:
        latencies, wrong, shown = [], 0, pictures(size)
        jpeg = client % 2 == 1
        with PolicyClient(address, timeout_s=120, jpeg_quality=90 if jpeg else None) as policy:
            for count in range(requests):
                picture = shown[(client + count) % len(shown)]
                began = time.perf_counter()
                actions = policy.act(observation(picture, client, count))
                latencies.append(1e3 * (time.perf_counter() - began))
                wrong += not is_answer(actions, client, count, picture, 3.0 if jpeg else 1e-2)
            return latencies, wrong, policy.connections

    with ThreadPoolExecutor(len(clients)) as threads:
        results = list(threads.map(one, clients))
    return {
        "latencies": [latency for latencies, _, _ in results for latency in latencies],
        "wrong": sum(wrong for _, wrong, _ in results),
        "connections": sum(count for _, _, count in results),
    }


def ask_until_closed(address: str, clients: Sequence[int], size: int) -> dict[str, Any]:
    """The same, several requests under way at a time, until the server closes: what was sent, received and said."""

    def one(client: int) -> tuple[int, int, int, int]:
        sent = received = wrong = 0
        shown = pictures(size)
        with connect(address, compression=None, max_size=None, proxy=None) as connection:
            connection.recv()
            try:
                while True:
                    while sent - received < OUTSTANDING:
                        connection.send(pack(observation(shown[sent % len(shown)], client, sent)))
                        sent += 1
                    actions = unpack(connection.recv(timeout=60))["actions"]
                    wrong += not is_answer(actions, client, received, shown[received % len(shown)], 1e-2)
                    received += 1
            except ConnectionClosed:
                try:  # a reply may have come before the close that ended a send
                    while True:
                        unpack(connection.recv(timeout=0))
                        received += 1
                except (ConnectionClosed, TimeoutError):
                    pass
            return sent, received, wrong, connection.close_code or 0

    with ThreadPoolExecutor(len(clients)) as threads:
        results = list(threads.map(one, clients))
    return {
        "sent": sum(result[0] for result in results),
        "received": sum(result[1] for result in results),
        "wrong": sum(result[2] for result in results),
        "codes": [result[3] for result in results],
    }


def shares(clients: int, parts: int) -> list[list[int]]:
    return [list(range(part, clients, parts)) for part in range(parts)]


def load(pool: Executor, parts: int, options: argparse.Namespace) -> dict[str, Any]:
    """Many requests; none may be lost, mixed up, or cost memory."""
    server = ServerProcess(options.size, options.infer_ms)
    each = options.requests // options.clients
    began = time.perf_counter()
    groups = shares(options.clients, parts)
    jobs = [pool.submit(ask_on_and_on, server.address, group, each, options.size) for group in groups]
    readings = []
    while not all(job.done() for job in jobs):
        readings.append((round(time.perf_counter() - began, 2), round(server.memory_mib(), 2)))
        time.sleep(options.reading_s)
    done = [job.result() for job in jobs]
    seconds = time.perf_counter() - began
    latencies = np.concatenate([part["latencies"] for part in done])
    batches = server.metric("wamkit_batch_size_sum") / server.metric("wamkit_batch_size_count")
    stopped, _, status = server.terminate()
    sizes = np.array([size for _, size in readings])
    quarter = max(1, len(sizes) // 4)
    return {
        "requests": each * options.clients,
        "answered": len(latencies),
        "lost": each * options.clients - len(latencies),
        "mixed_up": sum(part["wrong"] for part in done),
        "reconnections": sum(part["connections"] for part in done) - options.clients,
        "server_said": {key: stopped[key] for key in ("accepted", "answered", "refused", "undelivered")},
        "exit_status": status,
        "requests_per_s": round(len(latencies) / seconds, 1),
        "latency_ms": {f"p{level}": round(float(np.percentile(latencies, level)), 2) for level in (50, 95, 99)},
        "mean_batch": round(batches, 2),
        "memory": {
            "readings_s_mib": readings,
            "second_quarter_mib": round(float(np.median(sizes[quarter : 2 * quarter + 1])), 2),
            "last_quarter_mib": round(float(np.median(sizes[-quarter:])), 2),
        },
    }


def stop_in_mid_load(pool: Executor, parts: int, options: argparse.Namespace) -> dict[str, Any]:
    """SIGTERM while every client has requests under way."""
    server = ServerProcess(options.size, options.infer_ms)
    groups = shares(options.clients, parts)
    jobs = [pool.submit(ask_until_closed, server.address, group, options.size) for group in groups]
    while server.metric("wamkit_requests_answered_total") < 10 * options.clients:
        time.sleep(0.05)
    time.sleep(options.before_stop_s)
    stopped, seconds, status = server.terminate()
    done = [job.result() for job in jobs]
    received = sum(part["received"] for part in done)
    return {
        "accepted": stopped["accepted"],
        "answered": stopped["answered"],
        "received": received,
        "accepted_and_not_received": stopped["accepted"] - received,
        "mixed_up": sum(part["wrong"] for part in done),
        "sent_and_not_accepted": sum(part["sent"] for part in done) - stopped["accepted"],
        "close_codes": sorted({code for part in done for code in part["codes"]}),
        "shutdown_s": round(seconds, 2),
        "exit_status": status,
    }


def serve(options: argparse.Namespace) -> None:
    import asyncio

    from wamkit.serving.config import ServerConfig
    from wamkit.serving.logs import log_to
    from wamkit.serving.server import PolicyServer, serve_until_signal

    log_to()
    policy = EchoPolicy(options.size, options.infer_ms / 1e3)

    async def run() -> None:
        await serve_until_signal(PolicyServer(policy, ServerConfig(port=0)))

    asyncio.run(run())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=20_000, help="of all clients together")
    parser.add_argument("--processes", type=int, default=2, help="that the clients share; 0: threads of this one")
    parser.add_argument("--size", type=int, default=128, help="pixels of a picture's side")
    parser.add_argument("--infer_ms", type=float, default=2.0, help="what the policy takes for a batch")
    parser.add_argument("--reading_s", type=float, default=1.0, help="between two readings of the memory")
    parser.add_argument("--before_stop_s", type=float, default=3.0, help="of load before SIGTERM")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options)
        return
    parts = max(1, options.processes)
    pool: Executor = (
        ProcessPoolExecutor(parts, mp_context=multiprocessing.get_context("spawn"))
        if options.processes
        else ThreadPoolExecutor(1)
    )
    with pool:
        under_load = load(pool, parts, options)
        stopped = stop_in_mid_load(pool, parts, options)
    result = {
        "benchmark": "serving",
        "clients": options.clients,
        "picture": options.size,
        "infer_ms": options.infer_ms,
        "load": under_load,
        "sigterm": stopped,
        "load_average": round(os.getloadavg()[0], 2),
        "provenance": collect(arguments=None if arguments is None else ["serving.py", *arguments]),
    }
    memory, latency = under_load["memory"], under_load["latency_ms"]
    print(
        f"{under_load['answered']} of {under_load['requests']} requests answered, {under_load['mixed_up']} mixed up,"
        f" {under_load['requests_per_s']:.0f}/s, p50 {latency['p50']} ms, p99 {latency['p99']} ms,"
        f" {under_load['mean_batch']} requests a batch"
    )
    print(f"memory: {memory['second_quarter_mib']} MiB in the second quarter, {memory['last_quarter_mib']} in the last")
    print(
        f"SIGTERM: {stopped['accepted']} accepted, {stopped['received']} received, closed with {stopped['close_codes']}"
        f" within {stopped['shutdown_s']} s"
    )
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
