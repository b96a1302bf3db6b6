"""The fully connected layer that trains through oneDNN computes what `torch.nn.Linear` computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fsmer.backbones import create_model
from fsmer.kernels import dense
from fsmer.kernels.dense import OneDnnLinear

HAS_ONEDNN = dense.has_onednn()


def twins(width=70, out=33, bias=True):
    """The layer and torch's own with the same weights."""
    torch.manual_seed(0)
    layer, plain = OneDnnLinear(width, out, bias=bias), nn.Linear(width, out, bias=bias)
    plain.load_state_dict(layer.state_dict())
    return layer, plain


def slopes_of(layer, inputs, asked):
    inputs = inputs.clone().requires_grad_(asked)
    found = layer(inputs)
    (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum().backward()
    return [found.detach(), *[value.grad for value in layer.parameters()], *([inputs.grad] if asked else [])]


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("clips", [1, 32])
def test_answers_and_slopes_are_those_of_torch_nn_linear(clips, bias, asked):
    layer, plain = twins(bias=bias)
    inputs = torch.randn(clips, 70)
    found, expected = slopes_of(layer, inputs, asked), slopes_of(plain, inputs, asked)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_inputs_whose_channels_do_not_lie_together_are_the_same_inputs():
    layer, plain = twins()
    inputs = torch.randn(70, 9).T
    for one, other in zip(slopes_of(layer, inputs, True), slopes_of(plain, inputs, True), strict=True):
        torch.testing.assert_close(one, other)


def test_no_clips_and_a_wrong_width_are_treated_as_torch_treats_them():
    layer, _ = twins()
    assert layer(torch.zeros(0, 70)).shape == (0, 33)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.zeros(4, 5))


@pytest.mark.skipif(not HAS_ONEDNN, reason="this build of torch has no oneDNN")
def test_onednn_is_taken_in_training_only():
    layer, _ = twins()
    inputs = torch.randn(4, 70)
    assert "_Product" in type(layer(inputs).grad_fn).__name__
    with torch.no_grad():
        assert layer(inputs).grad_fn is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(inputs).dtype == torch.bfloat16
    assert "_Product" not in type(layer.double()(inputs.double()).grad_fn).__name__


def test_without_gradients_answers_are_equal_to_the_bit():
    layer, plain = twins()
    inputs = torch.randn(32, 70)
    with torch.no_grad():
        assert torch.equal(layer(inputs), plain(inputs))


def test_without_onednn_torch_takes_over(monkeypatch):
    layer, plain = twins()
    inputs = torch.randn(8, 70)
    monkeypatch.setattr(dense, "has_onednn", lambda: False)
    assert torch.equal(layer(inputs), plain(inputs))


def test_members_side_by_side_are_trained_as_one_by_one():
    layer, plain = twins()
    inputs = torch.randn(3, 8, 70)

    def loss(weights, inputs):
        return torch.func.functional_call(layer, weights, (inputs,)).square().sum()

    weights = dict(layer.named_parameters())
    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, inputs)
    for member in range(3):
        plain.zero_grad()
        plain(inputs[member]).square().sum().backward()
        torch.testing.assert_close(found["weight"][member], plain.weight.grad, rtol=1e-4, atol=1e-4)


def test_fr_keeps_its_weights_names_and_trains_through_the_layer():
    model = create_model("fr")
    assert isinstance(model.shared, OneDnnLinear)
    assert isinstance(model.proposal.units, OneDnnLinear)
    assert {"shared.weight", "shared.bias", "proposal.units.weight"} <= set(model.state_dict())
