"""The sentences of the report, built from the numbers and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wamkit.evaluation.results import MAIN_ARM
from wamkit.evaluation.statistics import episodes_needed

ARM_LABELS = {
    "policy": "Policy",
    "no_op": "Does nothing",
    "random": "Random actions",
    "expert": "Scripted expert",
    "blind": "Blind (images blanked)",
    "swapped_instruction": "Another task's instruction",
    "without_lawm": "Without LaWM",
    "no_world_model": "Without a world model",
}
"""What the usual arms are called for a reader; any other arm goes by its own name."""

BASELINE_WORDS = {
    "no_op": "doing nothing",
    "random": "random actions",
    "expert": "the scripted expert",
    "blind": "itself blind",
    "swapped_instruction": "itself under another task's instruction",
}
"""The same arms as the object of a comparison with the policy."""

SIGNIFICANT = 0.05
NBSP = "\u00a0"
"""Between a number and its sign: a line never ends on "23" to begin with "%"."""


def arm_label(name: str) -> str:
    """An arm's name for a reader."""
    return ARM_LABELS.get(name, name.replace("_", " ").capitalize())


def percent(share: float) -> str:
    """Such as ``93 %``, with a decimal only where rounding would claim 0 or 100."""
    value = 100 * share
    close = 0 < value < 0.5 or 99.5 <= value < 100
    return f"{value:.1f}{NBSP}%" if close else f"{value:.0f}{NBSP}%"


def interval(ci95: Sequence[float]) -> str:
    """Such as ``84–97 %``."""
    return f"{100 * ci95[0]:.0f}–{100 * ci95[1]:.0f}{NBSP}%"


def signed_interval(ci95: Sequence[float]) -> str:
    """Of a difference in points, such as ``+43 to +70``."""
    return f"{100 * ci95[0]:+.0f} to {100 * ci95[1]:+.0f}".replace("-", "−")


def rate_cell(rate: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A rate in words, and where its bar and its whisker stand in percent; None for what was not run."""
    if rate is None:
        return None
    return {
        "rate": percent(rate["rate"]),
        "interval": interval(rate["ci95"]),
        "successes": rate["successes"],
        "n": rate["n"],
        "counts": f"{rate['successes']}/{rate['n']}",
        "at": 100 * rate["rate"],
        "low": 100 * rate["ci95"][0],
        "high": 100 * rate["ci95"][1],
    }


def p_text(p: float) -> str:
    """Such as ``p = 0.012`` or ``p < 0.001``."""
    text = "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.0995 else f"p = {p:.2f}"
    return text.replace(" ", NBSP)


def ratio_text(ratio: float) -> str:
    """Such as ``1.35``, and ``0.002`` where two decimals would claim nothing at all."""
    return f"{ratio:.2f}" if ratio >= 0.095 or ratio == 0 else f"{ratio:.1g}"


def main_arm(evaluation: Mapping[str, Any]) -> str:
    """The arm that the report is about."""
    return MAIN_ARM if MAIN_ARM in evaluation["arms"] else next(iter(evaluation["arms"]))


def overall_comparison(evaluation: Mapping[str, Any], baseline: str) -> Mapping[str, Any] | None:
    """The comparison of the main arm with a baseline over all tasks, where there is one."""
    arm = main_arm(evaluation)
    for entry in evaluation["comparisons"]:
        if (entry["arm"], entry["baseline"], entry["task"]) == (arm, baseline, None):
            return entry
    return None


def verdict(evaluation: Mapping[str, Any] | None, imagine: Mapping[str, Any] | None) -> str:
    """The headline: one sentence on success beside the controls, or on imagination where nothing was evaluated."""
    if evaluation is None:
        return imagination_sentence(imagine) or "Nothing was measured in this run."
    name = main_arm(evaluation)
    arm = evaluation["arms"][name]
    tasks = len(arm["tasks"])
    where = f"over {tasks} tasks" if tasks > 1 else f"of {next(iter(arm['tasks']))}"
    subject = "The policy" if name == MAIN_ARM else f"Arm “{arm_label(name)}”"
    text = f"{subject} solves {percent(arm['overall']['rate'])} of {arm['overall']['n']} trials {where}"
    controls = {"blind": "with its images blanked it solves", "random": "random actions", "no_op": "doing nothing"}
    beside = [
        f"{words} {percent(evaluation['arms'][key]['overall']['rate'])}"
        for key, words in controls.items()
        if key in evaluation["arms"] and key != name
    ]
    if not beside:
        return f"{text}; no control arm was run."
    return f"{text}; {', '.join(beside)}."


def imagination_sentence(imagine: Mapping[str, Any] | None) -> str | None:
    """What the world model knows more than that nothing changes, at its own horizon."""
    error = (imagine or {}).get("feature_error")
    if not error:
        return _video_sentence(imagine or {})
    entry = error.get("policy")
    what = "Its own imagined subgoal" if entry else "Its world model, told the true latent action,"
    ratio, ci95 = (entry["ratio"], entry["ratio_ci95"]) if entry else (error["ratio"][0], error["ratio_ci95"][0])
    seconds = f"{error['horizon_s'][0]:.2g}\u00a0s ahead"
    numbers = f"{ratio:.2f} times the error of copying the present (95\u00a0% interval {ci95[0]:.2f}–{ci95[1]:.2f})"
    if ci95[1] < 1:
        return f"{what} beats copying the present {seconds}: {numbers}."
    if ci95[0] > 1:
        return f"{what} is worse than copying the present {seconds}: {numbers}."
    return f"{what} cannot be told from copying the present {seconds}: {numbers}."


def _video_sentence(imagine: Mapping[str, Any]) -> str | None:
    """The same of a model that imagines pictures: over whole episodes where it goes on so long, else a window ahead."""
    rolled, error = imagine.get("episode_rollouts"), imagine.get("pixel_error")
    if rolled and rolled.get("over_copy") is not None:
        told = "told the recorded actions" if rolled["main"] == "true" else "told no actions"
        what, where = f"Its imagined video, {told},", "the first picture over whole episodes"
        ratio, ci95 = rolled["over_copy"], rolled["over_copy_ci95"]
    elif error and "ratio" in error:
        what, where = "Its imagined video", f"the present {error['horizon_s'][-1]:.2g}\u00a0s ahead"
        ratio, ci95 = error["ratio"][-1], error["ratio_ci95"][-1]
    else:
        return None
    if ci95 is None:
        return f"{what} has {ratio:.2f} times the squared error of copying {where}; one episode gives no interval."
    verdict = "beats" if ci95[1] < 1 else "is worse than" if ci95[0] > 1 else "cannot be told from"
    numbers = f"{ratio:.2f} times its squared error (95\u00a0% interval {ci95[0]:.2f}–{ci95[1]:.2f})"
    return f"{what} {verdict} copying {where}: {numbers}."


def told_sentence(imagine: Mapping[str, Any] | None) -> str | None:
    """Whether imagined video depends on the actions that it is told: over whole episodes, else over windows."""
    for name in ("episode_rollouts", "forward_dynamics"):
        entry = (imagine or {}).get(name) or {}
        ratio, ci95 = entry.get("swapped_over_true"), entry.get("swapped_over_true_ci95")
        if ratio is None or not isinstance(ci95, (list, tuple)):
            continue
        # An effect that is surely there may be too small to matter.
        claim = "listens to" if ci95[0] > 1.1 else "hardly listens to" if ci95[0] > 1 else "is not shown to listen to"
        return (
            f"The imagined video {claim} the actions that it is told: told another episode's, its squared error is"
            f" {ratio:.2f} times that of told its own (95\u00a0% interval {ci95[0]:.2f}–{ci95[1]:.2f}; 1 = ignored)."
        )
    return None


def lead_sentences(evaluation: Mapping[str, Any] | None, imagine: Mapping[str, Any] | None) -> list[str]:
    """What stands under the headline: sight, language, imagination, belief; each only where it was measured."""
    sentences = []
    if evaluation is not None:
        rate = evaluation["arms"][main_arm(evaluation)]["overall"]
        sentences.append(
            f"The success rate's 95\u00a0% interval is {interval(rate['ci95'])} ({rate['successes']} of {rate['n']})."
        )
        blind = overall_comparison(evaluation, "blind")
        if blind:
            points = round(100 * blind["difference"])
            if blind["p_value"] < SIGNIFICANT and points > 0:
                sentences.append(
                    f"It uses its eyes: {points} points better than blind, trial by trial ({p_text(blind['p_value'])})."
                )
            else:
                sentences.append(
                    "These trials do not show that it uses its eyes: it is not reliably better than its blind self."
                )
        swap = evaluation.get("instruction_swap", {})
        sentences += [text for text in [instruction_sentence(evaluation), path_sentence(swap)] if text]
    # Without an evaluation the headline already says it.
    if evaluation is not None:
        sentences += [text for text in [imagination_sentence(imagine)] if text]
    sentences += [text for text in [told_sentence(imagine), belief_sentence(imagine)] if text]
    return sentences


def instruction_sentence(evaluation: Mapping[str, Any]) -> str | None:
    """Whether the policy depends on its instruction, from the arm that was given another task's."""
    swapped = overall_comparison(evaluation, "swapped_instruction")
    if swapped is None:
        return None
    own = evaluation["arms"][main_arm(evaluation)]["overall"]["rate"]
    other = evaluation["arms"]["swapped_instruction"]["overall"]["rate"]
    change = (
        f"given another task's instruction it solves the scene's own task in {percent(other)} instead of {percent(own)}"
    )
    if swapped["p_value"] < SIGNIFICANT and swapped["difference"] > 0:
        return f"It depends on its instruction: {change} ({p_text(swapped['p_value'])})."
    return f"These trials do not show that it depends on its instruction: {change}."


def path_sentence(swap: Mapping[str, Any]) -> str | None:
    """Where the arm goes under another task's instruction."""
    if "followed" not in swap:
        return None
    followed, control = swap["followed"], swap["control"]
    # Above the control's interval, or the paths of the two tasks are simply alike.
    known = followed["ci95"][0] > control["ci95"][1]
    claim = "It follows the other instruction" if known else "It is not shown to follow the other instruction"
    return (
        f"{claim}: in {percent(followed['rate'])} of {followed['n']} trials (95\u00a0% interval "
        f"{interval(followed['ci95'])}) its end effector moves nearer to the paths of the task it was told than to "
        f"those of the scene's own; under its own instruction that happens in {percent(control['rate'])}."
    )


def belief_sentence(imagine: Mapping[str, Any] | None) -> str | None:
    """Whether the action head believes the subgoal."""
    belief = (imagine or {}).get("subgoal_belief")
    if not belief:
        return None
    share, (low, high) = belief["change_over_spread"], belief["ci95"]
    numbers = (
        f"another episode's subgoal moves its actions by {share:.2f} of the distance between episodes "
        f"(95\u00a0% interval {low:.2f}–{high:.2f})"
    )
    strength = "strongly believes" if low > 0.5 else "listens to" if low > 0.1 else "hardly listens to"
    return f"The action head {strength} the subgoal: {numbers}."


def comparison_sentences(entry: Mapping[str, Any]) -> dict[str, str]:
    """A paired comparison in words: ``title``, ``finding``, ``detail`` and, where undecided, ``needed``."""
    arm, baseline = arm_label(entry["arm"]), arm_label(entry["baseline"])
    p = entry.get("p_holm", entry["p_value"])
    points = round(100 * entry["difference"])
    known = p < SIGNIFICANT
    finding = (
        f"{abs(points)} points {'better' if points > 0 else 'worse'}"
        if known
        else "not told apart"
        if entry["only_arm"] + entry["only_baseline"]
        else "the same on every trial"
    )
    corrected = f", {p_text(entry['p_holm'])} after Holm's correction" if "p_holm" in entry else ""
    detail = (
        f"On the same {entry['n']} trials both solved {entry['both']}, only “{arm}” {entry['only_arm']}, only "
        f"“{baseline}” {entry['only_baseline']}, neither {entry['neither']}. Difference {points:+d} points (95\u00a0% "
        f"interval {signed_interval(entry['ci95'])}); McNemar's exact test {p_text(entry['p_value'])}{corrected}."
    ).replace("-", "−")
    needed = ""
    if not known and entry["difference"] != 0:
        discordance = (entry["only_arm"] + entry["only_baseline"]) / entry["n"]
        base = (entry["both"] + entry["only_baseline"]) / entry["n"]
        count = episodes_needed(base + entry["difference"], base, discordance=discordance)
        needed = f"If the true rates were these, about {count:,} paired trials would tell them apart (80\u00a0% power)."
    if entry["unpaired"]:
        detail += f" {entry['unpaired']} episodes had no partner and were left out."
    words = BASELINE_WORDS.get(entry["baseline"], f"“{baseline}”") if entry["arm"] == MAIN_ARM else f"“{baseline}”"
    return {"title": f"{arm} against {words}", "finding": finding, "detail": detail, "needed": needed}


def resolution_sentence(evaluation: Mapping[str, Any]) -> str:
    """How fine a difference this many trials could show at all."""
    rate = evaluation["arms"][main_arm(evaluation)]["overall"]
    lower = max(0.0, min(rate["rate"], 0.95) - 0.1)
    count = episodes_needed(lower + 0.1, lower)
    return (
        f"To tell this rate from one 10 points away, two independent evaluations would need about {count} trials each "
        f"(80\u00a0% power); there were {rate['n']}."
    )
