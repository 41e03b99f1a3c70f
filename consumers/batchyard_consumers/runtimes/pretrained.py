"""Models of the transformers library as they come into memory: weights, configuration, tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from batchyard.errors import InvalidInput, ModelLoadError
from batchyard.model import Model
from batchyard_consumers.precision import InDtypes
from batchyard_consumers.runtimes import proofs
from batchyard_consumers.runtimes.sources import attention, origin
from batchyard_consumers.runtimes.tokens import Ids, Tokenizer, is_stateless


class Pretrained(Model):
    """A model with one of the library's heads.

    Options: `revision`, `trust_remote_code`, `attention`, `max_tokens` (longer texts are cut). Weights are read from
    safetensors alone, because unpickling runs what a file says.

    Those that classify give `{"label", "score"}`, and with `top_k` in the options or a job's params
    `{"labels": [{"label", "score"}, …]}`, best first. Scores are probabilities: of each label by itself where the
    model says that several may hold, or has only one, else of one among all; a model of regression gives its value.
    """

    cost_unit = "tokens"
    dtypes = ("bfloat16", "float16", "int8")
    tolerance = 0.99

    _head: str
    """Name of the library's class that brings the head."""
    _module: Any
    _tokenizer: Tokenizer
    _labels: list[str]

    def load(self, device: str) -> None:
        self._load_module(device)
        self._tokenizer = self._load_tokenizer(device)

    def use_dtype(self, name: str, *, for_good: bool) -> None:
        """See `precision.py`."""
        self._module = self._in_dtypes.use(self._module, name, for_good=for_good)

    @property
    def compilable(self) -> Any:
        """See `compiling.py`."""
        return self._module

    def shapes(self) -> Iterable[list[Any]]:
        """See `compiling.py`."""
        return map(self._sampled, self._tokenizer.shapes())

    def samples(self, cost: int) -> list[Any]:
        """Items to warm up with."""
        return self._sampled(self._tokenizer.samples(cost))

    def _sampled(self, rows: Sequence[Ids]) -> list[Any]:
        """Items of these tokens."""
        raise NotImplementedError

    def proofs(self) -> list[Any]:
        return list(proofs.TEXTS)

    def agreement(self, reference: tuple[torch.Tensor, Any], outputs: tuple[torch.Tensor, Any]) -> float:
        """One less the furthest that a probability is from its reference."""
        far = self._probabilities(reference[0]) - self._probabilities(outputs[0])
        return 1.0 - float(far.abs().max())

    def _load_module(self, device: str) -> None:
        import transformers

        kind = getattr(transformers, self._head)
        self._module = (
            kind.from_pretrained(
                self.source, use_safetensors=True, dtype=torch.float32, **origin(self), **attention(self)
            )
            .to(device)
            .eval()
        )
        self._in_dtypes = InDtypes(device)
        names = self._module.config.id2label
        self._labels = [str(names[place]) for place in range(len(names))]
        self.concurrent_forward = not origin(self)["trust_remote_code"] and is_stateless(self._module)

    def _load_tokenizer(self, device: str) -> Tokenizer:
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(self.source, **origin(self))
        if not tokenizer.is_fast:
            raise ModelLoadError("its tokenizer has no fast form (tokenizer.json), which this runtime needs")
        places = getattr(self._module.config, "max_position_embeddings", None)
        limits = [limit for limit in (self.options.get("max_tokens"), places) if isinstance(limit, int) and limit > 0]
        return Tokenizer(tokenizer, max_tokens=min(limits, default=None), device=device)

    def _logits(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """[rows, …, labels], float32, on the CPU."""
        logits: torch.Tensor = self._module(**features).logits.float().cpu()
        return logits

    def _top(self, params: dict[str, Any]) -> int | None:
        """How many labels are wanted; None: the best alone, without a list. InvalidInput."""
        top = params.get("top_k", self.options.get("top_k"))
        if top is not None and (not isinstance(top, int) or isinstance(top, bool) or top < 1):
            raise InvalidInput(f"top_k is a whole number from 1, not {top!r}")
        return top

    def _labelled(self, logits: torch.Tensor, tops: Sequence[int | None]) -> list[Any]:
        """The result of each row of `logits` [batch, labels]."""
        most = min(max(top or 1 for top in tops), len(self._labels))
        best = torch.topk(self._probabilities(logits), most, dim=-1)
        named = [
            [{"label": self._labels[place], "score": score} for place, score in zip(places, found, strict=True)]
            for places, found in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        return [labels[0] if top is None else {"labels": labels[:top]} for labels, top in zip(named, tops, strict=True)]

    def _probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        kind = self._module.config.problem_type
        if kind == "regression":
            return logits
        if kind == "multi_label_classification" or len(self._labels) == 1:
            return logits.sigmoid()
        return logits.softmax(dim=-1)
