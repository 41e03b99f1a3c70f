"""Lines of waiting jobs, and a queue that shows their fronts as a store does."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence

from batchyard.scheduling import FairShare, choose
from batchyard.store.base import Candidate, Line

LIMIT = 10_000


def line(
    ids: Sequence[int],
    *,
    tenant: int = 1,
    priority: int = 5,
    weight: float = 1.0,
    cost: int = 1,
    urgent: Mapping[int, int] | None = None,
    ticketed: Mapping[int, int] | None = None,
    has_more: bool = False,
) -> Line:
    """`urgent` and `ticketed` map ids to start_by and ticketed_at."""
    by_id = {
        i: Candidate(i, cost, (urgent or {}).get(i), (ticketed or {}).get(i)) for i in sorted({*ids, *(urgent or {})})
    }
    return Line(
        tenant_id=tenant,
        weight=weight,
        priority=priority,
        candidates=[by_id[i] for i in ids],
        urgent=[by_id[i] for i in sorted(urgent or {}, key=lambda i: (urgent or {})[i])],
        has_more=has_more,
    )


class Backlog:
    """A queue that shows its fronts, all equally far, and of which calls of `choose` take what they chose."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = {(line.tenant_id, line.priority): line for line in lines}
        self.cursors: dict[tuple[int, int], int] = {}
        self.share = FairShare()
        self.ids = {key: [c.id for c in whole.candidates] for key, whole in self.lines.items()}
        self.of = {c.id: (line, c.cost) for line in lines for c in line.candidates}

    def take(self, jobs: int, *, limit: int = LIMIT) -> list[int]:
        choice = choose(self.head(limit), jobs=jobs, share=self.share)
        self.cursors.update(choice.cursors)
        return choice.ids

    def head(self, limit: int) -> list[Line]:
        shown = []
        for key, whole in self.lines.items():
            start = bisect_right(self.ids[key], self.cursors.get(key, 0))
            front = whole.candidates[start : start + limit]
            if front:
                has_more = len(front) >= limit
                shown.append(
                    Line(tenant_id=key[0], priority=key[1], weight=whole.weight, candidates=front, has_more=has_more)
                )
        return shown

    def cost_by_tenant(self, ids: Sequence[int]) -> Counter[int]:
        spent: Counter[int] = Counter()
        for job_id in ids:
            whole, cost = self.of[job_id]
            spent[whole.tenant_id] += cost
        return spent

    def cost_by_priority(self, ids: Sequence[int]) -> Counter[int]:
        spent: Counter[int] = Counter()
        for job_id in ids:
            whole, cost = self.of[job_id]
            spent[whole.priority] += cost
        return spent
