"""The question's method to the letter: one random weight, one nudge, two predictions, one quotient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import dldw


class Three(nn.Module):
    """Sixteen weights in three tensors of very different sizes, one of them without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.one = nn.Parameter(torch.randn((), dtype=torch.float64, generator=generator))
        self.few = nn.Parameter(torch.randn(3, dtype=torch.float64, generator=generator))
        self.many = nn.Parameter(torch.randn(4, 3, dtype=torch.float64, generator=generator))

    def flat(self) -> torch.Tensor:
        return torch.cat([p.reshape(-1) for p in (self.one, self.few, self.many)])


def curved(model: Three, _) -> torch.Tensor:
    w = model.flat()
    return (w.square() * torch.arange(1, 17, dtype=torch.float64)).sum() + w.sin().sum()


def gradient(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])


class Recorded:
    """A loss that keeps the weights it was evaluated at and what it gave."""

    def __init__(self, loss) -> None:
        self.loss, self.seen = loss, []

    def __call__(self, model, batch):
        value = self.loss(model, batch)
        self.seen.append((model.flat().detach().clone(), float(value.detach())))
        return value


@pytest.fixture(scope="module")
def steps():
    """(weights, which one moved, by how much, both losses, the gradient) of many steps."""
    model, loss = Three(), Recorded(curved)
    nudge = dldw.WeightPerturbation(loss, generator=torch.Generator().manual_seed(1))
    nudge(model, None)
    own = model.flat().detach().clone()
    rows = []
    for _ in range(3200):
        loss.seen.clear()
        model.zero_grad()
        nudge(model, None)
        assert len(loss.seen) == 2
        first = loss.seen[0][0]
        at_own = 0 if torch.equal(first, own) else 1
        (before, l_original), (after, l_updated) = loss.seen[at_own], loss.seen[1 - at_own]
        assert torch.equal(before, own)
        moved = (after != before).nonzero().flatten()
        rows.append((moved, after - before, l_original, l_updated, gradient(model)))
    return rows


def test_each_step_predicts_twice_with_one_weight_changed(steps):
    assert all(len(moved) == 1 for moved, *_ in steps)


def test_only_that_weight_gets_a_gradient(steps):
    for moved, _, _, _, g in steps:
        assert torch.equal(g.nonzero().flatten(), moved)


def test_the_gradient_is_the_change_of_the_loss_over_the_change_of_the_weight(steps):
    for moved, change, l_original, l_updated, g in steps:
        i = int(moved)
        # w + dw is rounded, so dw is known to one unit in the last place of w
        slack = 4 * torch.finfo(torch.float64).eps * 3 / abs(float(change[i])) + 1e-12
        assert float(g[i]) == pytest.approx((l_updated - l_original) / float(change[i]), rel=slack)


def test_every_weight_of_the_model_is_picked_equally_often(steps):
    counts = torch.bincount(torch.tensor([int(moved) for moved, *_ in steps]), minlength=16).double()
    expected = len(steps) / 16
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert chi_squared < 50  # 15 degrees of freedom: exceeded by chance once in 80,000


def test_the_nudge_is_uniform_between_low_and_high(steps):
    dw = torch.stack([change.sum() for _, change, *_ in steps]).sort().values
    assert float(dw.min()) >= -0.1 - 1e-12
    assert float(dw.max()) < 0.1 + 1e-12
    n = len(dw)
    uniform = (dw + 0.1) / 0.2
    steps_up = torch.arange(1, n + 1, dtype=torch.float64) / n
    distance = float(torch.maximum((steps_up - uniform).abs(), (uniform - steps_up + 1 / n).abs()).max())
    assert distance < math.sqrt(math.log(2 / 1e-5) / (2 * n))  # Kolmogorov-Smirnov, once in 100,000


def test_the_nudge_does_not_depend_on_the_weight_picked(steps):
    which = torch.tensor([int(moved) for moved, *_ in steps]).double()
    dw = torch.stack([change.sum() for _, change, *_ in steps])
    correlation = float(torch.corrcoef(torch.stack([which, dw]))[0, 1])
    assert abs(correlation) < 4.5 / math.sqrt(len(steps))


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.3), (-1.0, -0.5), (0.0, 1e-3)])
def test_low_and_high_are_the_callers(low, high):
    model, loss = Three(), Recorded(curved)
    nudge = dldw.WeightPerturbation(loss, low=low, high=high, generator=torch.Generator().manual_seed(2))
    own = model.flat().detach().clone()
    for _ in range(200):
        loss.seen.clear()
        nudge(model, None)
        change = sum(float((w - own).sum()) for w, _ in loss.seen[:2])
        assert low - 1e-12 <= change <= high + 1e-12
        assert change != 0


def test_a_nudge_of_zero_is_drawn_again():
    """Between 0 and the smallest positive number half of all draws round to 0, and 0/0 is no gradient."""

    class Zero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    tiny = 5e-324
    model = Zero()
    nudge = dldw.WeightPerturbation(
        lambda m, _: m.w.sum(), low=0.0, high=tiny, generator=torch.Generator().manual_seed(0)
    )
    for _ in range(64):
        model.zero_grad()
        nudge(model, None)
        assert float(model.w.grad) == 1.0


def test_several_weights_share_the_original_prediction():
    model, loss = Three(), Recorded(curved)
    nudge = dldw.WeightPerturbation(loss, weights=5, generator=torch.Generator().manual_seed(3))
    nudge(model, None)
    loss.seen.clear()
    model.zero_grad()
    nudge(model, None)
    own = model.flat().detach()
    assert sum(torch.equal(w, own) for w, _ in loss.seen) == 1
    assert [int((w != own).sum()) for w, _ in loss.seen if not torch.equal(w, own)] == [1] * 5
    changed = torch.zeros(16, dtype=torch.bool)
    for w, _ in loss.seen:
        changed |= w != own
    assert torch.equal(gradient(model) != 0, changed)


def test_a_weight_picked_twice_gets_both_quotients():
    model = nn.Linear(1, 1, bias=False).double()
    nudge = dldw.WeightPerturbation(lambda m, x: m(x).sum(), weights=4, generator=torch.Generator().manual_seed(3))
    nudge(model, torch.ones(1, 1, dtype=torch.float64))
    assert float(model.weight.grad) == pytest.approx(4.0, rel=1e-9)


def test_frozen_weights_are_never_picked_and_a_tied_weight_counts_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double()
    model[0].bias.requires_grad_(False)
    model[1].weight = model[0].weight
    nudge = dldw.WeightPerturbation(lambda m, x: m(x).square().sum(1), generator=torch.Generator().manual_seed(4))
    counts = {"weight": 0, "bias": 0}
    for _ in range(600):
        model.zero_grad()
        nudge(model, torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
        counts["weight"] += int(bool(model[0].weight.grad.any()))
        counts["bias"] += int(bool(model[1].bias.grad.any()))
    assert model[0].bias.grad is None
    assert sum(counts.values()) == 600
    assert abs(counts["weight"] - 400) < 4.5 * math.sqrt(600 * 2 / 9)  # four of the six trainable weights


def test_on_a_linear_loss_the_mean_estimate_is_the_gradient_over_d_and_the_variance_is_known():
    """ghat = g_i e_i with probability 1/d, so that E ghat = g/d and E‖ghat‖² = ‖g‖²/d."""
    model = Three()
    slope = torch.linspace(-2, 2, 16, dtype=torch.float64)
    nudge = dldw.WeightPerturbation(lambda m, _: m.flat() @ slope, generator=torch.Generator().manual_seed(5))
    n = 4000
    draws = torch.empty(n, 16, dtype=torch.float64)
    for i in range(n):
        model.zero_grad()
        nudge(model, None)
        draws[i] = gradient(model)
    z = (draws.mean(0) - slope / 16) / (draws.std(0) / math.sqrt(n))
    assert float(z.abs().max()) < 4.5
    squares = draws.square().sum(1)
    wanted = float(slope @ slope) / 16
    assert abs(float(squares.mean()) - wanted) < 4.5 * float(squares.std()) / math.sqrt(n)


def test_the_one_sided_quotient_is_off_by_half_the_nudge_times_the_curvature():
    model = nn.Linear(1, 1, bias=False).double()
    weight = float(model.weight.detach())
    seen = []

    def loss(m, _):
        seen.append(float(m.weight.detach()))
        return 3 * m.weight.square().sum()

    dldw.WeightPerturbation(loss, generator=torch.Generator().manual_seed(6))(model, None)
    dw = sum(w - weight for w in seen[:2])
    assert float(model.weight.grad) == pytest.approx(6 * weight + dw / 2 * 6, rel=1e-9)


@pytest.mark.parametrize(("sign", "falls"), [(-1, True), (+1, False)])
def test_the_loss_rises_with_the_plus_of_the_text_and_falls_with_a_minus(sign, falls):
    """w <- w + sign * gamma * dL/dw on a regression; the text says plus."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(32, 3, dtype=torch.float64, generator=generator)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    model = nn.Linear(3, 1).double()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()

    def loss(m, batch):
        return (m(batch[0]) - batch[1]).square().mean(1)

    nudge = dldw.WeightPerturbation(loss, generator=generator)
    start = float(loss(model, (x, y)).mean())
    for _ in range(200):
        model.zero_grad()
        nudge(model, (x, y))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(p.grad, alpha=sign * 0.05)
    end = float(loss(model, (x, y)).mean())
    assert (end < 0.1 * start) if falls else (end > 10 * start)
