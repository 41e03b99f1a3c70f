"""The runtimes `openai` and `kserve`: a server elsewhere, kept full with a bounded number of requests.

`source` is the server's URL. A job's input is the body of a request and its result the body of the answer, so that
whatever the server can do can be asked for; a payload in it travels as base64. Options: `concurrency` (64),
`timeout_seconds` (600), `body` (members of every request, which an input may replace), `headers`, and `api_key_env`,
the name of the environment's variable that holds the key. What the server refuses fails that job alone; what may pass
(408, 425, 429, 5xx, no connection, an answer that breaks off) is tried again.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, ClassVar

import httpx
import msgspec

from batchyard.errors import InvalidInput, ModelError, RetryableModelError
from batchyard.model import ContinuousModel

STEP_SECONDS = 0.05
CONNECT_SECONDS = 5.0
_JSON = {"Content-Type": "application/json"}
MOST_WORDS = 300
"""Characters of a server's complaint that are kept."""


class _Request:
    """The body of one request, and of its answer once it is there."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body
        self.answer: Any = None


class _Proxy(ContinuousModel):
    input_schema: ClassVar[dict[str, Any]] = {"type": "object"}
    _client: httpx.AsyncClient
    _loop: asyncio.AbstractEventLoop
    _asked: dict[int, Future[None]]
    _answered: queue.SimpleQueue[tuple[int, Any]]

    def load(self, device: str) -> None:
        if not self.source.startswith(("http://", "https://")):
            raise ValueError(f"source is {self.source!r}: the URL of the server, such as http://127.0.0.1:8000")
        headers = self._headers()
        self.most_jobs = int(self.options.get("concurrency", 64))
        self._asked, self._answered = {}, queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="batchyard-proxy", daemon=True)
        self._thread.start()
        self._client = asyncio.run_coroutine_threadsafe(self._open(headers), self._loop).result()

    async def _open(self, headers: dict[str, str]) -> httpx.AsyncClient:
        seconds = float(self.options.get("timeout_seconds", 600.0))
        return httpx.AsyncClient(
            base_url=self.source.rstrip("/") + "/",
            headers=headers,
            timeout=httpx.Timeout(seconds, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=self.most_jobs, max_keepalive_connections=self.most_jobs),
        )

    def _headers(self) -> dict[str, str]:
        headers = {str(name): str(value) for name, value in self.options.get("headers", {}).items()}
        variable = self.options.get("api_key_env")
        if variable is not None:
            if not os.environ.get(variable):
                raise ValueError(f"the environment has no {variable}, which the option api_key_env names")
            headers["Authorization"] = f"Bearer {os.environ[variable]}"
        return headers

    def preprocess(self, inputs: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
        fixed = {**self._fixed(), **self.options.get("body", {})}
        return [
            _Request({**fixed, **value, **params})
            if isinstance(value, dict)
            else InvalidInput("an input is an object: the body of a request to the server")
            for value in inputs
        ]

    def join(self, key: int, item: _Request) -> None:
        self._asked[key] = asyncio.run_coroutine_threadsafe(self._ask(key, item), self._loop)

    def step(self) -> Sequence[tuple[int, Any]]:
        ended = []
        try:
            ended.append(self._answered.get(timeout=STEP_SECONDS))
            while True:
                ended.append(self._answered.get_nowait())
        except queue.Empty:
            pass
        for key, _ in ended:
            self._asked.pop(key, None)
        return ended

    def leave(self, key: int) -> None:
        asked = self._asked.pop(key, None)
        if asked is not None:
            asked.cancel()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def postprocess(self, outputs: Sequence[_Request]) -> Sequence[Any]:
        return [request.answer for request in outputs]

    async def _ask(self, key: int, request: _Request) -> None:
        try:
            body = msgspec.json.encode(request.body)
            answer = await self._client.post(self._path(request.body), content=body, headers=_JSON)
            if answer.is_success:
                request.answer = answer.json()
            self._answered.put((key, request if answer.is_success else _refusal(answer)))
        except httpx.HTTPError as error:
            self._answered.put(
                (key, RetryableModelError(f"the server did not answer: {str(error) or type(error).__name__}"))
            )
        except (ValueError, RecursionError) as error:
            self._answered.put((key, ModelError(f"the server's answer is not JSON: {error}")))
        except Exception as error:  # noqa: BLE001  one that nobody hears of would leave its job without an answer
            self._answered.put((key, error))

    def _path(self, body: dict[str, Any]) -> str:
        """Of a request, below `source`."""
        raise NotImplementedError

    def _fixed(self) -> dict[str, Any]:
        """Members that every request has."""
        return {}


class OpenAI(_Proxy):
    """A server that speaks OpenAI's API (vLLM and the like); `source` ends with its `/v1`.

    Options: `endpoint`, by default as the input says: `chat/completions` for one with `messages`, `completions` for a
    `prompt`, else `embeddings`; and `model`, the model's name there.
    """

    cost_unit = "tokens"

    def cost(self, item: _Request) -> int:
        """As the server counted, once it has answered; before that about a token for four characters."""
        usage = item.answer.get("usage") if isinstance(item.answer, dict) else None
        total = usage.get("total_tokens") if isinstance(usage, dict) else None
        return total if isinstance(total, int) else len(str(item.body)) // 4 + 1

    def preprocess(self, inputs: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
        items = super().preprocess(inputs, params)
        return [
            InvalidInput("streams are not passed on: leave out stream")
            if isinstance(item, _Request) and item.body.get("stream")
            else item
            for item in items
        ]

    def _fixed(self) -> dict[str, Any]:
        return {"model": self.options["model"]} if "model" in self.options else {}

    def _path(self, body: dict[str, Any]) -> str:
        endpoint = self.options.get("endpoint")
        if endpoint is None:
            endpoint = "chat/completions" if "messages" in body else "completions" if "prompt" in body else "embeddings"
        return str(endpoint).strip("/")


class KServe(_Proxy):
    """A server that speaks KServe's Open Inference Protocol, version 2, over HTTP (Triton and the like).

    Options: `model`, and `model_version` where the server is not to choose.
    """

    cost_unit = "requests"

    def load(self, device: str) -> None:
        if "model" not in self.options:
            raise ValueError("the option model is missing: the model's name on the server")
        super().load(device)

    def _path(self, body: dict[str, Any]) -> str:
        version = self.options.get("model_version")
        which = f"{self.options['model']}/versions/{version}" if version is not None else self.options["model"]
        return f"v2/models/{which}/infer"


def _refusal(answer: httpx.Response) -> Exception:
    words = _words(answer)
    if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
        return RetryableModelError(f"the server answered {answer.status_code}: {words}")
    if answer.status_code in (400, 413, 422):
        return InvalidInput(f"the server refuses the input: {words}")
    return ModelError(f"the server answered {answer.status_code}: {words}")


def _words(answer: httpx.Response) -> str:
    """What the server says is wrong, in the forms that such servers use."""
    try:
        told = answer.json()
    except ValueError:
        told = answer.text
    for name in ("error", "message", "detail"):
        if isinstance(told, dict) and told.get(name):
            told = told[name]
    return str(told)[:MOST_WORDS] or answer.reason_phrase
