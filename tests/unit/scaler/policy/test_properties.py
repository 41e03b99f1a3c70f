"""What holds of every decision, whatever the fleet."""

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from batchyard_scaler.policy.records import Demand, Pool, Replica
from tests.unit.scaler.policy.fleets import COLD, NO_DEADLINE, decided, decisions, demand, due, pool, spot

SECONDS = st.one_of(st.floats(-600, 20_000), st.just(NO_DEADLINE))
DUES = st.lists(st.tuples(SECONDS, st.floats(0.01, 50_000), st.integers(1, 10_000)), max_size=8)
REPLICAS = st.lists(
    st.one_of(
        st.builds(Replica, state=st.just("ready"), is_busy=st.booleans()),
        st.builds(Replica, state=st.just("starting"), ready_in_seconds=st.floats(0, COLD)),
        st.builds(Replica, state=st.just("draining"), is_busy=st.just(True)),
    ),
    max_size=12,
)


@st.composite
def pools(draw: st.DrawFn, *, name: str = "p", capacity: str = "on_demand") -> Pool:
    minimum = draw(st.integers(0, 5))
    return pool(
        name,
        capacity=capacity,
        minimum=minimum,
        maximum=minimum + draw(st.integers(0, 60)),
        pinned=draw(st.one_of(st.none(), st.integers(0, 80))),
        is_paused=draw(st.booleans()),
        speed=draw(st.sampled_from([0.5, 1.0, 4.0])),
        price_per_hour=draw(st.sampled_from([None, 0.35, 1.0])),
        replicas=draw(REPLICAS),
        idle_for_seconds=draw(st.sampled_from([0.0, 30.0, 600.0])),
        usual_slack_seconds=draw(st.sampled_from([None, 60.0, 3_600.0])),
    )


@st.composite
def demands(draw: st.DrawFn, *, is_tolerant: bool | None = None) -> Demand:
    tolerant = draw(st.booleans()) if is_tolerant is None else is_tolerant
    dues = [due(seconds, work, jobs=jobs) for seconds, work, jobs in draw(DUES)]
    return demand(
        *dues,
        is_tolerant=tolerant,
        running_jobs=draw(st.integers(0, sum(one.jobs for one in dues))),
        is_interactive=draw(st.booleans()),
        is_prior=draw(st.booleans()),
    )


@given(
    pools(), pools(name="q"), pools(name="s", capacity="spot"), demands(is_tolerant=False), demands(is_tolerant=True)
)
def test_limits_are_obeyed(one: Pool, two: Pool, on_spot: Pool, firm: Demand, tolerant: Demand) -> None:
    made = decisions([one, two, on_spot], firm, tolerant)
    for each in (one, two, on_spot):
        replicas = made[each.name].replicas
        assert made[each.name].reason
        if each.is_paused:
            assert replicas == 0
        elif each.pinned is not None:
            assert replicas == min(each.pinned, each.maximum)
        else:
            assert each.minimum <= replicas <= each.maximum


@given(pools(), demands())
def test_never_below_what_runs(one: Pool, work: Demand) -> None:
    busy = sum(replica.is_busy and replica.state == "ready" for replica in one.replicas)
    made = decided(one, work)
    if not one.is_paused and one.pinned is None:
        assert made.replicas >= min(busy, one.maximum)
        if work.running_jobs and one.maximum:
            assert made.replicas >= 1


@given(pools(), DUES, st.floats(1.0, 20.0))
def test_more_work_never_asks_for_fewer(one: Pool, dues: list[tuple[float, float, int]], times: float) -> None:
    """More jobs of the same size, each due when they were."""
    some = demand(*(due(seconds, 0.5 * jobs, jobs=jobs) for seconds, _, jobs in dues))
    more = demand(*(due(seconds, 0.5 * round(jobs * times), jobs=round(jobs * times)) for seconds, _, jobs in dues))
    assert decided(one, more).replicas >= decided(one, some).replicas


@given(st.integers(0, 30), st.floats(COLD + 20, 10_000), st.floats(1, 200_000))
def test_what_was_asked_for_is_enough_at_every_moment_of_the_start(ready: int, until: float, work: float) -> None:
    """While those asked for start and the others work, no more are wanted and none is let go."""
    one = pool(ready=ready, busy=ready, maximum=10**6)
    asked = decided(one, demand(due(until, work), is_interactive=True)).replicas
    for passed in (1.0, COLD / 2, COLD - 1):
        left = work - ready * passed
        if left <= 0:
            return
        during = pool(ready=ready, busy=ready, starting=[COLD - passed] * (asked - ready), maximum=10**6)
        jobs = max(1, round(work * 100 * left / work))
        assert decided(during, demand(due(until - passed, left, jobs=jobs))).replicas == asked


@given(st.floats(COLD + 20, 10_000), st.floats(1, 100_000))
def test_with_one_deadline_it_is_the_backlog_for_each_instance(until: float, work: float) -> None:
    jobs = math.ceil(work * 1e4)
    made = decided(pool(maximum=10**6), demand(due(until, work, jobs=jobs), is_interactive=True))
    each = work / jobs
    assert made.replicas in {
        max(1, math.ceil(work / (until - COLD) - 1e-6)),
        max(1, math.ceil(work / (math.floor((until - COLD) / each) * each) - 1e-6)),
    }


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(2, 12), st.integers(1, 6)), min_size=1, max_size=4),
    st.integers(0, 2),
)
def test_small_cases_are_as_cheap_as_any_plan_that_is_in_time(jobs: list[tuple[int, int]], ready: int) -> None:
    """Against every number of replicas, tried by giving each job to the replica that is free first, the earliest
    deadline first. Jobs of 10 s; deadlines and starts in tens of seconds."""
    start = 1
    dues = [due(10.0 * until, 10.0 * count, jobs=count) for until, count in jobs]
    one = pool(ready=ready, busy=ready, cold_start_seconds=10.0 * start)
    made = decided(one, demand(*dues, is_interactive=True))
    if made.unmeetable_jobs:
        assert not _is_in_time(jobs, ready=ready, new=10, start=start)
        return
    fewest = next(new for new in itertools.count() if _is_in_time(jobs, ready=ready, new=new, start=start))
    # The bound lets a job be worked on by two replicas one after the other, and counts a new one's whole rounds.
    assert 0 <= made.replicas - (ready + fewest) <= 1 or made.replicas - ready <= fewest <= made.replicas - ready + 1


def _is_in_time(jobs: list[tuple[int, int]], *, ready: int, new: int, start: int) -> bool:
    free = [0] * ready + [start] * new
    if not free:
        return False
    for until, count in sorted(jobs):
        for _ in range(count):
            first = min(range(len(free)), key=free.__getitem__)
            free[first] += 1
            if free[first] > until:
                return False
    return True


@given(demands(is_tolerant=True), st.integers(0, 10))
def test_spot_never_takes_firm_work(work: Demand, ready: int) -> None:
    firm = demand(*work.due)
    made = decisions([pool("od", price_per_hour=1.0), spot(ready=ready)], firm)
    assert made["spot"].work_seconds == 0
    assert made["spot"].replicas <= ready
