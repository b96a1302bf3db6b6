"""A fully connected layer whose training on CPUs goes through oneDNN."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fsmer.kernels.compiled import plain_in_memory

__all__ = ["OneDnnLinear", "has_onednn"]


class OneDnnLinear(nn.Linear):
    """`torch.nn.Linear` that takes its products in training from oneDNN where it can, and else from torch's own BLAS.

    Both come with torch; oneDNN is the quicker on AMD processors, for which the other is not made. It can on a CPU, for
    float32 without autocast, for inputs of shape (B, in_features), and gives no second derivatives. Without gradients
    nothing changes, so that answers stay those of `torch.nn.Linear` to the bit.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, out_features) of (B, in_features)."""
        values = (input, self.weight) if self.bias is None else (input, self.weight, self.bias)
        possible: Any = (
            torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu") and torch.backends.mkldnn.enabled
        )
        possible = possible and input.ndim == 2 and len(input) > 0 and input.shape[1] == self.in_features
        possible = possible and plain_in_memory(*values) and has_onednn()
        return _Product.apply(input, self.weight, self.bias) if possible else super().forward(input)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        slopes = slopes.contiguous()
        of_inputs, of_weight, of_bias = ctx.needs_input_grad
        return (
            _linear(slopes, weight.T) if of_inputs else None,
            _linear(slopes.T, inputs.T) if of_weight else None,
            slopes.sum(dim=0) if of_bias else None,
        )


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # What torch.compile makes of a linear layer on a CPU.
    found: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return found


@functools.cache
def has_onednn() -> bool:
    """Whether this build of torch has the operator and it does what `torch.nn.functional.linear` does."""
    inputs, weight = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
    try:
        return torch.equal(_linear(inputs, weight), inputs @ weight.T)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
