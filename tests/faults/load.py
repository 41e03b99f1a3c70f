"""Clients who submit, poll, cancel, amend, redrive and look where they may not, and write down what became of it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from batchyard.jobs import format_id
from tests.faults.calling import ANSWER_SECONDS, Answer, Caller, ids_in, note_poll, number_of, seen_in
from tests.faults.history import History

MODEL = "keyed"
TRIES = 8
TRY_AGAIN_SECONDS = 0.3
PAUSE_SECONDS = 0.03
"""Between two calls of a client."""
RUSH_SECONDS = 0.3


class Made(NamedTuple):
    """A job that a client knows of."""

    id: int
    tenant: str


class Fed(NamedTuple):
    """A bulk that was sealed."""

    id: str
    tenant: str
    tokens: Sequence[str]
    ids: Sequence[int]


class Load:
    """Several clients, a thread each, until told to stop. `rate`: jobs a second of all of them together."""

    def __init__(
        self, urls: Sequence[str], *, keys: Mapping[str, str], history: History, seed: int, clients: int, rate: float
    ) -> None:
        self.jobs = 0
        """Accepted so far, about."""
        self.bulks: list[Fed] = []
        self.known: list[Made] = []
        self._history = history
        self.stopped = threading.Event()
        self._rate = rate / clients
        self._rush_until = 0.0
        self._threads = [
            threading.Thread(target=self._run, args=(urls, number, *pair, seed), name=f"faults-client-{number}")
            for number, pair in enumerate(_spread(keys, clients))
        ]
        self._errors: list[BaseException] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Clients call until the block ends."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self.stopped.set()
            for thread in self._threads:
                thread.join(TRIES * (ANSWER_SECONDS + TRY_AGAIN_SECONDS))
        if self._errors:
            raise self._errors[0]

    def rush(self) -> None:
        """Have all clients submit as fast as they can for a moment, so that a fault meets calls under way."""
        self._rush_until = time.monotonic() + RUSH_SECONDS

    def check(self) -> None:
        """Raise what ended a client, if anything did."""
        if self._errors:
            raise self._errors[0]

    def _run(self, urls: Sequence[str], number: int, tenant: str, key: str, seed: int) -> None:
        rng = random.Random(f"{seed}-{number}")
        caller = Caller(urls, tenant=tenant, key=key, rng=rng)
        client = _Client(self, caller, name=f"c{number}", rng=rng, history=self._history)
        try:
            while not self.stopped.is_set():
                if time.monotonic() < self._rush_until:
                    client.hurry()
                    continue
                if time.monotonic() >= client.submits_at:
                    client.submits_at = time.monotonic() + client.submit() / self._rate
                else:
                    client.look_after()
                self.stopped.wait(PAUSE_SECONDS)
            client.resume()
        except BaseException as error:
            self._errors.append(error)
            raise
        finally:
            caller.close()


class _Client:
    """What one thread does."""

    def __init__(self, load: Load, caller: Caller, *, name: str, rng: random.Random, history: History) -> None:
        self._load = load
        self._caller = caller
        self._name = name
        self._rng = rng
        self._history = history
        self._count = 0
        self._failed: list[int] = []
        self._paused: list[str] = []
        self._deeds = [
            (self._poll, 70),
            (self._cancel, 14),
            (self._amend, 8),
            (self._redrive, 8),
            (self._trespass, 8),
            (self.resume, 4),
            (self._cancel_bulk, 1),
        ]
        self.submits_at = 0.0

    def submit(self) -> int:
        """Submit in one way or another; returns how many jobs."""
        return self._rng.choices([self._submit_one, self._submit_many, self._feed_bulk], [60, 30, 10])[0]()

    def hurry(self) -> None:
        """Submit something small."""
        self._rng.choices([self._submit_one, self._submit_many], [97, 3])[0]()

    def look_after(self) -> None:
        """Do something about jobs that exist."""
        [(deed, _)] = self._rng.choices(self._deeds, [weight for _, weight in self._deeds])
        deed()

    def _submit_one(self) -> int:
        return self._submit(self._tokens(1))

    def _submit_many(self) -> int:
        return self._submit(self._tokens(self._rng.randint(2, 30)))

    def _submit(self, tokens: list[str]) -> int:
        body: dict[str, Any] = {"priority": self._rng.randint(0, 9), "tolerant": self._rng.random() < 0.5}
        if self._rng.random() < 0.3:
            body["deadline_seconds"] = round(self._rng.uniform(0.3, 12.0), 1)
        if self._rng.random() < 0.5:
            body["max_failures"] = self._rng.randint(1, 4)
        inputs = [{"token": token} for token in tokens]
        body |= {"input": inputs[0]} if len(inputs) == 1 else {"inputs": inputs}
        key = tokens[0] if self._rng.random() < 0.8 else ""
        self._send("submit", f"/v1/models/{MODEL}/jobs", body, tokens, key=key)
        return len(tokens)

    def _feed_bulk(self) -> int:
        size, chunks = self._rng.randint(5, 50), self._rng.randint(1, 4)
        self._count += 1
        bulk = self._insist(
            "POST", "/v1/bulks", {"model": MODEL, "chunk_size": size}, key=f"{self._name}-b{self._count}"
        )
        if bulk is None:
            return 0
        tokens: list[str] = []
        ids: list[int] = []
        if self._rng.random() < 0.3:
            # Noted first: a call without an answer may have been carried out.
            self._paused.append(bulk["id"])
            self._insist("POST", f"/v1/bulks/{bulk['id']}/pause", None)
        for number in range(chunks):
            chunk = self._tokens(size if number < chunks - 1 else self._rng.randint(1, size))
            body = {"inputs": [{"token": token} for token in chunk]}
            made = self._send("chunk", f"/v1/bulks/{bulk['id']}/jobs", body, chunk, key=f"k{number}")
            if not made:
                return len(tokens) or 1
            tokens += chunk
            ids += made
        if self._insist("POST", f"/v1/bulks/{bulk['id']}/seal", None) is not None:
            self._load.bulks.append(Fed(bulk["id"], self._caller.tenant, tokens, ids))
        return len(tokens)

    def resume(self) -> None:
        """Let go on what was paused."""
        while self._paused and self._insist("POST", f"/v1/bulks/{self._paused[-1]}/resume", None) is not None:
            self._paused.pop()

    def _cancel_bulk(self) -> None:
        mine = [bulk for bulk in self._load.bulks[-10:] if bulk.tenant == self._caller.tenant]
        if mine:
            bulk = self._rng.choice(mine)
            self._note(self._caller.call("POST", f"/v1/bulks/{bulk.id}/cancel"), "cancel", ids=tuple(bulk.ids))

    def _amend(self) -> None:
        mine = self._mine()
        if mine:
            job = self._rng.choice(mine[-100:]).id
            more = {"deadline_seconds": round(self._rng.uniform(1, 20), 1)} if self._rng.random() < 0.5 else {}
            body = {"priority": self._rng.randint(0, 9), **more}
            self._note(self._caller.call("PATCH", f"/v1/jobs/{format_id(job)}", body), "amend", ids=(job,))

    def _poll(self) -> None:
        mine = self._mine()
        if mine:
            ids = [job.id for job in self._rng.sample(mine, min(len(mine), self._rng.randint(1, 50)))]
            wait = self._rng.choice([0, 0, 0.5])
            answer = self._caller.call("POST", "/v1/jobs/lookup", {"ids": list(map(format_id, ids)), "wait": wait})
            self._failed += note_poll(answer, ids, tenant=self._caller.tenant, history=self._history)

    def _cancel(self) -> None:
        mine = self._mine()
        if mine:
            # Mostly one that may still be running.
            job = self._rng.choice(mine[-200:]).id
            answer = self._caller.call("POST", f"/v1/jobs/{format_id(job)}/cancel")
            self._note(answer, "cancel", ids=(job,), seen=seen_in([answer.body]) if answer.outcome == "ok" else {})

    def _redrive(self) -> None:
        if self._failed:
            job = self._rng.choice(self._failed)
            answer = self._caller.call("POST", f"/v1/jobs/{format_id(job)}/redrive")
            made = (number_of(answer.body["id"]),) if answer.outcome == "ok" else ()
            self._note(answer, "redrive", ids=made)

    def _trespass(self) -> None:
        theirs = [job for job in self._load.known[-500:] if job.tenant != self._caller.tenant]
        if theirs:
            job = self._rng.choice(theirs).id
            method, more = self._rng.choice([("GET", ""), ("POST", "/cancel"), ("POST", "/redrive"), ("DELETE", "")])
            self._note(self._caller.call(method, f"/v1/jobs/{format_id(job)}{more}"), "trespass", ids=(job,))

    # --- steps ---

    def _send(self, did: str, path: str, body: Any, tokens: list[str], *, key: str) -> Sequence[int]:
        """Submit; without an answer again under the same key, where there is one. Returns the jobs that it made."""
        # Within a bulk a key is unique by itself; the history wants it unique among all.
        told = f"{path}#{key}" if did == "chunk" else key
        for _ in range(TRIES):
            answer = self._caller.call("POST", path, body, key=key)
            ids = ids_in(answer.body) if answer.outcome == "ok" else ()
            self._note(answer, did, key=told, tokens=tuple(tokens), ids=ids)
            self._load.known += [Made(job, self._caller.tenant) for job in ids]
            self._load.jobs += len(ids)
            if ids or not key:
                return ids
            self._load.stopped.wait(TRY_AGAIN_SECONDS)
        return ()

    def _insist(self, method: str, path: str, body: Any, *, key: str = "") -> Any:
        """A call that may be repeated, until it is answered; None where it never was."""
        for _ in range(TRIES):
            answer = self._caller.call(method, path, body, key=key)
            if answer.outcome == "ok":
                return answer.body
            self._load.stopped.wait(TRY_AGAIN_SECONDS)
        return None

    def _note(self, answer: Answer, did: str, **more: Any) -> None:
        self._history.add([answer.call(did, tenant=self._caller.tenant, **more)])

    def _mine(self) -> list[Made]:
        return [job for job in self._load.known[-2000:] if job.tenant == self._caller.tenant]

    def _tokens(self, count: int) -> list[str]:
        deeds = self._rng.choices(["echo", "slow", "busy", "invalid"], [92, 4, 2, 2], k=count)
        self._count += count
        first = self._count - count
        return [f"{deed}-{self._name}-{first + place}" for place, deed in enumerate(deeds)]


def _spread(keys: Mapping[str, str], clients: int) -> Iterator[tuple[str, str]]:
    pairs = list(keys.items())
    return (pairs[number % len(pairs)] for number in range(clients))
