"""Boltzmann machines on top of each other, and the ordinary network that comes of them."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dldw
from tests.contract.checks import seeded
from tests.test_rbm import DOUBLE, bars, machine

quick = partial(torch.optim.SGD, lr=0.5)


def network(**settings):
    torch.manual_seed(0)
    return dldw.nn.stack([dldw.nn.RBM(16, 12, **settings), dldw.nn.RBM(12, 6)])


def test_features_are_those_of_one_machine_on_those_of_the_other():
    lower, upper = machine(5, 4, visible_units="gaussian", variance=0.3), machine(4, 2, seed=9)
    both = dldw.nn.stack([lower, upper])
    v = torch.randn(7, 5, dtype=DOUBLE, generator=seeded())
    assert torch.equal(both(v), upper(lower(v)))
    plain = both.sequential()
    assert [type(layer) for layer in plain] == [nn.Linear, nn.Sigmoid] * 2
    assert torch.allclose(plain(v), both(v))
    with torch.no_grad():
        plain[0].weight.zero_()
    assert lower.weight.count_nonzero() == 20  # the network has copies


def test_pre_training_makes_the_data_likelier_to_each_machine():
    v, both = bars(), network()
    before = [rbm.log_likelihood(x).mean for rbm, x in zip(both, (v, both.rbms[0](v).detach()), strict=True)]
    assert before[0] == pytest.approx(-16 * math.log(2), abs=0.1)
    errors = both.pretrain(v.repeat(5, 1), epochs=60, batch_size=20, optimizer=quick, generator=seeded())
    assert [len(e) for e in errors] == [60, 60]
    assert errors[0][-1] < 0.7 * errors[0][0]
    assert errors[1][-1] < errors[1][0]
    first = both.rbms[0]
    assert first.log_likelihood(v).mean > before[0] + 2
    assert both.rbms[1].log_likelihood(first(v).detach()).mean > -12 * math.log(2)


def test_samples_of_the_network_have_its_visible_units_and_come_from_the_generator():
    both = network()
    before = torch.get_rng_state()
    a, b, c = (both.sample(20, steps=3, generator=seeded(seed)) for seed in (1, 1, 2))
    assert a.shape == (20, 16)
    assert set(a.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


def test_same_generator_same_network():
    found = []
    for seed in (1, 1, 2):
        both = network()
        both.pretrain(bars(), epochs=2, batch_size=9, generator=seeded(seed))
        found.append(torch.cat([p.detach().flatten() for p in both.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_source_and_optimizer_are_what_is_asked_for():
    made = []

    def source(generator):
        made.append(dldw.ContrastiveDivergence(2, persistent=True, generator=generator))
        return made[-1]

    still = network()
    before = [p.detach().clone() for p in still.parameters()]
    still.pretrain(bars(), epochs=1, source=source, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    assert len(made) == 2
    assert all(torch.equal(p, b) for p, b in zip(still.parameters(), before, strict=True))


def test_a_bar_is_drawn_by_whom_the_caller_names_and_by_nobody_else(capsys):
    from rich.progress import track

    both, seen = network(), []

    def progress(numbers, what):
        for number in numbers:
            seen.append((what, number))
            yield number

    both.pretrain(bars(), epochs=2, progress=progress)
    assert seen == [
        (f"machine {i} of 2: {units} units", n) for i, units in ((1, "16 to 12"), (2, "12 to 6")) for n in (0, 1)
    ]
    assert capsys.readouterr().out == ""
    both.pretrain(bars(), epochs=2, progress=track)
    assert "machine 1 of 2" in capsys.readouterr().out


@pytest.mark.parametrize("make", [dldw.Backprop, lambda loss: dldw.SPSA(loss, directions=32, generator=seeded())])
def test_the_network_is_fine_tuned_by_any_source(make):
    v = bars()
    labels = (v.sum(1) > 8).long()  # most of the image lit
    both = network()
    both.pretrain(v, epochs=60, batch_size=10, optimizer=quick, generator=seeded())
    torch.manual_seed(0)
    plain = both.sequential(outputs=2)
    source = make(lambda model, batch: cross_entropy(model(batch[0]), batch[1], reduction="none"))
    learner = dldw.Descent(plain, source, torch.optim.Adam(plain.parameters(), lr=0.02))
    losses = [float(learner.step((v, labels))) for _ in range(60)]
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: dldw.nn.stack([]), "at least one machine, got none"),
        (
            lambda: dldw.nn.stack([machine(4, 3), machine(2, 2)]),
            "has 2 visible units but the one below it 3 hidden ones",
        ),
        (lambda: network().pretrain(bars(), epochs=0), "must be at least 1, got 0 and 100"),
        (lambda: network().pretrain(bars()[:, :5]), r"data must be a tensor \[\.\.\., 16\]"),
    ],
)
def test_errors(make, text):
    with pytest.raises(dldw.DldwError, match=text):
        make()
