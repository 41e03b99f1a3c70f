"""What is foretold against what the scheduler lets go, until nothing is left."""

import statistics
from collections.abc import Mapping, Sequence
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchyard.forecast import LineLoad, front_jobs, jobs_before
from batchyard.scheduling import TURN_JOBS, choose
from batchyard.store.base import Candidate, Line
from tests.unit.lines import Backlog, line

MEAN_COST = 10


def exhausted(backlog: Backlog, *, jobs: int = 256) -> dict[int, int]:
    """Every job that waits → how many went before it."""
    order: list[int] = []
    while taken := backlog.take(jobs, limit=512):
        order += taken
    return {job_id: place for place, job_id in enumerate(order)}


def loads(backlog: Backlog) -> list[LineLoad]:
    """The lines by their sums, as far as they have not gone."""
    whole = backlog.head(1 << 40)
    return [
        LineLoad(one.tenant_id, one.priority, one.weight, len(one.candidates), sum(c.cost for c in one.candidates))
        for one in whole
    ]


def slack(backlog: Backlog, waiting: Sequence[LineLoad], *, priority: int) -> float:
    """The error that the module admits to: by the lines that wait and, for what a lower one was lent, all that did."""
    highest = max(one.priority for one in waiting)
    lower = {one.priority for one in waiting} - {highest}
    a_round = TURN_JOBS * sum(one.weight for one in waiting if one.priority == priority)
    a_turn = TURN_JOBS * max(one.weight for one in backlog.lines.values())
    return (1.5 * a_round + a_turn) * (1 if priority == highest else 1 + 9 * len(lower))


def errors(backlog: Backlog, *, random: Random) -> list[tuple[float, float]]:
    """For jobs all over the lines, by how much the estimate is off, and by how much it may be."""
    known, fronts = loads(backlog), backlog.head(1 << 40)
    allowed = {one.priority: slack(backlog, known, priority=one.priority) for one in known}
    places = exhausted(backlog)
    found = []
    for one in fronts:
        ids = [candidate.id for candidate in one.candidates]
        for own in {0, len(ids) - 1, *random.sample(range(len(ids)), min(3, len(ids)))}:
            about = jobs_before(known, tenant_id=one.tenant_id, priority=one.priority, own=own)
            assert about >= own
            found.append((abs(about - places[ids[own]]), allowed[one.priority]))
    return found


def crowd(sizes: Mapping[tuple[int, int], int], *, weights: Mapping[int, float], random: Random) -> Backlog:
    """`sizes` maps (tenant, priority) to jobs, of costs that differ."""
    lines = []
    for number, ((tenant, priority), jobs) in enumerate(sizes.items(), start=1):
        ids = range(number * 100_000, number * 100_000 + jobs)
        costs = [random.randint(MEAN_COST // 2, MEAN_COST * 3 // 2) for _ in ids]
        candidates = [Candidate(job_id, cost, None, None) for job_id, cost in zip(ids, costs, strict=True)]
        lines.append(Line(tenant_id=tenant, priority=priority, weight=weights[tenant], candidates=candidates))
    return Backlog(lines)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.dictionaries(
        st.tuples(st.integers(1, 6), st.integers(0, 9)), st.integers(1, 1200), min_size=1, max_size=12
    ),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=6, max_size=6),
    gone=st.integers(0, 2000),
    seed=st.integers(0, 1000),
)
def test_an_estimate_is_right_to_a_round_of_turns(
    sizes: dict[tuple[int, int], int], weights: list[float], gone: int, seed: int
) -> None:
    random = Random(seed)
    backlog = crowd(sizes, weights=dict(enumerate(weights, start=1)), random=random)
    while gone > 0 and (taken := backlog.take(min(gone, 200))):
        gone -= len(taken)
    # Costs are known as the mean of their line: a tenth more for that.
    assert all(error <= 1.1 * allowed + 1 for error, allowed in errors(backlog, random=random))


@pytest.mark.parametrize("gone", [0, 5000])
def test_ten_tenants_of_three_priorities(gone: int) -> None:
    random = Random(3)
    sizes = {(tenant, priority): 400 for tenant in range(1, 11) for priority in (2, 5, 8)}
    backlog = crowd(sizes, weights=dict.fromkeys(range(1, 11), 1.0), random=random)
    for _ in range(gone // 200):
        backlog.take(200)
    found = errors(backlog, random=random)
    assert statistics.median(error for error, _ in found) < 0.02 * (12_000 - gone)


def alone(tenant: int, priority: int, jobs: int, *, weight: float = 1.0, cost: int = 1) -> LineLoad:
    return LineLoad(tenant, priority, weight, jobs, jobs * cost)


def test_one_line_is_exact() -> None:
    assert [jobs_before([alone(1, 5, 9)], tenant_id=1, priority=5, own=own) for own in (0, 3, 8)] == [0, 3, 8]


def test_a_large_higher_priority_is_not_waited_for() -> None:
    lines = [alone(1, 9, 1_000_000), alone(1, 0, 1_000_000)]
    assert jobs_before(lines, tenant_id=1, priority=0, own=1000) == pytest.approx(10_000, rel=0.1)
    assert jobs_before(lines, tenant_id=1, priority=9, own=900) == pytest.approx(1000, rel=0.01)
    assert jobs_before(lines, tenant_id=1, priority=9, own=999_999) == pytest.approx(1e6 + 1e6 / 9, rel=0.01)
    assert jobs_before(lines, tenant_id=1, priority=0, own=999_999) == pytest.approx(2e6, rel=0.01)


def test_tenants_beside_go_by_weight_and_cost() -> None:
    heavy, dear = alone(2, 5, 100_000, weight=3.0), alone(3, 5, 100_000, cost=10)
    mine = alone(1, 5, 100_000)
    assert jobs_before([mine, heavy], tenant_id=1, priority=5, own=1000) == pytest.approx(4000, rel=0.03)
    assert jobs_before([mine, dear], tenant_id=1, priority=5, own=1000) == pytest.approx(1100, rel=0.03)
    few = alone(2, 5, 50, weight=3.0)
    assert jobs_before([mine, few], tenant_id=1, priority=5, own=1000) == pytest.approx(1050)


def test_tenants_of_unequal_cost_against_the_scheduler() -> None:
    backlog = Backlog([line(range(1, 4001), tenant=1), line(range(10_001, 12_001), tenant=2, cost=12)])
    known, places = loads(backlog), exhausted(backlog)
    for own in (100, 1000, 3999):
        about = jobs_before(known, tenant_id=1, priority=5, own=own)
        assert about == pytest.approx(places[own + 1], abs=2 * TURN_JOBS)
    for own in (10, 100, 300):
        about = jobs_before(known, tenant_id=2, priority=5, own=own)
        assert about == pytest.approx(places[10_001 + own], abs=2 * TURN_JOBS * 12)


def test_jobs_without_cost_count_as_scheduling_counts_them() -> None:
    free = [LineLoad(1, 5, 1.0, 100, 0), LineLoad(2, 5, 1.0, 100, 0)]
    assert jobs_before(free, tenant_id=1, priority=5, own=79) == pytest.approx(79 + 72)


# --- fronts ---


class SizedBacklog(Backlog):
    """Shows of each line what is foretold to be enough, and counts what that comes to."""

    def __init__(self, lines: Sequence[Line]) -> None:
        super().__init__(lines)
        self.shown = 0
        self.looks = 0

    def take_from_fronts(self, jobs: int) -> list[int]:
        sizes = front_jobs(loads(self), jobs=jobs)
        lines = []
        for one in self.head(1 << 40):
            size = sizes[one.tenant_id, one.priority]
            front = one.candidates[:size]
            lines.append(msgspec.structs.replace(one, candidates=front, has_more=len(front) >= size))
            self.shown += len(front)
        self.looks += 1
        choice = choose(lines, jobs=jobs, share=self.share)
        self.cursors.update(choice.cursors)
        return choice.ids


SHAPES = {
    "ten tenants of three priorities": {(t, p): 400 for t in range(1, 11) for p in (2, 5, 8)},
    "one crowd among small lines": {(t, p): 40 for t in range(1, 11) for p in (2, 5, 8)} | {(1, 5): 11_000},
    "a short priority above a long one": {(1, 9): 30, (1, 1): 5000, (2, 1): 5000},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", [[1.0], [0.25, 1.0, 3.0]])
def test_fronts_are_long_enough_and_not_much_longer(shape: str, weights: list[float]) -> None:
    given_weights = {tenant: weights[tenant % len(weights)] for tenant in range(1, 11)}
    backlog = SizedBacklog(list(crowd(SHAPES[shape], weights=given_weights, random=Random(5)).lines.values()))
    jobs = sum(SHAPES[shape].values())
    ids: list[int] = []
    while taken := backlog.take_from_fronts(1000):
        ids += taken
    assert len(ids) == len(set(ids)) == jobs
    assert backlog.looks <= 1.5 * jobs / 1000 + 2
    assert backlog.shown <= 1.8 * jobs


def test_one_line_is_shown_to_its_end_or_one_job_further_than_needed() -> None:
    assert front_jobs([alone(1, 5, 5000)], jobs=100) == {(1, 5): 101}
    assert front_jobs([alone(1, 5, 50)], jobs=100) == {(1, 5): 51}


def test_every_line_is_shown_a_turn() -> None:
    sizes = front_jobs([alone(1, 9, 1_000_000), alone(1, 0, 1_000_000), alone(2, 0, 9)], jobs=10)
    assert sizes == {(1, 9): 11, (1, 0): 11, (2, 0): 10}
    sizes = front_jobs([alone(1, 9, 1_000_000), alone(1, 0, 1_000_000)], jobs=1000)
    assert sizes[1, 0] == pytest.approx(1.25 * 100 + TURN_JOBS, abs=1)


@given(
    sizes=st.dictionaries(
        st.tuples(st.integers(1, 6), st.integers(0, 9)), st.integers(1, 10**9), min_size=1, max_size=20
    ),
    costs=st.lists(st.integers(0, 10**6), min_size=20, max_size=20),
    jobs=st.integers(1, 10_000),
)
def test_sizes_are_within_bounds_whatever_the_lines(
    sizes: dict[tuple[int, int], int], costs: list[int], jobs: int
) -> None:
    lines = [
        LineLoad(tenant, priority, [0.0, 0.5, 7.0][tenant % 3], number, number * cost)
        for ((tenant, priority), number), cost in zip(sizes.items(), costs, strict=False)
    ]
    found = front_jobs(lines, jobs=jobs)
    assert found.keys() == sizes.keys()
    assert all(1 <= found[key] <= min(jobs, sizes[key]) + 1 for key in sizes)
