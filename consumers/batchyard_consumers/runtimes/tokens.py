"""Texts as tokens: made on CPU threads, padded to one shape where the device's thread needs them."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from batchyard.errors import InvalidInput

Ids = np.ndarray[Any, np.dtype[np.int64]]
SAMPLE_TOKENS = 32


class Tokenizer:
    """A fast tokenizer of transformers, for any number of threads; `padded` is the device's."""

    def __init__(self, tokenizer: Any, *, max_tokens: int | None, device: str) -> None:
        """Longer texts are cut at `max_tokens`, or where the tokenizer itself says."""
        self.max_tokens: int = min(max_tokens or tokenizer.model_max_length, tokenizer.model_max_length)
        self.pad_id: int = tokenizer.pad_token_id or 0
        self._names = frozenset(tokenizer.model_input_names)
        self._device = device
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.no_padding()
        if self.max_tokens < 1_000_000:  # what a tokenizer without a limit says is far above
            self._backend.enable_truncation(self.max_tokens)
        self._local = threading.local()

    def ids(self, texts: Sequence[str]) -> list[Ids]:
        """The tokens of each text, special ones included."""
        return [
            np.array(encoding.ids, dtype=np.int64) for encoding in self._of_this_thread().encode_batch_fast(list(texts))
        ]

    def encodings(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[Any]:
        """`tokenizers.Encoding` of each text or pair of texts, with offsets into the text."""
        return list(self._of_this_thread().encode_batch(list(texts)))

    def padded(self, rows: Sequence[Ids], types: Sequence[Ids] | None = None) -> dict[str, torch.Tensor]:
        """Rows of tokens on the device as [rows, longest], int64, with their mask; `types` are those of pairs."""
        lengths = [len(ids) for ids in rows]
        shape = (len(rows), max(lengths))
        tokens = np.full(shape, self.pad_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for row, (ids, length) in enumerate(zip(rows, lengths, strict=True)):
            tokens[row, :length] = ids
            mask[row, :length] = 1
        features = {"input_ids": tokens, "attention_mask": mask}
        if "token_type_ids" in self._names:
            features["token_type_ids"] = kinds = np.zeros(shape, dtype=np.int64)
            for row, of_row in enumerate(types or ()):
                kinds[row, : len(of_row)] = of_row
        return {name: torch.from_numpy(array).to(self._device, non_blocking=True) for name, array in features.items()}

    def samples(self, cost: int) -> list[Ids]:
        """Rows to warm up with, of about that many tokens together."""
        return [self._sample(SAMPLE_TOKENS)] * max(1, cost // SAMPLE_TOKENS)

    def shapes(self) -> list[list[Ids]]:
        """One row, and several; a compiler makes something of its own of a single one."""
        # Numbers that differ, or it takes rows and lengths for one and the same.
        return [[self._sample(SAMPLE_TOKENS + 5)] * rows for rows in (1, 3)]

    def _sample(self, tokens: int) -> Ids:
        return np.full(tokens, self.pad_id, dtype=np.int64)

    def _of_this_thread(self) -> Any:
        tokenizer = getattr(self._local, "tokenizer", None)
        if tokenizer is None:
            # Fast tokenizers are not made for several threads at once.
            tokenizer = self._local.tokenizer = copy.deepcopy(self._backend)
        return tokenizer


def misfit(given: object, *, wanted: str) -> InvalidInput:
    """What is said of an input of the wrong kind."""
    return InvalidInput(f"an input is {wanted}, not {_json_kind(given)}")


def is_stateless(module: torch.nn.Module) -> bool:
    """Whether no pass changes what another one reads: rotary positions of some kinds are computed anew as lengths
    change."""
    rotary = {str(getattr(part, "rope_type", "")) for part in module.modules()}
    return not any("dynamic" in kind or "longrope" in kind for kind in rotary)


def _json_kind(value: object) -> str:
    if value is None:
        return "null"
    kinds = {bool: "a boolean", dict: "an object", list: "an array", bytes: "a payload", str: "a string"}
    return kinds.get(type(value), "a number")
