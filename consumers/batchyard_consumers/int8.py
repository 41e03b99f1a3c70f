"""Linear layers with int8 weights: a quarter of the memory of float32, multiplied in the dtype of what comes in.

Weights alone are rounded, each group of neighbours by a scale of its own. Rounding what they multiply as well would use
the integer units of a CPU, but takes embeddings too far from those in float32 to be taken for them.
"""

from __future__ import annotations

import torch

GROUP = 64
"""Weights of one output that share a scale; fewer are closer to the original and take more memory for their scales."""
LARGEST = 127


class Int8Linear(torch.nn.Module):
    """A linear layer made from one with floating weights."""

    weight: torch.Tensor
    """[outputs, groups, weights of a group], int8."""
    scale: torch.Tensor
    """[outputs, groups, 1]: what a weight of 1 stands for."""
    bias: torch.Tensor | None

    def __init__(self, linear: torch.nn.Linear, *, dtype: torch.dtype) -> None:
        super().__init__()
        has_bias = bool(linear.bias is not None)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        group = GROUP if linear.in_features % GROUP == 0 else linear.in_features
        grouped = linear.weight.detach().float().reshape(linear.out_features, -1, group)
        largest = grouped.abs().amax(-1, keepdim=True)
        # Rounded first, so that the weights are rounded to what they will be multiplied by.
        scale = (largest / LARGEST).clamp_min(torch.finfo(dtype).tiny).to(dtype)
        rounded = (grouped / scale.float()).round().clamp(-LARGEST, LARGEST)
        self.register_buffer("weight", rounded.to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", linear.bias.detach().to(dtype) if has_bias else None)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        # Made anew for each pass: little beside the product, as long as a batch has more tokens than the layer outputs.
        weight = (self.weight.to(given.dtype) * self.scale).flatten(1)
        return torch.nn.functional.linear(given, weight, self.bias)


def quantize(module: torch.nn.Module, *, device: str) -> None:
    """Round the weights of a module's linear layers, and bring the rest to what the device multiplies best."""
    dtype = torch.bfloat16 if has_bfloat16(device) else torch.float32
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            # Exactly these: subclasses are read by others in their own ways.
            if type(child) is torch.nn.Linear:
                setattr(parent, name, Int8Linear(child, dtype=dtype))
    module.to(dtype)


def has_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 by instructions of its own."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16") or known.get("bf16"))
