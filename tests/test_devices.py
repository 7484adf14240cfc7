"""What has to hold on the device that the weights are on: an accelerator where there is one, else the processor."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

import dldw
from dldw.nn.reformer import Reformer, ReformerConfig
from dldw.registry import METHODS, method
from tests import standin
from tests.contract import problems
from tests.test_reversible import Branch, by_hand, chain, gradients, inputs, same

DEVICE = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
STEADY = pytest.mark.parametrize(
    "build", [b for b in problems.ALL if b is not problems.dropout], ids=lambda build: build.__name__
)
"""Every kind of model but one: an accelerator draws a mask by other kernels alone than in a population."""


def there(value):
    return tree_map_only((torch.Tensor, nn.Module), lambda t: t.to(DEVICE), value)


def there_too(problem):
    problem.model, problem.batch = there((problem.model, problem.batch))
    return problem


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
        model, loss, batch = there_too(problems.homes(name)[0]())
        generator = torch.Generator(DEVICE).manual_seed(seed)
        learner = method(name).build(model, loss, generator)
        before = [p.detach().clone() for p in model.parameters()]
        losses = [learner.step(batch) for _ in range(10)]
        after = [p.detach() for p in model.parameters()]
        assert all(loss.device == p.device == there(torch.empty(0)).device for loss in losses for p in after)
        assert all(bool(p.isfinite().all()) for p in after)
        assert any(not torch.equal(p, q) for p, q in zip(before, after, strict=True))
        return after

    assert all(torch.equal(p, q) for p, q in zip(trained(1), trained(1), strict=True))


@STEADY
@pytest.mark.parametrize(
    "make",
    [dldw.EvolutionStrategy, dldw.LowRankEvolution, partial(dldw.LowRankEvolution, rank=2), dldw.SPSA, dldw.MeZO],
    ids=["full", "rank 1", "rank 2", "signs", "normal"],
)
def test_a_population_in_one_pass_gives_what_one_by_one_gives(make, build):
    found = []
    for evaluate in ["auto" if build.__name__ in problems.NOT_BATCHED else "batched", "sequential"]:
        problem = there_too(build())
        torch.manual_seed(0)
        source = make(problem.loss, evaluate=evaluate, generator=torch.Generator(DEVICE).manual_seed(0))
        source(problem.model, problem.batch)
        found.append([p.grad for p in problem.trainable])
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(*found, strict=True))


@STEADY
def test_the_full_numerical_gradient_is_the_exact_one(build):
    problem = there_too(build())
    dldw.FiniteDifference(problem.loss)(problem.model, problem.batch)
    assert same([p.grad for p in problem.trainable], problem.autograd(), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_log_of_updates_is_the_run(dtype, tmp_path):
    model, x = mlp().to(dtype), numbers(5, 6).to(dtype)
    base = copy.deepcopy(model)
    source = dldw.MeZO(mean_square, directions=2, generator=torch.Generator(DEVICE).manual_seed(0))
    learner = dldw.ForwardOnly(model, source, 0.01, log=tmp_path / "log")
    for _ in range(5):
        learner.step(x)
    replayed = dldw.replay(base, tmp_path / "log")
    assert all(torch.equal(replayed[name], p) for name, p in model.named_parameters())


def test_an_estimate_is_measured_against_the_exact_gradient():
    source = dldw.SPSA(mean_square, generator=torch.Generator(DEVICE).manual_seed(0))
    found = dldw.quality(source, model=mlp(), batch=numbers(5, 6), draws=50)
    assert 0 < found.cosine < 1


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


@pytest.mark.skipif(DEVICE.type == "cpu", reason="tensors of one device always mix")
def test_tensors_of_two_devices_do_not_mix():
    with pytest.raises(RuntimeError, match="cpu"):
        there(torch.ones(2)) + torch.ones(2)
    with pytest.raises(dldw.DldwError, match="the generator is on cpu"):
        dldw.SPSA(mean_square, generator=torch.Generator())(mlp(), numbers(5, 6))


@pytest.mark.skipif(DEVICE.type != "cpu", reason="there is an accelerator")
@pytest.mark.skipif(standin.COMPILER is None, reason="no compiler to make the stand-in with")
def test_all_of_this_holds_on_a_device_that_stands_in_for_an_accelerator():
    command = [sys.executable, "-m", "pytest", "-p", "tests.standin", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert run.returncode == 0, run.stdout + run.stderr
