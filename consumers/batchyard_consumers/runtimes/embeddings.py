"""The runtime `sentence-transformers`: texts to embeddings, the same rows as the library's own `encode`.

Items are token ids made on CPU threads, so that the device's thread only pads and computes. A model whose first module
is not a plain text transformer goes the library's own way at forward, with its text as the item.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, ClassVar

import torch

from batchyard.errors import InvalidInput
from batchyard.model import Model
from batchyard_consumers.precision import InDtypes, narrow
from batchyard_consumers.runtimes import proofs
from batchyard_consumers.runtimes.sources import attention, is_local
from batchyard_consumers.runtimes.tokens import SAMPLE_TOKENS, Tokenizer, is_stateless, misfit


class SentenceEmbeddings(Model):
    """One text in, one float32 vector out, normalised where the model's modules say so.

    Options: `prompt` or `prompt_name` (as for `encode`), `truncate_dim`, `normalize`, `max_seq_length`, `attention`,
    `revision`, `trust_remote_code`. A job's params may hold `prompt` or `prompt_name`.
    """

    input_schema: ClassVar[dict[str, Any]] = {"type": "string"}
    cost_unit: ClassVar[str] = "tokens"
    dtypes = ("bfloat16", "float16", "int8")
    tolerance = 0.999

    _encoder: Any
    _tokenizer: Tokenizer | None = None
    """Set where texts are turned into tokens here."""
    _device: str
    _truncate_dim: int | None

    def load(self, device: str) -> None:
        from sentence_transformers import SentenceTransformer

        options = self.options
        self._encoder = SentenceTransformer(
            self.source,
            device=device,
            local_files_only=is_local(self.source),
            revision=options.get("revision"),
            trust_remote_code=bool(options.get("trust_remote_code", False)),
            truncate_dim=options.get("truncate_dim"),
            # Anything but safetensors is unpickled, which runs what a file says.
            model_kwargs={"use_safetensors": True, **attention(self)},
        )
        self._encoder.eval()
        if "max_seq_length" in options:
            self._encoder.max_seq_length = int(options["max_seq_length"])
        self._in_dtypes = InDtypes(device, _narrowed)
        self._device = device
        self._truncate_dim = self._encoder.truncate_dim
        if _is_plain_text(self._encoder):
            limit = self._encoder.max_seq_length
            self._tokenizer = Tokenizer(self._encoder.tokenizer, max_tokens=limit, device=device)
            # A repository's own code may do anything.
            self.concurrent_forward = not options.get("trust_remote_code", False) and is_stateless(self._encoder)

    def preprocess(self, inputs: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
        texts = [text if isinstance(text, str) else None for text in inputs]
        prompt = self._prompt(params)
        good = [prompt + text for text in texts if text is not None]
        prepared = iter(self._tokenizer.ids(good) if self._tokenizer is not None else good)
        return [
            next(prepared) if text is not None else misfit(given, wanted="a string")
            for text, given in zip(texts, inputs, strict=True)
        ]

    def cost(self, item: Any) -> int:
        # About four characters make a token, where the library does the tokenizing.
        return len(item) if self._tokenizer is not None else len(item) // 4 + 1

    def forward(self, items: Sequence[Any]) -> torch.Tensor:
        """[batch, dimension], float32, on the CPU."""
        features = self._padded(items) if self._tokenizer is not None else self._by_library(items)
        embeddings = self._encoder(features)["sentence_embedding"]
        if self._truncate_dim is not None:
            embeddings = embeddings[..., : self._truncate_dim]
        if self.options.get("normalize", False):
            embeddings = torch.nn.functional.normalize(embeddings, p=2, dim=1)
        result: torch.Tensor = embeddings.float().cpu()
        return result

    def use_dtype(self, name: str, *, for_good: bool) -> None:
        """See `precision.py`."""
        self._encoder = self._in_dtypes.use(self._encoder, name, for_good=for_good)

    @property
    def compilable(self) -> Any:
        """See `compiling.py`."""
        return self._encoder[0].auto_model

    def shapes(self) -> Iterable[list[Any]]:
        """See `compiling.py`."""
        if self._tokenizer is None:
            return (self.samples(SAMPLE_TOKENS * rows) for rows in (1, 3))
        return self._tokenizer.shapes()

    def proofs(self) -> list[Any]:
        return list(proofs.TEXTS)

    def agreement(self, reference: torch.Tensor, outputs: torch.Tensor) -> float:
        """The least cosine of a row with its reference."""
        return float(torch.nn.functional.cosine_similarity(reference, outputs, dim=1).min())

    def samples(self, cost: int) -> list[Any]:
        """Items to warm up with."""
        if self._tokenizer is None:
            return ["a sample " * (SAMPLE_TOKENS // 2)] * max(1, cost // SAMPLE_TOKENS)
        return self._tokenizer.samples(cost)

    def _padded(self, items: Sequence[Any]) -> dict[str, Any]:
        assert self._tokenizer is not None
        return {**self._tokenizer.padded(items), "modality": "text"}

    def _by_library(self, texts: Sequence[str]) -> dict[str, Any]:
        features = self._encoder.preprocess(list(texts))
        return {name: v.to(self._device) if isinstance(v, torch.Tensor) else v for name, v in features.items()}

    def _prompt(self, params: dict[str, Any]) -> str:
        """The text put before every input: as the job asks, else as the options do, else the model's default."""
        for given in (params, self.options):
            if isinstance(given.get("prompt"), str):
                return str(given["prompt"])
            if given.get("prompt_name") is not None:
                return self._named_prompt(given["prompt_name"])
        default = self._encoder.default_prompt_name
        return str(self._encoder.prompts.get(default) or "") if default is not None else ""

    def _named_prompt(self, name: object) -> str:
        prompts = self._encoder.prompts
        if not isinstance(name, str) or name not in prompts:
            known = ", ".join(sorted(prompts)) or "none"
            raise InvalidInput(f"the model has no prompt named {name!r}; it has: {known}")
        return str(prompts[name] or "")


def _narrowed(encoder: Any, dtype: torch.dtype, device: str) -> Any:
    """A copy whose first module computes in that dtype; pooling and normalising stay in float32, so that rows of length
    1 are of length 1."""
    made = copy.deepcopy(encoder)
    narrow(made[0], dtype, device)
    made[0].register_forward_hook(_widened)
    return made


def _widened(_module: torch.nn.Module, _given: Any, features: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in features.items()
    }


def _is_plain_text(encoder: Any) -> bool:
    """Whether tokenizing, padding and masking are all that stands between a text and the first module."""
    first = encoder[0]
    with suppress(AttributeError):
        return (
            type(first).__name__ == "Transformer"
            and list(first.modality_config) == ["text"]
            and not first.processing_kwargs
            and first.query_expansion is None
            and first.tokenizer.is_fast
            and first.tokenizer.padding_side == "right"
            and not any(getattr(module, "include_prompt", True) is False for module in encoder)
            and not first._should_flatten_inputs("text", {})
        )
    return False
