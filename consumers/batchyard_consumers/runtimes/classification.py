"""The runtimes `text-classification` and `reranking`: a text, or a pair of texts, to the scores of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from batchyard.errors import InvalidInput
from batchyard_consumers.runtimes import proofs
from batchyard_consumers.runtimes.pretrained import Pretrained
from batchyard_consumers.runtimes.tokens import Ids, misfit

TEXT_OR_PAIR = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {"text": {"type": "string"}, "text_pair": {"type": "string"}},
            "required": ["text"],
            "additionalProperties": False,
        },
    ]
}


class Row(NamedTuple):
    """One row of a batch."""

    ids: Ids
    types: Ids
    top: int | None
    """How many labels are wanted, best first; None: the best alone, without a list."""


class TextClassification(Pretrained):
    """A text, or `{"text", "text_pair"}`, in; `{"label", "score"}` out, or `{"labels"}`, as `Pretrained` says."""

    input_schema: ClassVar[dict[str, Any]] = TEXT_OR_PAIR
    _head = "AutoModelForSequenceClassification"

    def preprocess(self, inputs: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
        top = self._top(params)
        given = [_text_or_pair(value) for value in inputs]
        rows = iter(_rows(self, [value for value in given if not isinstance(value, InvalidInput)], top=top))
        return [value if isinstance(value, InvalidInput) else next(rows) for value in given]

    def cost(self, item: Row) -> int:
        return len(item.ids)

    def forward(self, items: Sequence[Row]) -> tuple[torch.Tensor, Sequence[Row]]:
        """Logits [batch, labels], float32, on the CPU; and what was asked of each row."""
        features = self._tokenizer.padded([row.ids for row in items], [row.types for row in items])
        return self._logits(features), items

    def postprocess(self, outputs: tuple[torch.Tensor, Sequence[Row]]) -> Sequence[Any]:
        logits, rows = outputs
        return self._labelled(logits, [row.top for row in rows])

    def _sampled(self, rows: Sequence[Ids]) -> list[Any]:
        return [Row(ids, ids * 0, None) for ids in rows]


class Reranking(Pretrained):
    """`{"query", "documents"}` in; `{"scores"}` out, one for each document, in their order; higher fits better.

    The model is a cross-encoder with one label. Option `activation`: `sigmoid` (scores from 0 to 1) or `none`.
    """

    input_schema: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {
            "query": {"type": "string"},
            "documents": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 1000},
        },
        "required": ["query", "documents"],
        "additionalProperties": False,
    }
    _head = "AutoModelForSequenceClassification"

    def load(self, device: str) -> None:
        wanted = self.options.get("activation", "sigmoid")
        if wanted not in ("sigmoid", "none"):
            raise ValueError(f'the option activation is "sigmoid" or "none", not {wanted!r}')
        super().load(device)
        if len(self._labels) != 1:
            raise ValueError(f"a model that ranks has one label, and this one has {len(self._labels)}")
        self._is_bounded = wanted == "sigmoid"

    def preprocess(self, inputs: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
        pairs = [(value["query"], document) for value in inputs for document in value["documents"]]
        rows = iter(_rows(self, pairs, top=None))
        return [[next(rows) for _ in value["documents"]] for value in inputs]

    def cost(self, item: Sequence[Row]) -> int:
        """Of all its documents, padded to the longest of them."""
        return len(item) * max(len(row.ids) for row in item)

    pads = False

    def forward(self, items: Sequence[Sequence[Row]]) -> list[list[float]]:
        rows = [row for item in items for row in item]
        features = self._tokenizer.padded([row.ids for row in rows], [row.types for row in rows])
        logits = self._logits(features)[:, 0]
        scores = iter((logits.sigmoid() if self._is_bounded else logits).tolist())
        return [[next(scores) for _ in item] for item in items]

    def postprocess(self, outputs: list[list[float]]) -> Sequence[Any]:
        return [{"scores": scores} for scores in outputs]

    def proofs(self) -> list[Any]:
        return [{"query": proofs.TEXTS[1], "documents": list(proofs.TEXTS)}]

    def agreement(self, reference: list[list[float]], outputs: list[list[float]]) -> float:  # type: ignore[override]
        """One less the furthest that a score, from 0 to 1, is from its reference."""
        seen, expected = torch.tensor(outputs[0]), torch.tensor(reference[0])
        if not self._is_bounded:
            seen, expected = seen.sigmoid(), expected.sigmoid()
        return 1.0 - float((seen - expected).abs().max())

    def _sampled(self, rows: Sequence[Ids]) -> list[Any]:
        return [[Row(ids, ids * 0, None)] for ids in rows]


def _text_or_pair(value: Any) -> str | tuple[str, str] | InvalidInput:
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        other = value.get("text_pair")
        return value["text"] if other is None else (value["text"], str(other))
    return misfit(value, wanted='a string or {"text": …, "text_pair": …}')


def _rows(model: Pretrained, texts: Sequence[Any], *, top: int | None) -> list[Row]:
    """Tokens of texts and pairs in the order given."""
    return [
        Row(np.array(found.ids, dtype=np.int64), np.array(found.type_ids, dtype=np.int64), top)
        for found in model._tokenizer.encodings(texts)
    ]
