"""Linear layers with int8 weights."""

import copy

import pytest
import torch

from batchyard_consumers import int8
from batchyard_consumers.int8 import Int8Linear, quantize


@pytest.mark.parametrize("inputs", [3 * int8.GROUP, int8.GROUP + 1])
@pytest.mark.parametrize("has_bias", [True, False])
def test_products_are_near_those_of_the_weights(inputs: int, has_bias: bool) -> None:
    torch.manual_seed(1)
    linear = torch.nn.Linear(inputs, 5, bias=has_bias)
    given = torch.randn(2, 7, inputs)
    found = Int8Linear(linear, dtype=torch.float32)(given)
    assert found.shape == (2, 7, 5)
    assert torch.nn.functional.cosine_similarity(found, linear(given), dim=-1).min() > 0.999
    assert not torch.equal(found, linear(given))


def test_every_weight_is_within_half_a_step_of_what_it_was() -> None:
    torch.manual_seed(2)
    linear = torch.nn.Linear(2 * int8.GROUP, 8)
    with torch.no_grad():
        linear.weight[:, : int8.GROUP] *= 100  # the other group has a scale of its own
        linear.weight[3] = 0
    made = Int8Linear(linear, dtype=torch.float32)
    off = ((made.weight * made.scale).flatten(1) - linear.weight).abs().reshape(made.weight.shape)
    assert (off <= made.scale * 0.5001).all()
    assert made.weight.abs().max() == int8.LARGEST


class Tricky(torch.nn.Linear):
    """Read by others in ways of their own."""


def test_linear_layers_alone_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "has_bfloat16", lambda device: True)
    module = torch.nn.Sequential(
        torch.nn.Embedding(3, 64), torch.nn.Sequential(torch.nn.Linear(64, 64)), Tricky(64, 2), torch.nn.LayerNorm(2)
    )
    before = copy.deepcopy(module)
    quantize(module, device="cpu")
    assert [type(part) for part in (module[0], module[1][0], module[2])] == [torch.nn.Embedding, Int8Linear, Tricky]  # type: ignore[index]
    assert {part.dtype for part in module.parameters()} == {torch.bfloat16}
    found, expected = module(torch.tensor([0, 1, 2])), before(torch.tensor([0, 1, 2]))
    assert found.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(found.float(), expected, dim=-1).min() > 0.98


def test_without_instructions_for_bfloat16_the_rest_stays_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True})
    module = torch.nn.Sequential(torch.nn.Linear(64, 2))
    quantize(module, device="cpu")
    assert module(torch.ones(1, 64)).dtype == torch.float32
