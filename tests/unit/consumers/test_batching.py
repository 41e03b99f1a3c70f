import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from batchyard.jobs import ClaimedJob
from batchyard_consumers.batching import PETTY_WASTE, Formed, Limits, Pool
from tests.unit.consumers.jobs import TOLERANT, claimed

SECOND = 1_000_000_000


def rank(job: ClaimedJob) -> int:
    return job.priority + (0 if job.queue_id == TOLERANT else 1000)


def pool_of(costs: list[int], *, now_ns: int = 0, **fields: Any) -> Pool:
    pool = Pool(rank=rank)
    pool.add(
        [claimed(i, **fields) for i in range(len(costs))],
        [f"item {i}" for i in range(len(costs))],
        costs,
        now_ns=now_ns,
    )
    return pool


def form(
    pool: Pool, budget: int, *, now_ns: int = 0, now_ms: int = 0, max_jobs: int = 1000, **limits: Any
) -> Formed | None:
    return pool.form(Limits(budget=budget, max_jobs=max_jobs, **limits), now_ns=now_ns, now_ms=now_ms)


def costs_of(formed: Formed | None) -> list[int]:
    assert formed is not None
    return [entry[0] for entry in formed.entries]


def ids_of(formed: Formed | None) -> list[int]:
    assert formed is not None
    return [entry[2].id for entry in formed.entries]


def all_batches(pool: Pool, budget: int, **limits: Any) -> list[Formed]:
    batches = []
    while (formed := form(pool, budget, **limits)) is not None:
        batches.append(formed)
    return batches


def test_an_empty_pool_forms_nothing() -> None:
    assert form(Pool(rank=rank), 10) is None


def test_padding_counts_against_the_budget() -> None:
    formed = form(pool_of([10, 10, 9, 10]), 30, overhead_cost=5.0)
    assert formed is not None
    assert costs_of(formed) == [9, 10, 10]
    assert (formed.cost, formed.padded_cost, formed.reason) == (29, 30, "full")


def test_without_padding_the_sum_counts() -> None:
    formed = form(pool_of([10, 1, 1, 1]), 13, padded=False)
    assert formed is not None
    assert costs_of(formed) == [1, 1, 1, 10]
    assert formed.padded_cost == 13


def test_an_item_above_the_budget_runs_alone() -> None:
    pool = pool_of([500])
    formed = form(pool, 100)
    assert costs_of(formed) == [500]
    assert len(pool) == 0
    assert pool.cost == 0


def test_the_number_of_jobs_is_bounded_too() -> None:
    formed = form(pool_of([1] * 10), 1000, max_jobs=4)
    assert formed is not None
    assert (len(formed.entries), formed.reason) == (4, "items")
    varied = form(pool_of([9, 10, 9, 10, 9, 10]), 1000, max_jobs=4)
    assert varied is not None
    assert (len(varied.entries), varied.reason) == (4, "items")


def test_neighbours_in_length_go_together() -> None:
    batches = all_batches(pool_of([100, 5, 98, 6, 99, 4]), 300)
    assert [costs_of(batch) for batch in batches] == [[4, 5, 6], [98, 99, 100]]


def test_an_outlier_runs_alone_unless_a_batch_of_its_own_costs_more() -> None:
    costs = [10] * 20 + [100]
    alone = all_batches(pool_of(costs), 10_000)
    assert [costs_of(batch) for batch in alone] == [[10] * 20, [100]]
    assert alone[0].reason == "outlier"
    together = all_batches(pool_of(costs), 10_000, overhead_cost=2_000.0)
    assert [len(batch.entries) for batch in together] == [21]


def test_a_run_is_cut_where_it_spares_most_padding() -> None:
    # Two batches of [10] * 20 and [30, 31] spare 20 * 21; a cut anywhere else spares less.
    costs = [10] * 20 + [30, 31]
    assert [costs_of(batch) for batch in all_batches(pool_of(costs), 1000, overhead_cost=100.0)] == [
        [10] * 20,
        [30, 31],
    ]
    # What is left may be worth another cut.
    assert [len(batch.entries) for batch in all_batches(pool_of([5] * 50 + costs), 4000)] == [50, 20, 2]
    # Where items are not padded there is nothing to spare.
    assert [len(batch.entries) for batch in all_batches(pool_of(costs), 1000, padded=False)] == [22]


def test_an_urgent_job_is_in_the_part_that_goes_first() -> None:
    pool = pool_of([10] * 20)
    pool.add([claimed(50), claimed(51, priority=9)], [None] * 2, [100, 99], now_ns=1)
    first = form(pool, 10_000)
    assert first is not None
    assert (ids_of(first), first.reason) == ([51, 50], "outlier")


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=120),
    st.integers(1, 4000),
    st.floats(0.0, 200.0),
)
def test_no_batch_would_do_better_as_two(costs: list[int], budget: int, overhead_cost: float) -> None:
    for formed in all_batches(pool_of(costs), budget, overhead_cost=overhead_cost):
        taken = costs_of(formed)
        for k in range(1, len(taken)):
            spared = k * (taken[-1] - taken[k - 1])
            assert spared <= max(overhead_cost, PETTY_WASTE * budget)


def test_equal_items_go_in_the_order_of_arrival() -> None:
    pool = Pool(rank=rank)
    for first in (0, 4, 8):
        pool.add([claimed(i) for i in range(first, first + 4)], [None] * 4, [1] * 4, now_ns=first)
    assert [ids_of(batch) for batch in all_batches(pool, 5)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]


def test_the_sweep_goes_on_where_it_was_and_round_again() -> None:
    pool = pool_of([31, 32, 33, 40, 41, 42])
    assert costs_of(form(pool, 100)) == [31, 32, 33]
    pool.add([claimed(10), claimed(11)], [None, None], [31, 32], now_ns=1)
    assert costs_of(form(pool, 126)) == [40, 41, 42]
    assert costs_of(form(pool, 126)) == [31, 32]


def test_the_last_run_upwards_is_filled_from_below() -> None:
    pool = pool_of([8, 8, 8, 9, 9, 10])
    assert costs_of(form(pool, 16)) == [8, 8]
    assert costs_of(form(pool, 27, overhead_cost=5.0)) == [8, 9, 9]
    pool.add([claimed(20), claimed(21)], [None, None], [7, 9], now_ns=1)
    assert costs_of(form(pool, 30, overhead_cost=5.0)) == [7, 9, 10]
    pool = pool_of([20, 20, 20, 21])
    assert costs_of(form(pool, 40)) == [20, 20]
    pool.add([claimed(n) for n in range(20, 50)], [None] * 30, [10] * 30, now_ns=2)
    # Where that is not worth the padding, the longer ones go first.
    assert costs_of(form(pool, 1000)) == [20, 21]


def test_priority_chooses_the_anchor_and_length_the_company() -> None:
    pool = Pool(rank=rank)
    pool.add([claimed(i) for i in range(10)], [None] * 10, [10] * 10, now_ns=0)
    pool.add([claimed(99, priority=9), claimed(50)], [None, None], [200, 190], now_ns=1)
    assert sorted(ids_of(form(pool, 400))) == [50, 99]


def test_firm_work_goes_before_tolerant_work_of_higher_priority() -> None:
    pool = Pool(rank=rank)
    pool.add([claimed(1, queue_id=TOLERANT, priority=9)], [None], [100], now_ns=0)
    pool.add([claimed(2, priority=0)], [None], [1], now_ns=1)
    assert ids_of(form(pool, 100)) == [2]


def test_a_near_deadline_goes_ahead_of_priority_and_a_far_one_does_not() -> None:
    pool = Pool(rank=rank)
    jobs = [claimed(1, priority=9), claimed(2, deadline_ms=5_000), claimed(3, deadline_ms=500_000)]
    pool.add(jobs, [None] * 3, [1, 50, 1000], now_ns=0)
    assert [ids_of(form(pool, 1, now_ms=0)) for _ in range(3)] == [[2], [1], [3]]


def test_age_overrides_priority() -> None:
    pool = Pool(rank=rank, age_cap_seconds=3.0)
    pool.add([claimed(1)], [None], [1], now_ns=0)
    pool.add([claimed(2, priority=9)], [None], [100], now_ns=2 * SECOND)
    pool.add([claimed(3, priority=9)], [None], [100], now_ns=2 * SECOND)
    assert ids_of(form(pool, 100, now_ns=2 * SECOND)) == [2]
    assert ids_of(form(pool, 100, now_ns=4 * SECOND)) == [1]


def test_nothing_starves_while_longer_items_keep_coming() -> None:
    pool = pool_of([1])
    now, numbers = 0, iter(range(1, 10_000))
    for _ in range(100):
        now += SECOND // 10
        pool.add([claimed(next(numbers)) for _ in range(10)], [None] * 10, [100] * 10, now_ns=now)
        formed = form(pool, 1000, now_ns=now)
        if 0 in ids_of(formed):
            break
    assert now <= 4 * SECOND


def test_a_suspect_runs_alone_and_first() -> None:
    pool = Pool(rank=rank)
    pool.add([claimed(1), claimed(2, suspect=True), claimed(3)], [None] * 3, [1, 1, 1], now_ns=0)
    batches = all_batches(pool, 100)
    assert [(ids_of(batch), batch.reason) for batch in batches] == [([2], "suspect"), ([1, 3], "drained")]


def test_dropped_jobs_are_gone() -> None:
    pool = pool_of([1, 2, 3])
    pool.add([claimed(9, suspect=True)], [None], [4], now_ns=1)
    assert sorted(entry[2].id for entry in pool.drop(frozenset({1, 9, 77}))) == [1, 9]
    assert pool.cost == 4
    assert ids_of(form(pool, 100)) == [0, 2]


def test_take_all_empties_and_forgets() -> None:
    pool = pool_of([1, 2, 3])
    assert len(pool.take_all()) == 3
    assert (len(pool), pool.cost, pool.oldest_ns()) == (0, 0, None)
    assert form(pool, 10) is None


def test_rank_above_sees_mixed_pools() -> None:
    pool = pool_of([1, 1], queue_id=TOLERANT)
    assert not pool.holds_rank_above(999)
    pool.add([claimed(7)], [None], [1], now_ns=1)
    assert pool.holds_rank_above(999)


jobs_strategy = st.lists(
    st.tuples(
        st.integers(1, 500),
        st.integers(0, 9),
        st.sampled_from([1, TOLERANT]),
        st.one_of(st.none(), st.integers(0, 20_000)),
        st.sampled_from([False] * 9 + [True]),
    ),
    max_size=60,
)


@given(jobs_strategy, st.integers(1, 2000), st.integers(1, 40), st.booleans(), st.integers(1, 20))
def test_every_job_leaves_once_and_within_the_limits(
    jobs: list[tuple[int, int, int, int | None, bool]], budget: int, max_jobs: int, padded: bool, piece: int
) -> None:
    pool = Pool(rank=rank)
    seen: list[int] = []
    made = [
        claimed(i, priority=priority, queue_id=queue, deadline_ms=deadline, suspect=suspect)
        for i, (_, priority, queue, deadline, suspect) in enumerate(jobs)
    ]
    costs = [job[0] for job in jobs]
    now = 0
    for start in range(0, len(made), piece):
        part = slice(start, start + piece)
        now += SECOND // 2
        pool.add(made[part], made[part], costs[part], now_ns=now)
        formed = form(pool, budget, now_ns=now, max_jobs=max_jobs, padded=padded)
        assert formed is not None
        seen += _checked(formed, budget, max_jobs, padded)
    while (formed := form(pool, budget, now_ns=now, max_jobs=max_jobs, padded=padded)) is not None:
        seen += _checked(formed, budget, max_jobs, padded)
    assert sorted(seen) == list(range(len(jobs)))
    assert (len(pool), pool.cost) == (0, 0)


def _checked(formed: Formed, budget: int, max_jobs: int, padded: bool) -> list[int]:
    costs = costs_of(formed)
    assert costs == sorted(costs)
    assert 1 <= len(costs) <= max_jobs
    assert formed.cost == sum(costs)
    assert formed.padded_cost == (max(costs) * len(costs) if padded else sum(costs))
    assert len(costs) == 1 or formed.padded_cost <= budget
    assert all(entry[2] is entry[3] for entry in formed.entries)
    if any(entry[2].suspect for entry in formed.entries):
        assert len(costs) == 1
    return ids_of(formed)


def test_padding_is_small_over_a_deep_pool() -> None:
    # Token counts of short paragraphs: a heavy tail up to the model's limit.
    source = random.Random(7)
    pool, budget = Pool(rank=rank), 1024
    numbers = iter(range(1_000_000))
    cost = padded = 0
    for _ in range(100):
        while len(pool) < 540:
            lengths = [min(256, max(4, int(source.lognormvariate(3.1, 0.8)))) for _ in range(64)]
            pool.add([claimed(next(numbers)) for _ in lengths], [None] * 64, lengths, now_ns=0)
        formed = form(pool, budget)
        assert formed is not None
        cost, padded = cost + formed.cost, padded + formed.padded_cost
    assert padded / cost < 1.08
