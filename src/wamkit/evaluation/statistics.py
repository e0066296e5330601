"""How success is counted: Wilson intervals, paired tests between arms, and how many episodes a claim needs.

An episode is a mapping with at least ``arm``, ``task``, ``trial``, ``seed`` and ``success``. A trial fixes the
initial state, so that two arms are compared on the same (task, trial): far fewer episodes tell them apart than
two independent samples would need.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from wamkit.errors import WamkitError

Episode = Mapping[str, Any]


class StatisticsError(WamkitError):
    """A question that the episodes at hand cannot answer."""


@dataclass(frozen=True)
class Rate:
    """A success rate with its 95 % Wilson interval."""

    successes: int
    n: int
    rate: float
    ci95: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """The object as it stands in ``eval.json``."""
        return {"successes": self.successes, "n": self.n, "rate": self.rate, "ci95": list(self.ci95)}


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a rate: honest at 0 %, at 100 % and at small n, where the normal one is not.

    Args:
        successes: How many of the trials succeeded.
        n: How many trials there were.
        confidence: Two-sided coverage.

    Returns:
        Lower and upper end, both in [0, 1].

    Raises:
        StatisticsError: For no trials, or counts that do not fit.
    """
    from statsmodels.stats.proportion import proportion_confint

    if n <= 0:
        raise StatisticsError(
            "A rate over no episodes is not a number: run at least one episode for each arm and task."
        )
    if not 0 <= successes <= n:
        raise StatisticsError(f"{successes} successes out of {n} episodes cannot be: count the episodes again.")
    ends = proportion_confint(successes, n, alpha=1.0 - confidence, method="wilson")
    low, high = cast("tuple[float, float]", ends)
    # The closed form leaves rounding dust of 1e-17 at the ends, where the interval is exactly 0 or 1.
    return (0.0 if successes == 0 else max(0.0, float(low)), 1.0 if successes == n else min(1.0, float(high)))


def success_rate(outcomes: Iterable[bool]) -> Rate:
    """The rate of some outcomes with its interval; refused for none at all."""
    values = [bool(outcome) for outcome in outcomes]
    interval = wilson_interval(sum(values), len(values))
    return Rate(sum(values), len(values), sum(values) / len(values), interval)


def rates_by(episodes: Iterable[Episode], key: str) -> dict[Any, Rate]:
    """Rates of the episodes grouped by one of their fields, such as ``task`` or ``seed``, in sorted order."""
    groups: dict[Any, list[bool]] = defaultdict(list)
    for episode in episodes:
        groups[episode[key]].append(bool(episode["success"]))
    return {name: success_rate(groups[name]) for name in sorted(groups)}


@dataclass(frozen=True)
class PairedComparison:
    """Two arms on the same trials: what both, one or none of them solved, and what that says.

    ``difference`` is the rate of ``arm`` minus the rate of ``baseline``; ``ci95`` is Tango's score interval for
    paired rates; ``p_value`` is McNemar's exact test; ``only_arm`` and ``only_baseline`` are the discordant
    counts that it rests on.
    """

    arm: str
    baseline: str
    task: str | None
    """The task compared, None over all of them."""
    n: int
    both: int
    only_arm: int
    only_baseline: int
    neither: int
    difference: float
    ci95: tuple[float, float]
    p_value: float
    paired_on: tuple[str, ...]
    unpaired: int
    """Episodes of either arm that had no partner and were left out."""

    def to_json(self) -> dict[str, Any]:
        """The object as it stands in ``eval.json``."""
        return asdict(self) | {"ci95": list(self.ci95), "paired_on": list(self.paired_on)}


def paired_difference_interval(only_a: int, only_b: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Tango's score interval for the difference of two paired rates.

    The ends are the differences d at which the score test of H0: p_a - p_b = d just rejects (Tango, Statistics
    in Medicine 17, 1998); at d = 0 its statistic is McNemar's. Neither scipy nor statsmodels has it.

    Args:
        only_a: Trials that a alone solved.
        only_b: Trials that b alone solved.
        n: All pairs, concordant ones included.
        confidence: Two-sided coverage.

    Returns:
        Lower and upper end of rate_a - rate_b, in [-1, 1].
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    if n <= 0 or only_a < 0 or only_b < 0 or only_a + only_b > n:
        raise StatisticsError(f"{only_a} and {only_b} discordant pairs out of {n} cannot be: count the pairs again.")
    z = float(norm.ppf(0.5 + confidence / 2))
    estimate = (only_a - only_b) / n

    def score(delta: float) -> float:
        """The score statistic at H0: difference = delta, with p_b-only at its constrained maximum likelihood."""
        a = 2 * n
        b = -only_a - only_b + (2 * n - only_a + only_b) * delta
        c = -only_b * delta * (1 - delta)
        p_b = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = n * (2 * p_b + delta * (1 - delta))
        gap = only_a - only_b - n * delta
        return gap / math.sqrt(variance) if variance > 1e-12 else math.copysign(math.inf, gap) if gap else 0.0

    def end(bound: float, sign: float) -> float:
        if abs(estimate - bound) < 1e-12:
            return bound
        inner = estimate
        outer = bound * (1 - 1e-9)
        if abs(score(outer)) < z:  # not even the most extreme difference is rejected
            return bound
        clipped = lambda delta: max(min(score(delta), 1e6), -1e6) - sign * z  # noqa: E731
        return float(cast("float", brentq(clipped, min(inner, outer), max(inner, outer), xtol=1e-10)))

    return end(-1.0, 1.0), end(1.0, -1.0)


def _pairing(arm: Sequence[Episode], baseline: Sequence[Episode]) -> tuple[str, ...]:
    """(task, trial) identifies an initial state; the seed joins where an arm ran the same one several times."""
    for keys in (("task", "trial"), ("task", "trial", "seed")):
        if all(len({tuple(e[k] for k in keys) for e in side}) == len(side) for side in (arm, baseline)):
            return keys
    raise StatisticsError(
        "An arm has the same (task, trial, seed) twice, so its episodes cannot be paired: drop the repeated ones."
    )


def compare(episodes: Iterable[Episode], arm: str, baseline: str, task: str | None = None) -> PairedComparison:
    """McNemar's exact paired test of two arms on the trials that both ran.

    Args:
        episodes: Episodes of both arms; others are ignored.
        arm: The arm of interest.
        baseline: What it is measured against.
        task: Compare on this task alone; all tasks where None.

    Raises:
        StatisticsError: If the two arms share no trial.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    sides: dict[str, list[Episode]] = {arm: [], baseline: []}
    for episode in episodes:
        if episode["arm"] in sides and (task is None or episode["task"] == task):
            sides[episode["arm"]].append(episode)
    keys = _pairing(sides[arm], sides[baseline])
    ours, theirs = ({tuple(e[k] for k in keys): bool(e["success"]) for e in sides[name]} for name in (arm, baseline))
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        raise StatisticsError(
            f"Arms {arm!r} and {baseline!r} share no {' and '.join(keys)}: evaluate both on the same trials."
        )
    table = [[0, 0], [0, 0]]
    for key in shared:
        table[0 if ours[key] else 1][0 if theirs[key] else 1] += 1
    only_arm, only_baseline, n = table[0][1], table[1][0], len(shared)
    return PairedComparison(
        arm=arm,
        baseline=baseline,
        task=task,
        n=n,
        both=table[0][0],
        only_arm=only_arm,
        only_baseline=only_baseline,
        neither=table[1][1],
        difference=(only_arm - only_baseline) / n,
        ci95=paired_difference_interval(only_arm, only_baseline, n),
        # No discordant pair is no evidence: the test's p-value is 1 by definition (and 0/0 in the closed form).
        p_value=float(cast("Any", mcnemar(table, exact=True)).pvalue) if only_arm + only_baseline else 1.0,
        paired_on=keys,
        unpaired=len(ours) + len(theirs) - 2 * n,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: what each p-value is worth when all of them were looked at."""
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return []
    corrected = cast("Sequence[float]", multipletests(p_values, method="holm")[1])
    return [float(p) for p in corrected]


def episodes_needed(
    rate_a: float, rate_b: float, *, discordance: float | None = None, power: float = 0.8, alpha: float = 0.05
) -> int:
    """How many episodes per arm would tell two true rates apart, two-sided.

    Args:
        rate_a: One true rate.
        rate_b: The other; refused if equal, since nothing can tell equals apart.
        discordance: The share of trials on which exactly one arm succeeds, where known (at least
            ``|rate_a - rate_b|``); the arms then run the same trials and McNemar's test decides (Connor,
            Biometrics 43, 1987). None: independent samples (normal approximation on the arcsine scale).
        power: The chance to see the difference.
        alpha: The chance to see one where there is none.

    Returns:
        Episodes for each arm, rounded up.
    """
    from scipy.stats import norm
    from statsmodels.stats.power import NormalIndPower
    from statsmodels.stats.proportion import proportion_effectsize

    gap = abs(rate_a - rate_b)
    if gap == 0.0 or not (0 <= rate_a <= 1 and 0 <= rate_b <= 1):
        raise StatisticsError(f"Rates {rate_a} and {rate_b} must differ and lie in [0, 1] for a count of episodes.")
    if discordance is None:
        effect = abs(proportion_effectsize(rate_a, rate_b))
        # Above an effect of about 3 the solver has nothing to bracket: two episodes already suffice.
        if float(NormalIndPower().power(effect, nobs1=2, alpha=alpha)) >= power:
            return 2
        return math.ceil(float(NormalIndPower().solve_power(effect_size=effect, alpha=alpha, power=power)))
    if not gap - 1e-12 <= discordance <= 1:
        raise StatisticsError(
            f"Discordance {discordance} is below the difference of the rates, {gap:.3g}, or above 1: count again."
        )
    z_alpha, z_power = float(norm.isf(alpha / 2)), float(norm.ppf(power))
    spread = math.sqrt(max(discordance - gap * gap, 0.0))
    return math.ceil(((z_alpha * math.sqrt(discordance) + z_power * spread) / gap) ** 2)


@dataclass(frozen=True)
class SideBySide:
    """Rates of every arm on every task; the last row, ``overall``, pools the tasks."""

    arms: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Rate | None, ...]], ...]
    """Task name and one rate for each arm, None where that arm did not run the task."""

    def lines(self) -> list[str]:
        """The table as text for a terminal: rate, interval and counts in each cell."""
        cells = [["", *self.arms]]
        for name, rates in self.rows:
            cells.append([name, *("not run" if rate is None else format_rate(rate) for rate in rates)])
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        ]
        return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def format_rate(rate: Rate) -> str:
    """Such as ``93 % [84, 97] 56/60``."""
    low, high = rate.ci95
    return f"{100 * rate.rate:.0f} % [{100 * low:.0f}, {100 * high:.0f}] {rate.successes}/{rate.n}"


def side_by_side(arms: Mapping[str, Mapping[str, Any]]) -> SideBySide:
    """The arms of an ``eval.json`` as one table.

    Args:
        arms: ``{"<arm>": {"overall": {...}, "tasks": {"<task>": {...}}}}``.
    """

    def rate(entry: Mapping[str, Any] | None) -> Rate | None:
        if entry is None:
            return None
        low, high = entry["ci95"]
        return Rate(entry["successes"], entry["n"], entry["rate"], (low, high))

    tasks = sorted({task for arm in arms.values() for task in arm["tasks"]})
    rows = [(task, tuple(rate(arm["tasks"].get(task)) for arm in arms.values())) for task in tasks]
    rows.append(("overall", tuple(rate(arm["overall"]) for arm in arms.values())))
    return SideBySide(tuple(arms), tuple(rows))
