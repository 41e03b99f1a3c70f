"""The fair order: priorities with a reserve, tenants by weight and cost, urgency within a share, arrival in a line."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchyard.scheduling import RESERVED, Choice, FairShare, choose
from batchyard.store.base import Candidate, Line
from tests.unit.lines import Backlog, line


def chosen(lines: Sequence[Line], *, jobs: int = 1000) -> Choice:
    return choose(lines, jobs=jobs)


def test_nothing_waits() -> None:
    choice = chosen([])
    assert (choice.ids, choice.cost, choice.cursors, choice.is_complete) == ([], 0, {}, True)


def test_one_line_goes_by_arrival() -> None:
    choice = chosen([line([3, 5, 9], cost=2)], jobs=2)
    assert choice.ids == [3, 5]
    assert choice.cost == 4
    assert choice.cursors == {(1, 5): 5}
    assert not choice.is_complete
    assert chosen([line([3, 5, 9])]).is_complete


def test_equal_tenants_alternate_in_turns() -> None:
    ids = chosen([line(range(1, 500), tenant=1), line(range(1001, 1500), tenant=2)], jobs=64).ids
    assert [job_id > 1000 for job_id in ids] == ([False] * 16 + [True] * 16) * 2


def test_a_million_jobs_of_one_tenant_do_not_delay_another() -> None:
    crowd = line(range(1, 9000), tenant=1)
    few = line([100_000, 100_001], tenant=2)
    assert {100_000, 100_001} <= set(chosen([crowd, few], jobs=40).ids)


@pytest.mark.parametrize("jobs", [1, 7, 16, 100, 1000])
def test_shares_follow_weights_in_cost(jobs: int) -> None:
    backlog = Backlog(
        [
            line(range(1, 9001), tenant=1, weight=1.0, cost=3),
            line(range(10_001, 19_001), tenant=2, weight=2.0, cost=1),
            line(range(20_001, 29_001), tenant=3, weight=0.5, cost=7),
        ]
    )
    ids: list[int] = []
    while len(ids) < 5000:
        ids += backlog.take(jobs, limit=max(jobs, 20))
    spent = backlog.cost_by_tenant(ids)
    assert spent[2] / spent[1] == pytest.approx(2, rel=0.05)
    assert spent[3] / spent[1] == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("jobs", [1, 10, 128, 2000])
def test_a_tenth_is_reserved_for_lower_priorities(jobs: int) -> None:
    backlog = Backlog(
        [
            line(range(1, 9001), priority=9, cost=2),
            line(range(10_001, 19_001), priority=5, cost=5),
            line(range(20_001, 29_001), priority=0, cost=1),
        ]
    )
    ids: list[int] = []
    while len(ids) < 6000:
        ids += backlog.take(jobs, limit=max(jobs, 20))
    spent = backlog.cost_by_priority(ids)
    assert spent[9] / spent.total() == pytest.approx(1 - RESERVED, abs=0.01)
    assert spent[5] == pytest.approx(spent[0], rel=0.15)


def test_without_lower_priorities_nothing_is_reserved() -> None:
    backlog = Backlog([line(range(1, 101), priority=9), line(range(201, 301), priority=1)])
    first = backlog.take(100)
    assert sum(job_id <= 100 for job_id in first) >= 80
    assert sorted(first + backlog.take(100)) == [*range(1, 101), *range(201, 301)]
    assert backlog.take(100) == []


def test_the_highest_priority_goes_first() -> None:
    assert chosen([line([1, 2], priority=0), line([3, 4], priority=9)]).ids[:2] == [3, 4]


def test_urgent_jobs_go_ahead_in_their_line_and_move_no_cursor() -> None:
    waiting = line([1, 2, 3, 4], urgent={9: 50, 3: 40})
    choice = chosen([waiting], jobs=2)
    assert choice.ids == [3, 9]
    assert choice.cursors == {}
    assert chosen([waiting], jobs=4).ids == [3, 9, 1, 2]
    assert chosen([waiting], jobs=4).cursors == {(1, 5): 2}
    assert chosen([waiting]).ids == [3, 9, 1, 2, 4]


def test_urgency_does_not_enlarge_a_share() -> None:
    urgent = line([], tenant=1, urgent=dict.fromkeys(range(1, 2000), 7))
    calm = line(range(5001, 7000), tenant=2)
    ids = chosen([urgent, calm], jobs=320).ids
    assert sum(job_id > 5000 for job_id in ids) == 160


def test_ticketed_jobs_are_passed_over_and_named() -> None:
    waiting = line([1, 2, 3, 4], ticketed={1: 10, 2: 100, 4: 101})
    choice = choose([waiting], jobs=9, ticketed_since_ms=50)
    assert choice.ids == [1, 3]
    assert choice.skipped == [2, 4]
    assert choice.cursors == {(1, 5): 4}
    assert choice.is_complete


def test_jobs_already_taken_are_passed_over() -> None:
    choice = choose([line([1, 2, 3], urgent={3: 1})], jobs=9, taken={1, 3})
    assert choice.ids == [2]
    assert choice.cursors == {(1, 5): 3}


def test_choosing_stops_where_a_line_goes_on_out_of_sight() -> None:
    lines = [line(range(1, 9), tenant=1, priority=9, has_more=True), line([101], tenant=1, priority=1)]
    choice = choose(lines, jobs=100)
    assert choice.ids == list(range(1, 9))
    assert choice.cursors == {(1, 9): 8}
    assert not choice.is_complete


def test_a_front_that_is_all_taken_still_moves_its_cursor() -> None:
    choice = choose([line([1, 2, 3], has_more=True)], jobs=9, taken={1, 2, 3})
    assert choice.ids == []
    assert choice.cursors == {(1, 5): 3}
    assert not choice.is_complete


def test_a_job_that_costs_more_than_many_turns_gets_its_turn() -> None:
    huge = line([1, 2], tenant=1, cost=10**9)
    small = line(range(101, 9000), tenant=2, cost=1)
    ids = chosen([huge, small], jobs=9000).ids
    assert {1, 2} <= set(ids)
    assert len(ids) == 8901


def test_a_tiny_weight_still_gets_something() -> None:
    backlog = Backlog([line(range(1, 5000), tenant=1), line(range(5001, 6000), tenant=2, weight=0.0)])
    ids = [job_id for _ in range(40) for job_id in backlog.take(100)]
    assert any(job_id > 5000 for job_id in ids)


def test_what_is_absent_saves_nothing_up() -> None:
    share = FairShare()
    both = [line(range(1, 100), tenant=1), line(range(201, 300), tenant=2)]
    choose(both, jobs=10, share=share)
    choose(both[:1], jobs=10, share=share)
    assert all(tenant == 1 for _, tenant in share.deficits)


# --- properties ---

JOBS = st.lists(
    st.tuples(st.integers(1, 1000), st.integers(0, 3)), min_size=1, max_size=60, unique_by=lambda job: job[0]
)


@st.composite
def backlogs(draw: st.DrawFn) -> list[Line]:
    lines = []
    base = 0
    for tenant in range(1, draw(st.integers(1, 4)) + 1):
        weight = draw(st.sampled_from([0.25, 1.0, 3.0]))
        for priority in draw(st.sets(st.integers(0, 9), min_size=1, max_size=3)):
            jobs = sorted(draw(JOBS))
            base += 10_000
            lines.append(
                Line(
                    tenant_id=tenant,
                    weight=weight,
                    priority=priority,
                    candidates=[Candidate(base + number, cost**5, None, None) for number, cost in jobs],
                )
            )
    return lines


@given(lines=backlogs(), jobs=st.integers(1, 50), limit=st.integers(1, 80))
def test_every_job_goes_once_and_each_line_by_arrival(lines: list[Line], jobs: int, limit: int) -> None:
    backlog = Backlog(lines)
    ids: list[int] = []
    calls = 0
    while backlog.head(1):
        got = backlog.take(jobs, limit=limit)
        assert len(got) <= jobs
        assert got, "a queue with waiting jobs always yields some"
        ids += got
        calls += 1
    assert len(ids) == len(set(ids)) == sum(len(line.candidates) for line in lines)
    for whole in lines:
        members = {c.id for c in whole.candidates}
        assert [i for i in ids if i in members] == sorted(members)


@given(lines=backlogs(), jobs=st.integers(1, 50))
def test_the_reserve_is_honoured_and_not_exceeded(lines: list[Line], jobs: int) -> None:
    backlog = Backlog(lines)
    highest = 0
    lower = 0
    dearest = max(c.cost for line in lines for c in line.candidates)
    most_in_a_turn = 16 * max(3.0, 1.0) * dearest + dearest
    while len({key[1] for key in ((line.tenant_id, line.priority) for line in backlog.head(1))}) > 1:
        top = max(line.priority for line in backlog.head(1))
        spent = backlog.cost_by_priority(backlog.take(jobs))
        still = max((line.priority for line in backlog.head(1)), default=-1)
        if still != top:
            highest = lower = 0
            continue
        highest += spent[top]
        lower += spent.total() - spent[top]
        assert lower * (1 - RESERVED) <= highest * RESERVED + 2 * most_in_a_turn


@settings(max_examples=25)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=2, max_size=4),
    costs=st.lists(st.integers(1, 50), min_size=4, max_size=4),
    jobs=st.integers(1, 200),
)
def test_persistent_tenants_get_cost_by_weight(weights: list[float], costs: list[int], jobs: int) -> None:
    lines = [
        line(range(base, base + 4000), tenant=tenant, weight=weight, cost=cost)
        for tenant, (weight, cost) in enumerate(zip(weights, costs, strict=False), start=1)
        if (base := tenant * 100_000)
    ]
    backlog = Backlog(lines)
    spent: Counter[int] = Counter()
    taken: Counter[int] = Counter()
    while max(taken.values(), default=0) < 1000:
        ids = backlog.take(jobs, limit=100)
        spent += backlog.cost_by_tenant(ids)
        taken.update(backlog.of[i][0].tenant_id for i in ids)
    shares = [spent[tenant] / weight for tenant, weight in enumerate(weights, start=1)]
    slack = 4 * 16 * max(costs) + 200  # a turn is by mean cost, and the weightiest gets four
    assert max(shares) - min(shares) <= slack + 0.05 * max(shares)
