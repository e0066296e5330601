"""Drive an arm through a policy server in another process, in real time, as a robot's computer would.

The server owns the model; this process owns the arm and needs of wamkit only the client and the executors (no torch).
The arm is simulated, its clock is not: an action that comes too late is not executed. Run 04_train.py first.
While it moves, a page of the server shows what the policy imagined for now against what it sees; its address is
printed.

    python examples/09_serve.py [--toy]
"""

import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

from wamkit.client import PolicyClient
from wamkit.envs.registry import make_env
from wamkit.inference.execution import Asynchronous, Hold
from wamkit.inference.execution_loop import ControlLoop

TOY = "--toy" in sys.argv
LOG = "outputs/examples/serve.log"


@contextlib.contextmanager
def policy_server(path: str) -> Iterator[str]:
    """`wam serve` in a process of its own: its address, once it listens; SIGTERM at the end."""
    command = [sys.executable, "-m", "wamkit.cli", "serve", "--policy.path", path, "--port", "0", "--monitor"]
    with open(LOG, "w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            while True:
                with open(LOG) as lines:
                    events = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]
                if listening := [event for event in events if event["event"] == "listening"]:
                    break
                if process.poll() is not None:
                    raise SystemExit(f"the server did not start: see {LOG}")
                time.sleep(0.1)
            yield f"127.0.0.1:{listening[0]['port']}"
        finally:
            process.terminate()


if __name__ == "__main__":
    with policy_server("outputs/examples/run") as address:
        env = make_env("metaworld", "reach-v3", max_steps=24 if TOY else None)
        spec = env.description
        robot = {"rate_hz": spec.rate_hz, "state_names": spec.state_names, "action_names": spec.action_names}
        # The first request compares what is known of the robot, and the first picture, with the policy's contract.
        client = PolicyClient(address, robot=robot, timeout_s=30.0)
        told = client.metadata
        print(f"a {told['model']} on another process: {told['chunk']['length']} actions at {told['rate_hz']:g} Hz")
        print(f"watch it at http://{address}/monitor")

        hold = Hold((0.0, 0.0, 0.0, 0.0), keep=(3,))  # no displacement, and the gripper goes on as it did
        success = truncated = False
        with client, ControlLoop(client.chunk_source(), Asynchronous(hold, 8), rate_hz=spec.rate_hz) as loop:
            env.reset_trial(0, split="eval")
            client.reset()
            loop.reset()
            began, steps = time.monotonic(), 0
            while not (success or truncated):
                action = loop.act(env.observe, at=time.monotonic() - began)
                _, success, truncated = env.step_action(action, render=False)
                steps += 1
                # The loop counts periods, those that were missed too: wait for the next, catch up with none.
                time.sleep(max(0.0, began + loop.executor.tick / spec.rate_hz - time.monotonic()))
        counts = loop.executor.counts
        print(f"{steps} steps: {counts.requests} chunks asked for, {counts.held} held, {counts.stale} actions stale")
        print("success" if success else "no success within the time limit")
        here = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy knows this address
        with here.open(f"http://{address}/monitor/state") as page:  # what the page draws
            watched = json.load(page)
        looks, compared = watched["episodes"][-1]["looks"], watched["episode"]["points"]
        print(f"the page saw {looks} looks at the world, {len(compared)} of them foreseen one horizon before")
        env.close()
    with open(LOG) as lines:
        ended = json.loads(list(lines)[-1])
    print(f"the server {ended['event']}: {ended['accepted']} requests accepted, {ended['answered']} answered")
