"""Text generation against the library's own, on a small model of random weights."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from batchyard.errors import InvalidInput
from batchyard.jobs import State
from batchyard_consumers.runtimes.generation import Prompt, TextGeneration
from batchyard_consumers.runtimes.sources import resolve_source
from tests.unit.consumers.line import Line, until, value_of
from tests.unit.consumers.tiny import TOKENIZER, loaded

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    folder = tmp_path_factory.mktemp("g")
    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve_source(TOKENIZER, model="m"))
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        initializer_range=0.4,
        eos_token_id=None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[TextGeneration]:
    made: TextGeneration = loaded("text-generation", folder, cache_tokens=4096)
    yield made
    made.close()


def prompts(model: TextGeneration, values: list[Any], **params: Any) -> list[Any]:
    return list(model.preprocess(values, params))


def generate(model: TextGeneration, items: list[Prompt]) -> list[Any]:
    """All of them together, through the model's own seam."""
    for key, item in enumerate(items):
        model.join(key, item)
    outputs: dict[int, Any] = {}

    def is_done() -> bool:
        outputs.update(model.step())
        return len(outputs) == len(items)

    until(is_done)
    return list(model.postprocess([outputs[key] for key in range(len(items))]))


def test_the_likeliest_tokens_are_the_library_s(model: TextGeneration) -> None:
    texts = ["a man sleeps", "the capital of France is", "one two three four five six seven"]
    found = generate(model, prompts(model, texts, max_tokens=12))
    for text, one in zip(texts, found, strict=True):
        ids = model._tokenizer(text, return_tensors="pt")["input_ids"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own
            expected = _greedy(model, ids, 12)
        assert one["text"] == model._tokenizer.decode(expected, skip_special_tokens=True)
        assert one["usage"] == {"prompt_tokens": ids.shape[1], "completion_tokens": 12}
        assert one["finish_reason"] == "length"


def _greedy(model: TextGeneration, ids: torch.Tensor, count: int) -> list[int]:
    """Token by token, without cache or batch."""
    import transformers

    network = transformers.LlamaForCausalLM.from_pretrained(model.source).eval()
    with torch.inference_mode():
        for _ in range(count):
            ids = torch.cat([ids, network(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    found: list[int] = ids[0, -count:].tolist()
    return found


def test_generation_stops_where_the_model_ends(model: TextGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    (item,) = prompts(model, ["a man sleeps"], max_tokens=9)
    generate(model, [item])
    monkeypatch.setattr(model, "_ends", lambda: item.generated[8])
    assert model._result(item)["finish_reason"] == "stop"
    assert model.cost(item) == len(item.ids) + 9


def test_generation_ends_before_a_text_that_is_a_stop(model: TextGeneration) -> None:
    [whole] = generate(model, prompts(model, ["a man sleeps"], max_tokens=12))
    words = whole["text"].split()
    stop = words[len(words) // 2]
    cut, asked_in_vain = generate(
        model, [*prompts(model, ["a man sleeps"], max_tokens=12, stop=stop), *prompts(model, ["x"], stop=["\0", "\1"])]
    )
    assert cut["text"] == whole["text"][: whole["text"].index(stop)]
    assert cut["finish_reason"] == "stop"
    assert cut["usage"]["completion_tokens"] <= 12
    assert asked_in_vain["finish_reason"] == "length"


@pytest.mark.parametrize("stop", ["", ["x", ""], 7, ["x"] * 17])
def test_a_stop_is_a_text_or_a_few(model: TextGeneration, stop: Any) -> None:
    with pytest.raises(InvalidInput, match="stop is a text, or a list of up to 16"):
        model.preprocess(["x"], {"stop": stop})


def test_one_request_that_breaks_the_loop_fails_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TextGeneration()
    model.source = str(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        line = Line({"m": model}, options={"most_jobs": 4, "cache_tokens": 2048, "max_tokens": 4})
    [poison] = model._tokenizer("poison", add_special_tokens=False)["input_ids"]
    compute = model._module.forward

    def breaking(*arguments: Any, **named: Any) -> Any:
        if (named["input_ids"] == poison).any():
            raise RuntimeError("not this one")
        return compute(*arguments, **named)

    monkeypatch.setattr(model._module, "forward", breaking)
    with line:
        views = line.finish(line.submit("m", ["one", "two", "a poison", "three", "four", "five"]))
    assert [value_of(view) if view.error else "good" for view in views] == [*["good"] * 2, "model_error", *["good"] * 3]
    assert views[2].error is not None
    assert "not this one" in views[2].error.message
    assert {view.failures for view in views} == {0, 1}


def test_each_request_samples_as_it_asks(model: TextGeneration) -> None:
    warm = prompts(model, ["a man"] * 6, temperature=5.0, max_tokens=8)
    cold = prompts(model, ["a man"] * 6, max_tokens=8)
    found = [one["text"] for one in generate(model, [item for pair in zip(warm, cold, strict=True) for item in pair])]
    assert len(set(found[0::2])) > 1
    assert len(set(found[1::2])) == 1


def test_messages_go_through_the_chat_template(model: TextGeneration) -> None:
    asked = {"messages": [{"role": "user", "content": "hello"}]}
    (item,) = prompts(model, [asked])
    assert item.ids == model._tokenizer("user: hello ", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("value", "params", "words"),
    [
        ("word " * 300, {}, "are more than the 256"),
        ("x", {"max_tokens": 300}, "are more than the 256"),
        (7, {}, "an input is a prompt"),
        ({"messages": []}, {}, "an input is a prompt"),
    ],
)
def test_what_does_not_fit_fails_alone(model: TextGeneration, value: Any, params: dict[str, Any], words: str) -> None:
    found = prompts(model, ["good", value], **{"max_tokens": 4, **params} if value != "x" else params)
    assert isinstance(found[1], InvalidInput)
    assert words in found[1].message


@pytest.mark.parametrize("params", [{"temperature": -1}, {"top_k": 1.5}, {"top_p": "x"}, {"max_tokens": True}])
def test_parameters_out_of_bounds_are_refused(model: TextGeneration, params: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"is a .*number from"):
        model.preprocess(["x"], params)


def test_one_that_leaves_frees_its_place(model: TextGeneration) -> None:
    gone, stays = prompts(model, ["a man", "a woman"], max_tokens=200)
    model.join(100, gone)
    until(lambda: model.step() or gone.generated)
    assert model.partial(gone)["text"]
    model.leave(100)
    stays.max_tokens = 5
    model.join(101, stays)
    ended: list[int] = []

    def has_ended() -> bool:
        ended.extend(key for key, _ in model.step())
        return bool(ended)

    until(has_ended)
    assert ended == [101]


def test_jobs_go_through_the_whole_pipeline(folder: Path) -> None:
    model = TextGeneration()
    model.source = str(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        line = Line({"m": model}, options={"most_jobs": 4, "cache_tokens": 2048, "max_tokens": 6})
    with line:
        views = line.finish(line.submit("m", [f"number {n}" for n in range(12)] + [3]))
    assert [view.state for view in views] == [State.SUCCEEDED] * 12 + [State.FAILED]
    assert value_of(views[12]) == "invalid_input"
    first = value_of(views[0])
    assert first["usage"]["completion_tokens"] == 6
    assert views[0].cost == sum(first["usage"].values())
