"""What has to hold on the device that the weights are on: an accelerator where there is one, else the processor."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

import dldw
from dldw.nn.reformer import Reformer, ReformerConfig
from dldw.registry import METHODS, method
from tests.contract import problems
from tests.test_reversible import Branch, by_hand, chain, gradients, inputs, same

DEVICE = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def there(value):
    return tree_map_only(torch.Tensor, lambda t: t.to(DEVICE), value)


def numbers(*shape, seed=0):
    return there(torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


def mean_square(model, x):
    return model(x).square().mean(1)


def mlp():
    torch.manual_seed(0)
    return there(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double())


@pytest.mark.parametrize("name", [name for name in METHODS if method(name).card.needs != "episodes"])
def test_every_method_trains_there_and_repeats_itself(name):
    def trained(seed):
        problem = problems.homes(name)[0]()
        model, batch = problem.model.to(DEVICE), there(problem.batch)
        generator = torch.Generator(DEVICE).manual_seed(seed)
        learner = method(name).build(model, problem.loss, generator)
        before = [p.detach().clone() for p in model.parameters()]
        losses = [learner.step(batch) for _ in range(10)]
        after = [p.detach() for p in model.parameters()]
        assert all(loss.device == p.device == there(torch.empty(0)).device for loss in losses for p in after)
        assert all(bool(p.isfinite().all()) for p in after)
        assert any(not torch.equal(p, q) for p, q in zip(before, after, strict=True))
        return after

    assert all(torch.equal(p, q) for p, q in zip(trained(1), trained(1), strict=True))


@pytest.mark.parametrize(
    "make",
    [dldw.EvolutionStrategy, dldw.LowRankEvolution, partial(dldw.LowRankEvolution, rank=2), dldw.SPSA, dldw.MeZO],
)
def test_a_population_in_one_pass_gives_what_one_by_one_gives(make):
    found = []
    for evaluate in ("batched", "sequential"):
        model = mlp()
        make(mean_square, evaluate=evaluate, generator=torch.Generator(DEVICE).manual_seed(0))(model, numbers(5, 6))
        found.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("backward", ["reversible", "checkpoint"])
def test_what_is_random_is_replayed_in_the_backward_pass(backward):
    module, x = there(chain(lambda: Branch(drop=0.5), backward=backward)), there(inputs(grad=False)).requires_grad_()
    found, after = gradients(module, x, lambda: module(x)), torch.empty(3, device=DEVICE).uniform_()
    assert same(found, gradients(module, x, lambda: by_hand(module, x)))
    assert torch.equal(after, torch.empty(3, device=DEVICE).uniform_()), "the random state ends as with plain autograd"


def test_buckets_drawn_in_the_forward_pass_are_those_of_the_backward_pass():
    config = ReformerConfig(
        16, width=16, layers=("local", "lsh"), heads=2, hidden=16, positions=(32,), hashes=2, chunk=8
    )
    torch.manual_seed(0)
    reversible = there(Reformer(config).double())
    plain, tokens = copy.deepcopy(reversible), there(torch.randint(16, (2, 32)))
    plain.backward = "plain"
    found = []
    for model in (reversible, plain):
        torch.manual_seed(5)
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        found.append([p.grad for p in model.parameters()])
    assert same(*found, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_gradient_is_judged_there(dtype):
    def wrong(model, x):
        value = mean_square(model, x)
        if value.requires_grad:
            model[0].weight.register_hook(lambda g: 2 * g)
        return value

    x = numbers(5, 6).to(dtype)
    assert dldw.check(mlp().to(dtype), mean_square, x).verdict == "right"
    result = dldw.check(mlp().to(dtype), wrong, x)
    assert result.verdict == "wrong"
    assert [part.name for part in result.wrong] == ["0.weight"]


def test_the_random_numbers_of_a_key_are_made_there():
    for distribution in ("rademacher", "gaussian"):
        out = dldw.noise.fill(there(torch.empty(100_000)), distribution, (1, 2), 3)
        assert out.device.type == DEVICE.type
        assert abs(float(out.mean())) < 0.02
        assert abs(float(out.square().mean()) - 1) < 0.03
        assert torch.equal(out, dldw.noise.fill(torch.empty_like(out), distribution, (1, 2), 3))
