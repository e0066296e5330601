"""How often a monitor that watched an evaluation raised an alarm, beside what its threshold promises."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from wamkit.evaluation.report_text import arm_label, interval, percent, rate_cell
from wamkit.evaluation.statistics import success_rate


def monitor_table(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """How often the monitor raised an alarm, for each arm that it watched; None where there was none."""
    monitor = evaluation.get("monitor")
    if monitor is None:
        return None
    rows = []
    for arm in evaluation["arms"]:
        watched = [episode for episode in evaluation["episodes"] if episode["arm"] == arm and "alarms_s" in episode]
        for words, success in (("that succeeded", True), ("that failed", False)):
            alarms = [episode["alarms_s"] for episode in watched if episode["success"] is success]
            if not alarms:
                continue
            first = [times[0] for times in alarms if times]
            rows.append(
                {
                    "label": arm_label(arm),
                    "episodes": words,
                    "cell": rate_cell(success_rate(bool(times) for times in alarms).to_json()),
                    "first": f"{median(first):.2g}\u00a0s" if first else "–",
                    "done": response_words(monitor.get("response", "none")),
                }
            )
    return {"rows": rows, "threshold": threshold_sentence(monitor), "promise": promise_sentence(monitor)}


def threshold_sentence(monitor: Mapping[str, Any]) -> str:
    """What an alarm of the monitor is, and what its threshold promises."""
    return (
        f"An alarm is a surprise above {monitor['threshold']:.3g}. That threshold was set on"
        f" {monitor['calibration_episodes']} successful episodes, so that of episodes like them at most"
        f" {percent(monitor['false_alarm_rate'])} raise one."
    )


def promise_sentence(monitor: Mapping[str, Any]) -> str:
    """Whether the episodes that succeeded raised more alarms than the threshold promises."""
    rate = monitor["successful"]
    if rate is None:
        return "No watched episode succeeded, so the promise was not tested here."
    seen = f"{percent(rate['rate'])} of the successful episodes did ({interval(rate['ci95'])})"
    if rate["ci95"][0] > monitor["false_alarm_rate"]:
        return f"Here {seen}: more than promised. Calibrate on episodes like these."
    return f"Here {seen}, which does not contradict it."


def response_words(response: str) -> str:
    """What an alarm did to the episode."""
    return "nothing: the policy went on" if response == "none" else response.replace("_", " ")
