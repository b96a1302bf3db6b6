"""Inside `second_order` every network has gradients that can be differentiated again, equal to those outside."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from small_models import NAMES, clips_for, small_model

from fsmer.backbones import read_inputs
from fsmer.backbones.mubert_networks import log_diagonal_attention
from fsmer.kernels.differentiation import is_second_order, second_order


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_every_network_can_be_differentiated_again(name: str) -> None:
    model = small_model(name)
    media = read_inputs(model, clips_for(model, 3), np.arange(3))
    trained = [value for value in model.parameters() if value.requires_grad]

    def loss() -> torch.Tensor:
        return model(media).square().sum()

    outside = torch.autograd.grad(loss(), trained, allow_unused=True)
    with second_order():
        scalar = loss()
    first = torch.autograd.grad(scalar, trained, create_graph=True, allow_unused=True)
    used = [number for number, slope in enumerate(first) if slope is not None]
    assert used == [number for number, slope in enumerate(outside) if slope is not None]
    largest = max(float(outside[number].abs().max()) for number in used)
    for number in used:
        torch.testing.assert_close(first[number], outside[number], rtol=1e-3, atol=1e-4 * largest)
    length = sum(first[number].square().sum() for number in used)
    curvature = torch.autograd.grad(length, trained, allow_unused=True)
    assert all(slope.isfinite().all() for slope in curvature if slope is not None)
    assert any(bool(slope.any()) for slope in curvature if slope is not None)


def test_second_derivatives_are_those_of_torchs_layers_in_double_precision() -> None:
    model = small_model("fr")
    media, weight = read_inputs(model, clips_for(model, 3), np.arange(3)), model.shared.weight

    def curvature(media: torch.Tensor) -> torch.Tensor:
        (slope,) = torch.autograd.grad(model(media).square().sum(), weight, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), weight)[0]

    with second_order():
        found = curvature(media)
    model.double()
    torch.testing.assert_close(found.double(), curvature(media.double()), rtol=1e-3, atol=1e-5)


def test_attention_to_the_own_place_is_the_same_where_it_is_differentiated_again() -> None:
    rows, columns = torch.randn(2, 2, 20, 8).unbind()
    rows.requires_grad_()
    outside = log_diagonal_attention(rows, columns)
    with second_order():
        inside = log_diagonal_attention(rows, columns)
    torch.testing.assert_close(inside, outside)
    (slope,) = torch.autograd.grad(inside.exp().sum(), rows, create_graph=True)
    torch.testing.assert_close(slope, torch.autograd.grad(outside.exp().sum(), rows)[0])
    assert torch.autograd.grad(slope.square().sum(), rows)[0].isfinite().all()


def test_fast_layers_come_back_behind_it_even_after_an_error_and_in_other_threads() -> None:
    seen = []

    @second_order()
    def fail() -> None:
        thread = threading.Thread(target=lambda: seen.append(is_second_order()))
        thread.start()
        thread.join()
        assert is_second_order()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [False]
    assert not is_second_order()
    assert torch.backends.cuda.flash_sdp_enabled()
