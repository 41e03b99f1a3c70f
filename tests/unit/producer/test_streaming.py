import json
from typing import Any

import msgspec
import numpy as np
import pytest

from batchyard import results
from batchyard.jobs import ErrorInfo, ResultRow, State, format_id
from batchyard.schemas import ResultLine
from batchyard_producer.streaming import ndjson

ERROR = msgspec.json.encode(ErrorInfo("model_error", 'it said "no"'))
TENSOR = results.encode(np.arange(3, dtype=np.float32))[1]


@pytest.mark.parametrize("custom_id", [None, 'a "name"\n'])
@pytest.mark.parametrize(
    ("state", "format_", "body", "expected"),
    [
        (State.SUCCEEDED, results.JSON, b'{"a": [1, "\xc3\xa9"]}', {"result": {"a": [1, "é"]}}),
        (State.SUCCEEDED, results.TENSORS, TENSOR, {"result": [0.0, 1.0, 2.0]}),
        (State.FAILED, results.ERROR, ERROR, {"error": {"code": "model_error", "message": 'it said "no"'}}),
        (State.CANCELLED, None, None, {}),
        (State.EXPIRED, None, None, {}),
    ],
)
def test_a_line_holds_the_job_and_what_came_of_it(
    state: State, format_: int | None, body: bytes | None, expected: dict[str, Any], custom_id: str | None
) -> None:
    row = ResultRow(3, 1025, 7, state, custom_id, format_, body)
    page = ndjson([row, row], cursor=3, finished=True, tensors="numbers")
    *lines, last = page.splitlines()
    named = {} if custom_id is None else {"custom_id": custom_id}
    whole = {"index": 7, "id": format_id(1025), "state": state.word, **named, **expected}
    assert [json.loads(line) for line in lines] == [whole, whole]
    assert json.loads(last) == {"cursor": "3", "finished": True}
    for line in (*lines, last):
        msgspec.json.decode(line, type=ResultLine)


def test_tensors_in_base64() -> None:
    row = ResultRow(1, 1, 0, State.SUCCEEDED, None, results.TENSORS, TENSOR)
    line = json.loads(ndjson([row], cursor=1, finished=False, tensors="base64").splitlines()[0])
    assert line["result"]["dtype"] == "float32"


def test_a_page_without_results_is_a_cursor() -> None:
    assert ndjson([], cursor=12, finished=False, tensors="numbers") == b'{"cursor":"12","finished":false}\n'
