"""GET /v1/jobs/{id}, POST /v1/jobs/lookup and GET /v1/bulks/{id}/results over a real server and database."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx

from batchyard.jobs import State, format_id
from batchyard.results import FRAMES_TYPE, Frame, FrameReader
from tests.services.api.test_submitting import problem
from tests.services.api.yard import Yard

UNKNOWN = "0000000000000400"


def until(condition: Callable[[], bool], *, seconds: float = 10.0) -> None:
    end, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        pause.wait(0.01)


def lines(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in answer.iter_lines():
        yield json.loads(line)


# --- long polls ------------------------------------------------------------------------------------------------------


def test_a_long_poll_is_woken_by_the_end_of_its_job(yard: Yard) -> None:
    [job] = yard.submit("x")
    with ThreadPoolExecutor(8) as callers:
        polls = [callers.submit(yard.client.get, f"/v1/jobs/{job}", params={"wait": 30}) for _ in range(8)]
        until(lambda: yard.metric("batchyard_waiters") == 8)
        began = time.monotonic()
        yard.finish([job])
        answers = [poll.result() for poll in polls]
    assert time.monotonic() - began < 10
    assert {answer.json()["result"] for answer in answers} == {"x"}
    assert yard.metric("batchyard_waiters") == 0


def test_a_long_poll_survives_a_lost_hint(yard: Yard) -> None:
    [job] = yard.submit("x")
    with ThreadPoolExecutor(1) as caller:
        poll = caller.submit(yard.client.get, f"/v1/jobs/{job}", params={"wait": 30})
        until(lambda: yard.metric("batchyard_waiters") == 1)
        yard.finish([job], hint=False)
        assert poll.result().json()["state"] == "succeeded"


def test_a_long_poll_in_vain_answers_with_the_job_as_it_stands(yard: Yard) -> None:
    [job] = yard.submit("x")
    answer = yard.client.get(f"/v1/jobs/{job}", params={"wait": 0.05})
    assert (answer.status_code, answer.json()["state"], answer.headers["retry-after"]) == (200, "queued", "1")
    problem(yard.client.get(f"/v1/jobs/{job}", params={"wait": "soon"}), 422, "invalid_request")


def test_a_client_that_hangs_up_is_forgotten(yard: Yard) -> None:
    [job] = yard.submit("x")
    bulk = yard.bulk()
    address = urlsplit(yard.url)
    for path in (f"/v1/jobs/{job}?wait=60", f"/v1/bulks/{bulk}/results?wait=60"):
        with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            until(lambda: yard.metric("batchyard_waiters") == 1)
        until(lambda: yard.metric("batchyard_waiters") == 0)


def test_ids_that_are_none(yard: Yard) -> None:
    for text in (UNKNOWN, "nonsense", "0" * 15, "FFFFFFFFFFFFFFFF"):
        problem(yard.client.get(f"/v1/jobs/{text}"), 404, "not_found")
        problem(yard.client.get(f"/v1/bulks/{text}/results"), 404, "not_found")
    [job] = yard.submit("x")
    yard.finish([job])
    assert yard.client.delete(f"/v1/jobs/{job}").is_success
    problem(yard.client.get(f"/v1/jobs/{job}"), 410, "gone")
    answer = yard.client.post("/v1/jobs/lookup", json={"ids": [job, UNKNOWN, "x"]}).json()
    assert answer == {"jobs": [], "missing": [UNKNOWN, "x"], "retired": [job]}


def test_a_lookup_waits_for_any_or_for_all(yard: Yard) -> None:
    ids = yard.submit("a", "b", "c")

    def look_up(until_: str) -> list[str]:
        asked = {"ids": [*ids, ids[0]], "wait": 30, "until": until_}
        answer = yard.client.post("/v1/jobs/lookup", json=asked)
        return [job["state"] for job in answer.json()["jobs"]]

    with ThreadPoolExecutor(2) as callers:
        any_of, all_of = callers.submit(look_up, "any"), callers.submit(look_up, "all")
        until(lambda: yard.metric("batchyard_waiters") == 6)
        yard.finish(ids[1:2])
        assert any_of.result() == ["queued", "succeeded", "queued"]
        assert not all_of.done()
        yard.finish([ids[0], ids[2]])
        assert all_of.result() == ["succeeded"] * 3


def test_a_lookup_of_many_and_of_too_many(yard: Yard) -> None:
    ids = yard.submit(*range(500))
    yard.finish(ids)
    answer = yard.client.post("/v1/jobs/lookup", json={"ids": ids}).json()
    assert [job["result"] for job in answer["jobs"]] == list(range(500))
    bare = yard.client.post("/v1/jobs/lookup", json={"ids": ids, "results": False}).json()
    assert not any("result" in job for job in bare["jobs"])
    problem(yard.client.post("/v1/jobs/lookup", json={"ids": ids * 3}), 422, "invalid_request")
    problem(yard.client.post("/v1/jobs/lookup", json={"ids": []}), 422, "invalid_request")


# --- a bulk's results ------------------------------------------------------------------------------------------------


def test_results_stream_as_they_come_and_end_with_the_bulk(yard: Yard) -> None:
    bulk = yard.bulk()
    yard.feed(bulk, ["a", "fail", "c"], key="0")
    ids = [int(job["id"], 16) for job in yard.client.get("/v1/jobs").json()["jobs"]][::-1]
    with yard.client.stream("GET", f"/v1/bulks/{bulk}/results", params={"wait": 30}) as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        stream = lines(answer)
        yard.finish([ids[2]])
        first = next(stream)
        assert first == {"index": 2, "id": format_id(ids[2]), "state": "succeeded", "result": "c"}
        assert next(stream)["finished"] is False
        yard.finish(ids[:2])
        found = {line["index"]: line for line in (next(stream), next(stream))}
        assert found[0]["result"] == "a"
        assert found[1]["error"] == {"code": "model_error", "message": "it failed"}
        assert "cursor" in next(stream)
        yard.client.post(f"/v1/bulks/{bulk}/seal")
        last = list(stream)[-1]
        assert last["finished"] is True


def test_a_stream_resumes_after_any_cursor(yard: Yard) -> None:
    bulk = yard.bulk()
    yard.feed(bulk, list(range(60)), key="0")
    yard.client.post(f"/v1/bulks/{bulk}/seal")
    ids = sorted(int(job["id"], 16) for job in yard.client.get("/v1/jobs", params={"limit": 100}).json()["jobs"])
    for start in (40, 0, 20):
        yard.finish(ids[start : start + 20])
    until(lambda: len(_read_all(yard, bulk, after="")[0]) == 60)
    everything, cursor = _read_all(yard, bulk, after="")
    assert everything == [*range(40, 60), *range(20), *range(20, 40)]
    assert _read_all(yard, bulk, after=cursor) == ([], cursor)
    again, _ = _read_all(yard, bulk, after=_cursor_after(yard, bulk))
    assert everything[len(everything) - len(again) :] == again
    problem(yard.client.get(f"/v1/bulks/{bulk}/results", params={"after": "x"}), 422, "invalid_request")


def _read_all(yard: Yard, bulk: str, *, after: str) -> tuple[list[int], str]:
    answer = yard.client.get(f"/v1/bulks/{bulk}/results", params={"after": after})
    found = list(lines(answer))
    return [line["index"] for line in found if "index" in line], found[-1]["cursor"]


def _cursor_after(yard: Yard, bulk: str) -> str:
    """The cursor after the first flush alone."""
    [first, *_] = yard.store.bulk_results(int(bulk, 16), after_seq=0, limit=1)
    return str(first.seq)


def test_frames_carry_the_same_results(yard: Yard) -> None:
    bulk = yard.bulk()
    yard.client.post(
        f"/v1/bulks/{bulk}/jobs", json={"inputs": ["a", "fail", "c", "d"], "custom_ids": ["one", None, None, None]}
    )
    yard.client.post(f"/v1/bulks/{bulk}/seal")
    ids = sorted(int(job["id"], 16) for job in yard.client.get("/v1/jobs").json()["jobs"])
    yard.finish(ids[:3])
    yard.client.post(f"/v1/jobs/{format_id(ids[3])}/cancel")
    headers = {"Accept": FRAMES_TYPE}
    with yard.client.stream("GET", f"/v1/bulks/{bulk}/results", params={"wait": 30}, headers=headers) as answer:
        assert answer.headers["content-type"] == FRAMES_TYPE
        reader = FrameReader()
        frames = [frame for piece in answer.iter_bytes() for frame in reader.feed(piece)]
    assert frames[-1].finished
    rows = sorted((row for frame in frames for row in frame.records), key=lambda row: row.index)
    assert [row.state for row in rows] == [State.SUCCEEDED, State.FAILED, State.SUCCEEDED, State.CANCELLED]
    assert (rows[0].custom_id, rows[0].body, rows[3].body) == ("one", b'"a"', None)
    by_index = {line["index"]: line for line in lines(yard.client.get(f"/v1/bulks/{bulk}/results")) if "index" in line}
    assert by_index[0]["custom_id"] == "one"
    assert by_index[3] == {"index": 3, "id": format_id(ids[3]), "state": "cancelled"}


def test_frames_tell_when_all_jobs_so_far_have_ended(yard: Yard) -> None:
    """An index that has not been sent by then is no longer kept."""
    bulk = yard.bulk()
    yard.feed(bulk, ["a", "b", "c"], key="0")
    ids = sorted(int(job["id"], 16) for job in yard.client.get("/v1/jobs").json()["jobs"])
    yard.finish(ids[:2])
    assert {frame.settled for frame in _frames(yard, bulk)} == {None}

    yard.finish(ids[2:])
    until(lambda: any(frame.settled for frame in _frames(yard, bulk)))
    yard.client.delete(f"/v1/jobs/{format_id(ids[1])}")
    frames = _frames(yard, bulk)
    assert [frame.settled for frame in frames if frame.settled is not None] == [3]
    assert sorted(row.index for frame in frames for row in frame.records) == [0, 2]
    assert not any(frame.finished for frame in frames)

    yard.client.post(f"/v1/bulks/{bulk}/seal")
    last = _frames(yard, bulk)[-1]
    assert (last.finished, last.settled) == (True, 3)


def _frames(yard: Yard, bulk: str) -> list[Frame]:
    answer = yard.client.get(f"/v1/bulks/{bulk}/results", params={"wait": 0.3}, headers={"Accept": FRAMES_TYPE})
    return FrameReader().feed(answer.content)


def test_a_stream_of_an_open_bulk_ends_after_the_wait(yard: Yard) -> None:
    bulk = yard.bulk()
    yard.feed(bulk, ["a"], key="0")
    answer = yard.client.get(f"/v1/bulks/{bulk}/results", params={"wait": 0.1})
    assert list(lines(answer)) == [{"cursor": "0", "finished": False}]


def test_what_is_not_hot_is_answered_too(yard: Yard) -> None:
    assert yard.client.get("/healthz").is_success
    assert {model["name"] for model in yard.client.get("/v1/models").json()["models"]} == {"echo", "strict"}
    problem(yard.client.get("/v1/nothing"), 404, "not_found")
