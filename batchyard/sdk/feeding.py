"""Feeding a bulk from any iterable, in bounded memory: chunks one after the other, no more in flight than allowed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

from batchyard import schemas
from batchyard.errors import Conflict, IdempotencyConflict, TooLarge
from batchyard.sdk import calls
from batchyard.sdk.steps import Patience, Room, Steps, Take, Taken

CHUNK_BYTES = 4 * 1024 * 1024
"""What a chunk should measure at most: far below the API's limit on bodies."""

FIRST_CHUNK_JOBS = 256
"""Until the size of an input is known."""

SLOW_CHUNK_SECONDS = 0.25
"""A chunk that takes longer to gather is sent as it is, so that slow sources see their results soon."""


class Feed:
    """How far the feeding of one bulk is.

    Written by whoever performs `steps` (a thread or a task), read by the reader of the results.
    """

    def __init__(self, bulk: schemas.Bulk, *, patience: Patience) -> None:
        self.bulk_id = bulk.id
        self.accepted = bulk.jobs
        """Jobs that the bulk has."""
        self._chunk_size = bulk.chunk_size
        self._take_jobs = min(FIRST_CHUNK_JOBS, bulk.chunk_size)
        self._is_sealed = bulk.sealed_at is not None
        self._patience = patience

    def steps(self) -> Steps[None]:
        """Skip what an earlier run fed, feed the rest, seal."""
        if self._is_sealed:
            return
        exhausted = yield from self._skip(self.accepted)
        while not exhausted:
            taken: Taken = yield Take(self._take_jobs)
            if taken.inputs:
                yield Room(len(taken.inputs))
                yield from self._add(taken.inputs)
            exhausted = taken.exhausted
        yield from calls.seal(self.bulk_id, patience=self._patience)

    def _skip(self, jobs: int) -> Steps[bool]:
        left, exhausted = jobs, False
        while left and not exhausted:
            taken: Taken = yield Take(min(left, self._chunk_size))
            left -= len(taken.inputs)
            exhausted = taken.exhausted
        if left:
            raise Conflict(
                f"bulk {self.bulk_id} already has {jobs} jobs under this key, but only {jobs - left} inputs were "
                "given; resume with the same inputs, or use another key",
                jobs=jobs,
            )
        return exhausted

    def _add(self, inputs: list[Any]) -> Steps[None]:
        """Send inputs as one chunk, or as several where they are large."""
        body = calls.encode_chunk(inputs, first_index=self.accepted)
        bytes_per_input = len(body) / len(inputs)
        self._take_jobs = int(min(self._chunk_size, 8 * self._take_jobs, max(1, CHUNK_BYTES // bytes_per_input)))
        if len(body) > 2 * CHUNK_BYTES and len(inputs) > 1:
            yield from self._add_halves(inputs)
            return
        try:
            answer = yield from calls.add_chunk(self.bulk_id, body, first_index=self.accepted, patience=self._patience)
            self.accepted += answer.accepted
        except TooLarge as refused:
            if len(inputs) == 1 or "index" in refused.details:
                raise
            yield from self._add_halves(inputs)
        except IdempotencyConflict:
            yield from self._add_unknown(inputs)

    def _add_halves(self, inputs: list[Any]) -> Steps[None]:
        middle = len(inputs) // 2
        yield from self._add(inputs[:middle])
        yield from self._add(inputs[middle:])

    def _add_unknown(self, inputs: list[Any]) -> Steps[None]:
        """An earlier run's last chunk, cut elsewhere, was committed after we read how far the bulk is: go on there."""
        bulk = yield from calls.get_bulk(self.bulk_id, patience=self._patience)
        known = bulk.jobs - self.accepted
        if not 0 < known <= len(inputs):
            raise Conflict(
                f"bulk {self.bulk_id} has other inputs from index {self.accepted} on under this key; "
                "resume with the same inputs, or use another key"
            )
        self.accepted = bulk.jobs
        if rest := inputs[known:]:
            yield from self._add(rest)


def take(source: Iterator[Any], count: int) -> Taken:
    """The next inputs of an iterator, in steps that grow as long as they come fast."""
    inputs: list[Any] = []
    end = time.monotonic() + SLOW_CHUNK_SECONDS
    step = 1
    while len(inputs) < count:
        wanted = min(step, count - len(inputs))
        piece = list(islice(source, wanted))
        inputs += piece
        if len(piece) < wanted:
            return Taken(inputs, True)
        left = end - time.monotonic()
        if left <= 0:
            break
        step = step * 2 if left > SLOW_CHUNK_SECONDS / 2 else 1
    return Taken(inputs, False)
