"""What a model's author writes: one class, with no other import of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class Model:
    """A model behind a queue. Subclass it and name the class in `batchyard.toml` as `runtime = "package.module:Class"`.

    One instance serves one `model@version` in one consumer. `load` runs once, before any job. `preprocess`, `cost` and
    `postprocess` run on CPU threads, several at once; `forward` runs under inference mode, on one thread at a time
    unless `concurrent_forward` says otherwise.
    """

    input_schema: ClassVar[dict[str, Any]] = {}
    """JSON Schema of one input; published to the API when the version is first loaded. Empty: anything goes. Its
    `examples`, where it has any, warm the model up and tell its budget before the first job."""

    cost_unit: ClassVar[str] = "bytes"
    """What `cost` counts, for people: "tokens", "pixels", "seconds of audio"."""

    concurrent_forward: bool = False
    """Whether `forward` may run on several threads at once. A CPU then gives each batch some of its cores instead of
    all of them to one, which does more work in the same time. May be set by `load`."""

    dtype: str = "float32"
    """What `batchyard.toml` asks to compute in: "float32", "bfloat16", "float16", "int8" or "auto". Set before `load`;
    a model that heeds it by itself names what it can do in `dtypes`."""

    dtypes: Sequence[str] = ()
    """What it can compute in beside float32."""

    compile: str = "off"
    """Whether `batchyard.toml` asks to compile it: "off", "on" or "auto". Set before `load`."""

    source: str = ""
    """Where the weights are, as written in `batchyard.toml`, with `package:` already turned into a folder.

    Set before `load`.
    """

    options: dict[str, Any] = {}  # noqa: RUF012  replaced per instance before `load`, never mutated
    """The `options` table of the model's section in `batchyard.toml`. Set before `load`."""

    def load(self, device: str) -> None:
        """Bring the weights to `device` ("cpu", "cuda:0"). Never called in the path of a request."""

    def preprocess(self, inputs: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
        """Turn decoded inputs into items, one per input, same order.

        An `InvalidInput` in an item's place fails that input alone. Where the call raises, it is repeated with halves
        of its inputs until the guilty ones stand alone.
        Inputs of one call share `params`. `{"$payload": id}` anywhere in an input has already become `bytes`.
        """
        return inputs

    def cost(self, item: Any) -> int:
        """Exact size of one item in `cost_unit`, at least 1: what the batch budget counts, and its place by length."""
        return 1

    def cache_key(self, item: Any) -> str | bytes | None:
        """What tells an item from those that come to another result, where `cache_seconds` is set; None: compute it.

        The version, the job's parameters and its tenant are told apart beside it. A model that does not define this
        tells jobs apart by their whole input.
        """
        return None

    def forward(self, items: Sequence[Any]) -> Any:
        """Run one batch on the device and return its outputs, in any form that `postprocess` reads."""
        raise NotImplementedError(f"{type(self).__qualname__} must define forward(items)")

    def postprocess(self, outputs: Any) -> Sequence[Any]:
        """Turn outputs into results, one per item, same order.

        Results are JSON-like values that may hold NumPy arrays or CPU tensors; an array or tensor whose rows are the
        results is encoded as a whole.
        """
        results: Sequence[Any] = outputs
        return results


class ContinuousModel(Model):
    """A model whose jobs join and leave between steps instead of going through in batches: text generation, or a
    server elsewhere that is kept full.

    `join`, `step`, `partial`, `leave` and `close` are called by one thread, in turn. `forward` is not called; `cost` is
    asked once more when a job has ended, and may know better then.
    """

    most_jobs: int = 64
    """How many may be inside at once. May be set by `load`."""

    def join(self, key: int, item: Any) -> None:
        """Let a prepared item in; what this raises fails its job alone."""
        raise NotImplementedError(f"{type(self).__qualname__} must define join(key, item)")

    def step(self) -> Sequence[tuple[int, Any]]:
        """Go on for a moment and return what has ended: keys with their outputs, or with an exception, which fails
        that job alone. Where nothing moves, wait for it, but no longer than a tenth of a second.

        Where the call raises, everybody leaves and joins again in smaller company, until the guilty stand alone.
        """
        raise NotImplementedError(f"{type(self).__qualname__} must define step()")

    def partial(self, item: Any) -> Any:
        """What a reader may see of an item inside, JSON-like; None: nothing yet. Asked about once a second."""
        return None

    def leave(self, key: int) -> None:
        """A job inside is not wanted any more."""
        raise NotImplementedError(f"{type(self).__qualname__} must define leave(key)")

    def close(self) -> None:
        """The consumer ends: let go of threads and connections. Nothing is called after it."""
