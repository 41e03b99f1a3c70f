"""The runtime `token-classification`: a text to the spans that a model finds in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from batchyard_consumers.runtimes.pretrained import Pretrained
from batchyard_consumers.runtimes.tokens import Ids, misfit

NOTHING = "O"


class Text(NamedTuple):
    """A text and its tokens; `spans` are characters (start, end) of each, None of a special one."""

    text: str
    ids: Ids
    spans: Sequence[tuple[int, int] | None]


class TokenClassification(Pretrained):
    """A text in; `{"entities": [{"label", "score", "text", "start", "end"}, …]}` out, in their order.

    Neighbouring tokens of one label are one entity, and a label's `B-` begins a new one; `start` and `end` count
    characters, the score is the mean of its tokens' probabilities. What the model labels `O` is left out.
    """

    input_schema: ClassVar[dict[str, Any]] = {"type": "string"}
    _head = "AutoModelForTokenClassification"

    def preprocess(self, inputs: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
        good = [text for text in inputs if isinstance(text, str)]
        found = iter(self._tokenizer.encodings(good))
        return [
            _tokens(text, next(found)) if isinstance(text, str) else misfit(text, wanted="a string") for text in inputs
        ]

    def cost(self, item: Text) -> int:
        return len(item.ids)

    def forward(self, items: Sequence[Text]) -> tuple[torch.Tensor, Sequence[Text]]:
        """Logits [batch, longest, labels], float32, on the CPU; and the texts."""
        return self._logits(self._tokenizer.padded([item.ids for item in items])), items

    def postprocess(self, outputs: tuple[torch.Tensor, Sequence[Text]]) -> Sequence[Any]:
        logits, texts = outputs
        best = logits.softmax(dim=-1).max(dim=-1)
        return [
            {"entities": self._entities(text, places, scores)}
            for text, places, scores in zip(texts, best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def agreement(self, reference: tuple[torch.Tensor, Any], outputs: tuple[torch.Tensor, Any]) -> float:
        """One less the furthest that a token's probability is from its reference; padding says nothing."""
        far = (reference[0].softmax(-1) - outputs[0].softmax(-1)).abs().amax(-1)
        return 1.0 - max(float(row[: len(text.ids)].max()) for row, text in zip(far, reference[1], strict=True))

    def _sampled(self, rows: Sequence[Ids]) -> list[Any]:
        return [Text("", ids, [None] * len(ids)) for ids in rows]

    def _entities(self, text: Text, places: Sequence[int], scores: Sequence[float]) -> list[dict[str, Any]]:
        entities: list[tuple[str, list[float], int, int]] = []
        before = NOTHING
        # A row of the batch may be longer than its text: padding is no token of it.
        for span, place, score in zip(text.spans, places, scores, strict=False):
            if span is None:
                continue
            prefix, label = _parts(self._labels[place])
            if label != NOTHING:
                if label == before and prefix != "B":
                    _, found, start, _ = entities.pop()
                    entities.append((label, [*found, score], start, span[1]))
                else:
                    entities.append((label, [score], *span))
            before = label
        return [
            {"label": label, "score": sum(found) / len(found), "text": text.text[start:end], "start": start, "end": end}
            for label, found, start, end in entities
        ]


def _tokens(text: str, encoding: Any) -> Text:
    spans = [
        None if is_special else span
        for span, is_special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    ]
    return Text(text, np.array(encoding.ids, dtype=np.int64), spans)


def _parts(label: str) -> tuple[str, str]:
    """The prefix of the scheme and what it labels: ("B", "PER") of "B-PER", ("", "PER") of "PER"."""
    return (label[0], label[2:]) if label[:2] in ("B-", "I-") else ("", label)
