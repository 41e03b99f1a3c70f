"""The fronts of the lines, stragglers, positions and the oldest job."""

from batchyard.jobs import State
from batchyard.scheduling import choose
from tests.services.store.yard import TENANT, Yard, eventually, failed, succeeded


def test_every_line_shows_its_front_by_arrival(yard: Yard) -> None:
    heavy = yard.tenant(weight=3.0)
    low, high = yard.submit(9, priority=1), yard.submit(2, priority=8)
    other = yard.submit(3, tenant_id=heavy, priority=1)
    yard.submit(1, queue_id=yard.tolerant)
    lines = yard.store.head(yard.queue, after={}, jobs=2, urgent_before_ms=0)
    found = {(line.tenant_id, line.priority): [one.id for one in line.candidates] for line in lines}
    assert found == {(TENANT, 1): low[:3], (TENANT, 8): high, (heavy, 1): other}
    assert {line.priority: line.has_more for line in lines if line.tenant_id == TENANT} == {1: True, 8: False}
    assert {line.tenant_id: line.weight for line in lines} == {TENANT: 1.0, heavy: 3.0}
    assert [one.cost for line in lines for one in line.candidates if line.priority == 8] == [10, 11]
    assert all(line.urgent == () or not line.urgent for line in lines)


def test_a_cursor_moves_a_line_on(yard: Yard) -> None:
    ids, other = yard.submit(5), yard.submit(2, priority=9)
    lines = yard.store.head(yard.queue, after={(TENANT, 5): ids[2]}, jobs=9, urgent_before_ms=0)
    found = {line.priority: [one.id for one in line.candidates] for line in lines}
    assert found == {5: ids[3:], 9: other}
    lines = yard.store.head(yard.queue, after={(TENANT, 5): ids[-1]}, jobs=9, urgent_before_ms=0)
    assert [line.priority for line in lines] == [9]


def test_a_line_that_ends_sooner_than_the_backlog_says_lets_others_be_read_further(yard: Yard) -> None:
    ticketed, low = yard.submit(300, priority=9), yard.submit(600, priority=1)
    after = {(TENANT, 9): ticketed[-2]}
    lines = yard.store.head(yard.queue, after=after, jobs=200, urgent_before_ms=0)
    found = {line.priority: [one.id for one in line.candidates] for line in lines}
    assert found[9] == ticketed[-1:]
    assert found[1] == low[: len(found[1])]
    assert 199 <= len(found[1]) <= 201
    assert {line.priority: line.has_more for line in lines} == {9: False, 1: True}


def test_the_fronts_are_as_long_as_what_is_likely_to_go(yard: Yard) -> None:
    tenants = [TENANT, *(yard.tenant() for _ in range(4))]
    for tenant in tenants:
        for priority in (2, 5, 8):
            yard.submit(300, tenant_id=tenant, priority=priority, costs=[10] * 300)
    lines = yard.store.head(yard.queue, after={}, jobs=1000, urgent_before_ms=0)
    assert 1000 <= sum(len(line.candidates) for line in lines) <= 1700
    assert len(choose(lines, jobs=1000).ids) == 1000


def test_only_queued_jobs_stand_in_the_head(yard: Yard) -> None:
    ids = yard.submit(4)
    yard.claim([ids[0]])
    yard.store.cancel(ids[1], tenant_id=TENANT)
    (line,) = yard.store.head(yard.queue, after={}, jobs=9, urgent_before_ms=0)
    assert [one.id for one in line.candidates] == ids[2:]


def test_a_paused_or_unknown_queue_has_no_lines(yard: Yard) -> None:
    yard.submit(1)
    yard.store.set_queue_paused(yard.queue, paused=True)
    assert yard.store.head(yard.queue, after={}, jobs=9, urgent_before_ms=0) == []
    assert yard.store.head(999, after={}, jobs=9, urgent_before_ms=0) == []


def test_urgent_jobs_are_named_soonest_first(yard: Yard) -> None:
    now = yard.store.now_ms()
    plain = yard.submit(2)
    far = yard.submit(1, deadline_ms=now + 900_000, start_by_ms=now + 800_000)
    near = yard.submit(1, deadline_ms=now + 300_000, start_by_ms=now + 200_000)
    nearer = yard.submit(1, deadline_ms=now + 200_000, start_by_ms=now + 100_000, priority=2)
    lines = yard.store.head(yard.queue, after={}, jobs=9, urgent_before_ms=now + 500_000)
    found = {line.priority: ([one.id for one in line.candidates], [one.id for one in line.urgent]) for line in lines}
    assert found == {5: ([*plain, *far, *near], near), 2: (nearer, nearer)}
    behind = {(TENANT, 5): near[0], (TENANT, 2): nearer[0]}
    lines = yard.store.head(yard.queue, after=behind, jobs=9, urgent_before_ms=now + 500_000)
    assert {line.priority: [one.id for one in line.urgent] for line in lines} == {5: near, 2: nearer}
    assert {one.start_by_ms for line in lines for one in line.urgent} == {now + 200_000, now + 100_000}


def test_stragglers_are_what_still_waits_below(yard: Yard) -> None:
    ids, other = yard.submit(5), yard.submit(3, priority=2)
    yard.claim(ids[:2])
    below = {(TENANT, 5): ids[4], (TENANT, 2): other[2], (99, 5): ids[4]}
    assert yard.store.stragglers(yard.queue, below=below, limit=9) == sorted([ids[2], ids[3], *other[:2]])
    assert yard.store.stragglers(yard.queue, below=below, limit=1) == sorted([ids[2], other[0]])
    assert yard.store.stragglers(yard.queue, below={}, limit=9) == []


def test_positions_count_what_goes_before(yard: Yard) -> None:
    low, high = yard.submit(3, priority=1), yard.submit(4, priority=8)
    assert [yard.store.position(job_id) for job_id in high] == [0, 1, 2, 3]
    assert [yard.store.position(job_id) for job_id in low] == [4, 5, 6]
    light = yard.tenant(weight=0.125)
    other = yard.submit(2, tenant_id=light, priority=1)
    assert yard.store.position(other[1]) == 4 + 1 + 3, "tenants beside go in turn"
    assert yard.store.position(low[0]) == 4 + 0 + 1
    for job_id in other:
        yard.store.cancel(job_id, tenant_id=light)
    yard.claim(high)
    assert yard.store.position(low[0]) == 0
    assert yard.store.position(high[0]) is None
    assert yard.store.position(42) is None


def test_a_large_higher_priority_is_not_waited_for(yard: Yard) -> None:
    low = yard.submit(40, priority=1, costs=[10] * 40)
    yard.submit(2000, priority=8, costs=[10] * 2000)
    position = yard.store.position(low[-1])
    assert position is not None
    assert 9 * 40 <= position <= 15 * 40


def test_a_held_job_has_no_position(yard: Yard) -> None:
    bulk = yard.bulk()
    (held,) = yard.submit(1, bulk_id=bulk.id)
    assert yard.store.position(held) == 0
    yard.store.pause_bulk(bulk.id, tenant_id=TENANT, paused=True)
    yard.sweep()
    assert yard.store.position(held) is None


def test_a_far_position_is_about_right(yard: Yard) -> None:
    ids = [job_id for _ in range(3) for job_id in yard.submit(200)]
    position = yard.store.position(ids[-1], limit=100)
    assert position is not None
    assert 100 <= position <= 620
    assert yard.store.position(ids[99], limit=100) == 99


def test_the_oldest_queued_job_dates_each_queue(yard: Yard) -> None:
    assert yard.store.oldest_queued_ms() == {}
    first = yard.submit(1)
    created = yard.view(first[0]).created_at_ms
    eventually(lambda: yard.store.now_ms() > created + 2)
    second, tolerant = yard.submit(1, priority=9), yard.submit(1, queue_id=yard.tolerant)
    assert yard.store.oldest_queued_ms() == {
        yard.queue: created,
        yard.tolerant: yard.view(tolerant[0]).created_at_ms,
    }
    yard.claim(first)
    assert yard.store.oldest_queued_ms()[yard.queue] == yard.view(second[0]).created_at_ms


def test_what_consumers_finished_is_counted_for_good(yard: Yard) -> None:
    first, second, cancelled = yard.submit(3)
    tolerant = yard.submit(2, queue_id=yard.tolerant)
    yard.run([first])
    yard.finish([failed(job) for job in yard.claim([second])])
    yard.store.cancel(cancelled, tenant_id=TENANT)
    yard.finish([succeeded(job) for job in yard.claim(tolerant, queue=yard.tolerant)])
    yard.store.forget(first, tenant_id=TENANT)
    yard.store.forget(second, tenant_id=TENANT)
    yard.store.forget(cancelled, tenant_id=TENANT)
    assert yard.store.finished_jobs() == {yard.queue: 2, yard.tolerant: 2}
    while yard.store.fold(limit=1000):
        pass
    assert yard.store.finished_jobs() == {yard.queue: 2, yard.tolerant: 2}


def test_the_backlog_moves_with_the_jobs(yard: Yard) -> None:
    now = yard.store.now_ms()
    ids = yard.submit(3)
    yard.submit(2, deadline_ms=now + 120_000)
    rows = {(row.state, row.bucket): (row.jobs, row.cost) for row in yard.store.backlog()}
    bucket = -(-(now + 120_000) // 60_000)
    assert rows == {(State.QUEUED, 0): (3, 33), (State.QUEUED, bucket): (2, 21)}
    yard.claim(ids[:1])
    rows = {(row.state, row.bucket): (row.jobs, row.cost) for row in yard.store.backlog(queue_ids=[yard.queue])}
    assert rows == {(State.QUEUED, 0): (2, 23), (State.RUNNING, 0): (1, 10), (State.QUEUED, bucket): (2, 21)}
    assert yard.store.backlog(queue_ids=[yard.tolerant]) == []
