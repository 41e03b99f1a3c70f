"""What a run found: kept as JSON, shown to people."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from batchyard.jobs import State, format_id
from tests.faults.checker import Anomaly, check
from tests.faults.history import History
from tests.faults.recovery import percentile, recoveries

LOST = frozenset({"accepted_jobs_end", "streams_are_whole", "sums_are_right"})
DUPLICATED = frozenset({"inputs_become_one_job", "states_follow", "winner_is_latest", "success_is_billed_once"})
SHOWN_ANOMALIES = 20
SHOWN_HISTORIES = 3
SHOWN_LINES = 60


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one run."""

    digest: str
    """SHA-256 of its history."""
    seconds: float
    jobs: int
    claims: int
    calls: int
    unanswered: int
    faults: int
    waits: list[tuple[str, int]]
    """Of each fault that work went on after, before another one struck: its name, and the milliseconds until then."""
    overtaken: int
    """Faults after which another one struck before that."""
    overtaken_waits: list[tuple[str, int]] = []
    """Of these, the milliseconds from their own end, whatever else struck meanwhile: a database that was away meanwhile
    starts the patience with silent consumers anew."""
    undisturbed_waits: list[tuple[str, int]] = []
    """Of these, the milliseconds from the end of the last one that struck meanwhile."""
    ticketed: int
    claimed: int
    """Both without faults."""
    rules: dict[str, int]
    """How many anomalies each rule found."""
    accusation: str
    """The anomalies, and the history of the first jobs that they name."""

    def count(self, rules: frozenset[str]) -> int:
        return sum(number for rule, number in self.rules.items() if rule in rules)

    @property
    def unexpected(self) -> int:
        """Anomalies that neither lost a job nor doubled one."""
        return sum(self.rules.values()) - self.count(LOST | DUPLICATED)


def findings(history: History, *, digest: str, seconds: float) -> Findings:
    anomalies = check(history)
    recovered = recoveries(history)
    return Findings(
        digest=digest,
        seconds=seconds,
        jobs=len(history.rows),
        claims=sum(change.went is State.RUNNING for change in history.transitions),
        calls=len(history.calls),
        unanswered=sum(call.outcome == "unknown" for call in history.calls),
        faults=len(history.faults),
        waits=[(each.name, each.ms) for each in recovered if each.ms is not None and not each.was_overtaken],
        overtaken=sum(each.was_overtaken for each in recovered),
        overtaken_waits=[(each.name, each.ms) for each in recovered if each.ms is not None and each.was_overtaken],
        undisturbed_waits=[
            (each.name, each.undisturbed_ms)
            for each in recovered
            if each.undisturbed_ms is not None and each.was_overtaken
        ],
        ticketed=sum(calm.ticketed for calm in history.calms),
        claimed=sum(calm.claimed for calm in history.calms),
        rules=Counter(anomaly.rule for anomaly in anomalies),
        accusation=_accusation(history, anomalies),
    )


def totals(every: Sequence[Findings]) -> str:
    """A line of figures."""
    waits = [ms for each in every for _, ms in each.waits]
    claimed = sum(each.claimed for each in every)
    faults = sum(each.faults for each in every)
    overtaken = sum(each.overtaken for each in every)
    return ", ".join(
        [
            f"{sum(each.jobs for each in every)} jobs",
            f"{sum(each.claims for each in every)} claims",
            f"{sum(each.calls for each in every)} calls ({sum(each.unanswered for each in every)} without an answer)",
            f"{faults} faults: lost {sum(each.count(LOST) for each in every)}",
            f"duplicated {sum(each.count(DUPLICATED) for each in every)}",
            f"unexpected {sum(each.unexpected for each in every)}",
            f"recovered from {len(waits) + overtaken} ({overtaken} overtaken by the next)",
            _spread(waits),
            f"those overtaken from the last {_spread([ms for each in every for _, ms in each.undisturbed_waits])}",
            f"from their own end {_spread([ms for each in every for _, ms in each.overtaken_waits])}",
            f"{sum(each.ticketed for each in every) / max(claimed, 1):.2f} ids ticketed per job claimed",
        ]
    )


def recovery_table(every: Iterable[Findings]) -> str:
    """Of each fault how often it was injected, and how long until work went on."""
    waits: dict[str, list[int]] = defaultdict(list)
    for each in every:
        for name, ms in each.waits:
            waits[name].append(ms)
    rows = [f"  {name.replace('_', ' '):34}{len(each):>5} ×   {_spread(each)}" for name, each in sorted(waits.items())]
    return "\n".join(["recovery, by fault:", *rows])


def _spread(waits: Sequence[int]) -> str:
    p50, p99 = percentile(waits, 0.5), percentile(waits, 0.99)
    return f"p50 {p50 / 1000:.1f} p99 {p99 / 1000:.1f} max {max(waits, default=0) / 1000:.1f} s"


def _accusation(history: History, anomalies: Sequence[Anomaly]) -> str:
    lines = [f"{a.rule}: {f'job {format_id(a.job)} ' if a.job else ''}{a.what}" for a in anomalies[:SHOWN_ANOMALIES]]
    if len(anomalies) > SHOWN_ANOMALIES:
        lines.append(f"and {len(anomalies) - SHOWN_ANOMALIES} more")
    for job in list(dict.fromkeys(anomaly.job for anomaly in anomalies if anomaly.job))[:SHOWN_HISTORIES]:
        lines.append(f"the history of job {format_id(job)}:")
        lines += [f"  {msgspec.json.encode(line).decode()}" for line in history.about(job)[:SHOWN_LINES]]
    return "\n".join(lines)
