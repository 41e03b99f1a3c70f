"""The runtime `text-generation`: requests join and leave the library's continuous batching between steps.

An error of one request ends the library's loop, and with it all others inside: it is started anew, and everybody joins
again in smaller company until the guilty one stands alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from batchyard.errors import InvalidInput
from batchyard.model import ContinuousModel
from batchyard_consumers.runtimes.sources import origin

STEP_SECONDS = 0.05
"""The longest wait for a token."""
STOP_SECONDS = 5.0
"""For the library's thread to end its step."""
MAX_TOKENS = 256
"""Generated at the most, where nothing else is asked for."""
CPU_CACHE_TOKENS = 16_384
CPU_PAGE_TOKENS = 32
CPU_STEP_TOKENS = 512
"""Of prompts taken in at one step: on a CPU the library would warm up with thousands."""
MOST_STOPS = 16
TAIL_TOKENS = 8
"""Looked at for a stop, beyond its length: characters of several tokens show in the text once all are there."""
BOUNDS: dict[str, tuple[Any, float, float]] = {
    "max_tokens": (int, 1, 1_000_000),
    "temperature": (float, 0.0, 10.0),
    "top_p": (float, 0.0, 1.0),
    "top_k": (int, 1, 1_000_000),
}


@dataclass(eq=False)
class Prompt:
    """One request: what it asks for, and what has come of it."""

    ids: list[int]
    max_tokens: int
    sampling: dict[str, float]
    stops: tuple[str, ...] = ()
    """Texts before which the answer ends."""
    generated: list[int] = field(default_factory=list)
    is_done: bool = False
    has_stopped: bool = False
    """At one of `stops`."""


class TextGeneration(ContinuousModel):
    """A prompt, or `{"messages": [{"role", "content"}, …]}`, in; `{"text", "finish_reason", "usage"}` out.

    A job's params, or the options for all jobs: `max_tokens`, `temperature` (0, the default, takes the likeliest token
    each time), `top_p`, `top_k`, `stop` (a text, or up to 16, before which the answer ends). `finish_reason` is `stop`
    where the model ended by itself or at one of these, and `length` at `max_tokens`. Further options: `most_jobs`
    inside at once, `cache_tokens` (what all of them may hold together; on a GPU what its memory allows), `revision`,
    `trust_remote_code`. The dtype `auto` is that of the weights.
    """

    input_schema: ClassVar[dict[str, Any]] = {
        "anyOf": [
            {"type": "string", "minLength": 1},
            {
                "type": "object",
                "properties": {
                    "messages": {
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "type": "object",
                            "properties": {"role": {"type": "string"}, "content": {"type": "string"}},
                            "required": ["role", "content"],
                        },
                    }
                },
                "required": ["messages"],
                "additionalProperties": False,
            },
        ]
    }
    cost_unit: ClassVar[str] = "tokens"
    dtypes = ("bfloat16", "float16")

    _module: Any
    _tokenizer: Any
    _manager: Any
    _device: str
    _most_tokens: int
    """Of a prompt and what it generates, together."""
    _inside: dict[int, Prompt]

    def load(self, device: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._module = AutoModelForCausalLM.from_pretrained(
            self.source, use_safetensors=True, dtype=self.dtype, **origin(self)
        )
        self._module = self._module.to(device).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(self.source, **origin(self))
        self._device = device
        self._inside = {}
        self.most_jobs = int(self.options.get("most_jobs", self.most_jobs))
        places = int(getattr(self._module.config, "max_position_embeddings", None) or self._tokenizer.model_max_length)
        cache = self.options.get("cache_tokens", CPU_CACHE_TOKENS if device == "cpu" else None)
        self._most_tokens = min(places, cache or places)
        self._cache_tokens = cache
        self._start()

    def _start(self) -> None:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
        sizes: dict[str, Any] = {}
        if self._cache_tokens is not None:
            blocks = -(-self._cache_tokens // CPU_PAGE_TOKENS) + self.most_jobs
            sizes = {"page_size": CPU_PAGE_TOKENS, "num_blocks": blocks}
        if self._device == "cpu":
            sizes["max_batch_tokens"] = CPU_STEP_TOKENS
        self._manager = self._module.init_continuous_batching(
            # Each request says its own; a value that changes nothing would leave its processor out for all of them.
            generation_config=GenerationConfig(
                do_sample=True,
                temperature=0.5,
                top_p=0.5,
                top_k=1,
                max_new_tokens=MAX_TOKENS,
                eos_token_id=self._ends(),
                pad_token_id=self._tokenizer.pad_token_id or 0,
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                per_request_processors=True, max_requests_per_batch=self.most_jobs, **sizes
            ),
        )
        # Its thread would keep the process alive; one that is started by a daemon is a daemon too.
        starting = threading.Thread(target=self._manager.start, daemon=True)
        starting.start()
        starting.join()

    def _ends(self) -> int | list[int]:
        """Tokens after which nothing follows; -1 where the model knows none."""
        configured = getattr(self._module.generation_config, "eos_token_id", None)
        ends = configured if configured is not None else self._tokenizer.eos_token_id
        return -1 if ends is None else ends

    def preprocess(self, inputs: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
        given = {**self.options, **params}
        asked = _number(given, "max_tokens")
        max_tokens = None if asked is None else int(asked)
        temperature = _number(given, "temperature") or 0.0
        sampling = {
            "temperature": temperature or 1.0,
            "top_p": _number(given, "top_p") or 1.0,
            "top_k": _number(given, "top_k") or self._module.config.vocab_size,
        }
        if temperature == 0:
            sampling["top_k"] = 1
        stops = _stops(given.get("stop"))
        return [self._prompt(value, max_tokens, sampling, stops) for value in inputs]

    def cost(self, item: Prompt) -> int:
        """Tokens of the prompt and of what it may generate; once it has ended, of what it did generate."""
        return len(item.ids) + (len(item.generated) if item.is_done else item.max_tokens)

    def join(self, key: int, item: Prompt) -> None:
        if not self._manager.is_running():
            self._start()
        self._inside[key] = item
        self._manager.add_request(
            item.ids, request_id=str(key), max_new_tokens=item.max_tokens, streaming=True, **item.sampling
        )

    def step(self) -> Sequence[tuple[int, Any]]:
        ended: list[tuple[int, Any]] = []
        told = self._manager.get_result(timeout=STEP_SECONDS)
        while told is not None:
            key = int(told.request_id)
            prompt = self._inside.get(key)
            if prompt is not None:
                if told.error is not None:
                    self.close()
                    raise RuntimeError(told.error)
                if self._goes_on(prompt, list(told.generated_tokens)):
                    prompt.is_done = told.is_finished()
                else:
                    self._manager.cancel_request(told.request_id)
                if prompt.is_done:
                    del self._inside[key]
                    ended.append((key, prompt))
            told = self._manager.get_result(timeout=0)
        if self._inside and not ended and not self._manager.is_running():
            raise RuntimeError("the library's generation loop has ended")
        return ended

    def _goes_on(self, prompt: Prompt, generated: list[int]) -> bool:
        """Take in what has been generated; false once one of the stops is in it."""
        fresh = len(generated) - len(prompt.generated)
        prompt.generated = generated
        if prompt.stops:
            # A token is a character or more: a stop that was not there before ends within these.
            tail = generated[-(fresh + max(map(len, prompt.stops)) + TAIL_TOKENS) :]
            text = self._tokenizer.decode(tail, skip_special_tokens=True)
            prompt.has_stopped = prompt.is_done = any(stop in text for stop in prompt.stops)
        return not prompt.has_stopped

    def leave(self, key: int) -> None:
        if self._inside.pop(key, None) is not None:
            self._manager.cancel_request(str(key))

    def close(self) -> None:
        self._manager.stop(block=True, timeout=STOP_SECONDS, hard_stop=True)

    def postprocess(self, outputs: Sequence[Prompt]) -> Sequence[Any]:
        return [self._result(prompt) for prompt in outputs]

    def partial(self, item: Prompt) -> Any:
        """What has come of it so far."""
        return self._result(item) if item.generated else None

    def _result(self, prompt: Prompt) -> dict[str, Any]:
        ends = self._ends()
        generated = list(prompt.generated)
        is_over = bool(generated) and generated[-1] in (ends if isinstance(ends, list) else [ends])
        has_stopped = is_over or prompt.has_stopped
        text = self._tokenizer.decode(generated, skip_special_tokens=True)
        return {
            "text": text[: min((place for stop in prompt.stops if (place := text.find(stop)) >= 0), default=None)],
            "finish_reason": ("stop" if has_stopped else "length") if prompt.is_done else None,
            "usage": {"prompt_tokens": len(prompt.ids), "completion_tokens": len(generated)},
        }

    def _prompt(
        self, value: Any, max_tokens: int | None, sampling: dict[str, float], stops: tuple[str, ...]
    ) -> Prompt | InvalidInput:
        ids = self._ids(value)
        if isinstance(ids, InvalidInput):
            return ids
        room = self._most_tokens - len(ids)
        if (max_tokens or 1) > room:
            return InvalidInput(
                f"the prompt's {len(ids)} tokens and max_tokens ({max_tokens or 1}) are more than the "
                f"{self._most_tokens} that the model holds"
            )
        return Prompt(ids=ids, max_tokens=max_tokens or min(MAX_TOKENS, room), sampling=sampling, stops=stops)

    def _ids(self, value: Any) -> list[int] | InvalidInput:
        if isinstance(value, str) and value:
            return list(self._tokenizer(value)["input_ids"])
        messages = value.get("messages") if isinstance(value, dict) else None
        if not isinstance(messages, list) or not messages:
            return InvalidInput('an input is a prompt, or {"messages": [{"role": …, "content": …}, …]}')
        if self._tokenizer.chat_template is None:
            return InvalidInput("the model has no chat template: give the prompt as a string")
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # noqa: BLE001  a template may refuse roles in any way
            return InvalidInput(f"the model's chat template refuses the messages: {error}")
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _number(given: Mapping[str, Any], name: str) -> float | None:
    """A parameter within its bounds; None where it is not given. InvalidInput."""
    value = given.get(name)
    if value is None:
        return None
    kind, low, high = BOUNDS[name]
    is_number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        what = "a whole number" if kind is int else "a number"
        raise InvalidInput(f"{name} is {what} from {low:g} to {high:g}, not {value!r}")
    number: float = kind(value)
    return number


def _stops(value: Any) -> tuple[str, ...]:
    """The parameter `stop`. InvalidInput."""
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise InvalidInput(f"stop is a text, or a list of up to {MOST_STOPS}, none of them empty; not {value!r}")
    return tuple(stops)
