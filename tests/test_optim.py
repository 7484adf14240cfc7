"""Forward passes behind the interface of an optimizer."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dldw
from dldw import noise
from dldw.perturbed import StandIn
from dldw.weights import Weights
from tests.contract.checks import seeded

TOKENS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 0]])


class Tied(nn.Module):
    """An embedding that is the output head too, a norm, a convolution, a recurrent layer and attention."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(12, 8), nn.LayerNorm(8)
        self.convolution = nn.Conv1d(8, 8, 3, padding=1)
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, ids):
        x = self.norm(self.embed(ids))
        x = x + self.convolution(x.mT).mT
        x = x + self.recurrent(x)[0]
        x = x + self.attention(x, x, x)[0]
        return F.linear(x, self.embed.weight)


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tied().double()


def loss(model, ids):
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


SOURCES = {
    "low rank": lambda loss: dldw.LowRankEvolution(loss, sigma=1e-2, population=2, generator=seeded(1)),
    "mezo": lambda loss: dldw.MeZO(loss, sigma=1e-2, generator=seeded(1)),
    "mezo, many": lambda loss: dldw.MeZO(loss, sigma=1e-2, directions=3, evaluate="sequential", generator=seeded(1)),
    "one weight": lambda loss: dldw.WeightPerturbation(loss, weights=3, generator=seeded(1)),
}


def same(one, two):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("tile", [1 << 20, 16], ids=["one tile", "tiles"])
@pytest.mark.parametrize("name", SOURCES)
def test_the_optimizer_makes_the_steps_of_the_learner_that_is_given_the_model(name, tile, monkeypatch):
    """The oracle reads perturbed weights from the model's own slots; the optimizer sees no model."""
    monkeypatch.setattr(noise, "TILE", tile)
    ours, theirs = network(), network()
    weights = Weights.of(theirs).tensors
    names = {id(p): name for name, p in theirs.named_parameters()}
    own = dict(ours.named_parameters())
    ordered = [own[names[id(p)]] for p in weights]
    optimizer = dldw.optim.ForwardOnly(ordered, 0.05, source=SOURCES[name], momentum=0.5, weight_decay=0.01)
    learner = dldw.ForwardOnly(theirs, SOURCES[name](loss), 0.05, momentum=0.5, weight_decay=0.01)
    for _ in range(3):
        value = optimizer.step(lambda: loss(ours, TOKENS))
        torch.testing.assert_close(value, learner.step(TOKENS), rtol=1e-12, atol=1e-12)
    assert all(p.grad is None for p in ours.parameters())
    assert not same(ours, network())
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)


def test_weights_are_not_written_while_they_are_probed():
    """What lies in memory is read past torch, which would hand over what stands in."""
    model, seen = network(), []
    memory = [p.detach().numpy() for p in model.parameters()]
    before = [m.copy() for m in memory]
    optimizer = dldw.optim.ForwardOnly(model.parameters(), 0.1, source="mezo")

    def written():
        return not all(map(np.array_equal, memory, before))

    def closure():
        seen.append(written())
        return loss(model, TOKENS)

    with pytest.raises(KeyError):
        optimizer.step(lambda: {}[closure()])
    assert (seen, written()) == ([False], False)
    optimizer.step(closure)
    assert (any(seen), written()) == (False, True)


def test_products_and_embeddings_get_stand_ins_and_not_sums(monkeypatch):
    model, made = nn.Sequential(nn.Embedding(12, 8), nn.Linear(8, 12)), []
    monkeypatch.setattr(StandIn, "materialised", lambda self: made.append(self))
    optimizer = dldw.optim.ForwardOnly(model.parameters(), 0.1)
    optimizer.step(lambda: model(TOKENS).square().mean())
    assert made == []


def test_dropout_sees_the_same_mask_at_every_point_and_the_random_state_moves_once():
    model = nn.Sequential(nn.Linear(5, 64), nn.Dropout(0.5))
    x, masks = torch.ones(3, 5), []

    def closure():
        y = model(x)
        masks.append(y == 0)
        return y.square().mean()

    torch.manual_seed(0)
    dldw.optim.ForwardOnly(model.parameters(), 0.0).step(closure)
    assert torch.equal(masks[0], masks[1])
    after = torch.rand(1)
    torch.manual_seed(0)
    model(x)
    assert torch.equal(after, torch.rand(1))


def test_schedulers_set_the_rate_of_every_step():
    model = nn.Linear(3, 2).double()
    optimizer = dldw.optim.ForwardOnly(model.parameters(), 0.5, source=partial(dldw.MeZO, generator=seeded(0)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step == 1))
    moved = []
    for _ in range(3):
        before = copy.deepcopy(model)
        optimizer.step(lambda: model(torch.ones(4, 3, dtype=torch.float64)).square().mean())
        schedule.step()
        moved.append(not same(model, before))
    assert moved == [False, True, False]


@pytest.mark.parametrize("momentum", [0.0, 0.9, dldw.RecentMomentum(0.9, 2)], ids=str)
def test_a_saved_run_goes_on_bit_for_bit(momentum, tmp_path):
    def run(model, steps, state=None):
        optimizer = dldw.optim.ForwardOnly(model.parameters(), 0.05, source="mezo", momentum=momentum)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        if state is not None:
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
        for _ in range(steps):
            optimizer.step(lambda: loss(model, TOKENS))
            schedule.step()
        return {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}

    torch.manual_seed(3)
    whole, model = network().bfloat16(), network().bfloat16()
    run(whole, 5)
    torch.save(run(model, 2), tmp_path / "state")
    torch.manual_seed(4)  # another key, were it not for the state
    run(model, 3, torch.load(tmp_path / "state", weights_only=True))
    assert same(model, whole)


def test_nothing_of_the_size_of_the_weights_is_held():
    model = network()
    optimizer = dldw.optim.ForwardOnly(model.parameters(), 0.05)
    optimizer.step(lambda: loss(model, TOKENS))
    state = optimizer.state_dict()
    assert state["state"] == {}
    assert state["run"]["update"] == {"moments": [], "lost": []}


def test_it_learns():
    model = network()
    optimizer = dldw.optim.ForwardOnly(model.parameters(), 0.005, source=SOURCES["mezo, many"])
    losses = [float(optimizer.step(lambda: loss(model, TOKENS))) for _ in range(100)]
    assert losses[-1] < 0.7 * losses[0]


# --- bad input -----------------------------------------------------------------------------------------------------


def optimizer_of(model, **settings):
    return dldw.optim.ForwardOnly(model.parameters(), 0.1, **settings)


def frozen():
    return nn.Linear(2, 1).requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: optimizer_of(frozen()), r"has no trainable parameter: all its 2 parameters have requires_grad=False"),
        (lambda: optimizer_of(nn.Linear(2, 1), source="backprop"), r"estimates along directions, .*got 'backprop'"),
        (lambda: optimizer_of(nn.Linear(2, 1), source="mezzo"), r"there is no method 'mezzo'. Did you mean 'mezo'\?"),
        (lambda: optimizer_of(nn.Linear(2, 1), source=dldw.MeZO(loss)), r"a function of the loss, got .*Give 'mezo' or"),
        (lambda: optimizer_of(nn.Linear(2, 1), rounding="up"), r"rounding must be one of nearest, stochastic"),
        (lambda: dldw.optim.ForwardOnly([{"params": [p], "lr": 0.1} for p in nn.Linear(2, 1).parameters()]),
         r"got 2 groups of parameters, .*Pass all parameters as one group"),
        (lambda: optimizer_of(nn.Linear(2, 1)).step(), r"step needs a closure: .*Call optimizer.step\(lambda:"),
        (lambda: optimizer_of(nn.Linear(2, 1)).load_state_dict(torch.optim.SGD([torch.ones(1)]).state_dict()),
         r"the saved state is not that of ForwardOnly: it has no key"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_the_reason(make, text):
    with pytest.raises(dldw.DldwError, match=text):
        make()


def test_a_closure_that_calls_backward_is_told_to_leave_it_out():
    model = nn.Linear(2, 1)
    optimizer = optimizer_of(model)

    def closure():
        value = model(torch.ones(1, 2)).square().mean()
        value.backward()
        return value

    with pytest.raises(dldw.DldwError, match=r"called backward\(\), .* leave out backward\(\) and zero_grad\(\)"):
        optimizer.step(closure)


def test_a_gradient_scaler_is_refused_with_the_reason_and_a_disabled_one_is_not():
    model = nn.Linear(2, 1)
    before, optimizer = copy.deepcopy(model), optimizer_of(model)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    with pytest.raises(dldw.DldwError, match=r"a GradScaler multiplies .*there is no \.grad.*autocast of bf16"):
        scaler.step(optimizer, lambda: model(torch.ones(1, 2)).square().mean())
    assert same(model, before)
    torch.amp.GradScaler("cpu", enabled=False).step(optimizer, lambda: model(torch.ones(1, 2)).square().mean())
    assert not same(model, before)


def test_weights_that_the_closure_does_not_hand_to_torch_are_noticed():
    model = nn.Linear(2, 1)
    weight, bias = model.weight.detach(), model.bias.detach()
    with pytest.raises(dldw.DldwError, match=r"does not depend on the model's trainable weights"):
        optimizer_of(model).step(lambda: F.linear(torch.ones(1, 2), weight, bias).square().mean())
