"""RevNets are those of the paper: counts of table 1, gradients of plain autograd, an error for other depths."""

from __future__ import annotations

import pytest
import torch

from dldw.errors import DldwError
from dldw.nn import revnet


@pytest.mark.parametrize(("depth", "millions"), [(38, 0.46), (110, 1.73), (164, 1.75)])
def test_parameter_counts_are_those_of_table_1(depth, millions):
    with torch.device("meta"):
        assert round(sum(p.numel() for p in revnet(depth).parameters()) / 1e6, 2) == millions


def test_the_large_one_has_the_parameters_and_the_depth_of_the_paper():
    with torch.device("meta"):
        model = revnet(104)
        assert model(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
    assert abs(sum(p.numel() for p in model.parameters()) / 45.2e6 - 1) < 0.01
    main = [p for name, p in model.named_parameters() if p.ndim == 4 and "first" not in name and "second" not in name]
    assert len(main) + 1 == 104  # convolutions and the last layer, shortcuts not counted


@pytest.mark.parametrize("depth", [38, 164])
def test_gradients_and_statistics_are_those_of_plain_autograd(depth):
    found = []
    for mode in ("reversible", "plain"):
        torch.manual_seed(0)
        model = revnet(depth, classes=5, in_channels=1, backward=mode).double()
        images = torch.randn(4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        model(images).square().sum().backward()
        found.append([*(p.grad for p in model.parameters()), *model.buffers()])
    assert all(torch.allclose(a.double(), b.double(), rtol=1e-8, atol=1e-8) for a, b in zip(*found, strict=True))


def test_a_depth_that_the_paper_does_not_have_is_an_error():
    with pytest.raises(DldwError, match=r"no RevNet-50 in the paper; it has 38, 110, 164, 104. For another shape use"):
        revnet(50)
