"""The contract of a source, one plain function for each line of it.

Each takes ``make(loss, generator) -> source`` and raises ``AssertionError`` where the source breaks the contract, so
that the same function serves the tests over the registry and the test that wrong sources are caught.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from dldw import AccumulationError, Descent, DldwError, NonFiniteLossError
from dldw.source import GradientSource
from tests.contract import problems
from tests.contract.problems import Problem
from tests.contract.variants import Make


class Interruption(Exception):
    """What a loss raises that nobody else would."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def home(make: Make, dtype: torch.dtype = torch.float64) -> Problem:
    """A problem that the source is at home on: the usual network, and for what needs no loss a model of its own kind."""
    return getattr(make, "homes", (problems.mlp,))[0](dtype)


def estimate(make: Make, problem: Problem, seed: int = 0) -> list[Tensor]:
    """One estimate from a fresh source, with zeros where ``.grad`` was left None."""
    problem.model.zero_grad()
    make(problem.loss, seeded(seed))(problem.model, problem.batch)
    return gradients(problem.model)


def gradients(model: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters() if p.requires_grad]


def dot(a: list[Tensor], b: list[Tensor]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def close(a: list[Tensor], b: list[Tensor], rtol: float = 1e-8, atol: float = 1e-10) -> bool:
    return len(a) == len(b) and all(torch.allclose(x, y, rtol=rtol, atol=atol) for x, y in zip(a, b, strict=True))


def _stops_at(loss: problems.Loss, call: int, error: type[BaseException]) -> tuple[problems.Loss, list[int]]:
    """``loss`` that runs the model and then raises at its ``call``-th evaluation, and its count of calls."""
    calls = [0]

    def stopping(model: nn.Module, batch: Any) -> Tensor:
        calls[0] += 1
        mine = calls[0]  # a source may evaluate the loss within the loss
        value = loss(model, batch)
        if mine == call:
            raise error("stop")
        return value

    return stopping, calls


def _stopped(make: Make, problem: Problem, error: type[BaseException]) -> list[int]:
    """Lets the loss raise at its first evaluations in turn, and says at which it did; calls ``verify`` after each."""
    stopped = []
    for call in (1, 2, 3, 4, 9):
        loss, calls = _stops_at(problem.loss, call, error)
        before = [(p, p.detach().clone(), p.data_ptr()) for p in problem.model.parameters()]
        held = [None if p.grad is None else p.grad.clone() for p in problem.model.parameters()]
        try:
            make(loss, seeded())(problem.model, problem.batch)
        except error:
            stopped.append(call)
        else:
            assert calls[0] < call, f"the source hid what the loss raised at evaluation {call}"
            break
        now = list(problem.model.parameters())
        for (p, value, address), q in zip(before, now, strict=True):
            assert q is p, f"after the loss raised at evaluation {call} the model holds another parameter"
            assert q.data_ptr() == address, f"a parameter was moved when the loss raised at evaluation {call}"
            assert torch.equal(q, value), f"weights are not as they were after the loss raised at evaluation {call}"
        for p, g in zip(now, held, strict=True):
            assert (p.grad is None) == (g is None), f".grad was written though the loss raised at evaluation {call}"
    return stopped


def owed_reason(source: GradientSource, build: Callable[..., Problem]) -> str | None:
    """What the error has to say where a source cannot train this kind of model by what it declares, if it cannot."""
    if source.per_example and build.__name__ in problems.MIXED:
        return r"is a BatchNorm1d in training mode, .* Call eval\(\) on it"
    if source.chain and build.__name__ in problems.BYPASSED:
        hidden = (
            "|carries no graph" if build is problems.reversible else ""
        )  # its layers run inside an autograd function
        return rf"something bypasses the layer that ends block .* model.dldw_blocks = {hidden}"
    return None


def owed_reason_for_a_scalar(source: GradientSource, problem: Problem) -> bool:
    """Whether the source needs a loss for each example; then it must say so where it gets a scalar."""
    if not source.per_example:
        return False
    try:
        source(problem.model, problem.batch)
    except DldwError as error:
        assert "reads one loss for each example" in str(error)
        assert all(p.grad is None for p in problem.trainable), ".grad was changed by a call that raised"
        return True
    raise AssertionError("a source that reads each example's loss took a scalar")


# --- what happens to .grad -----------------------------------------------------------------------------------------


def adds_to_what_grad_holds(make: Make) -> None:
    """``.grad`` becomes what it held plus the estimate; where estimates do not add up, it is an error."""
    problem = home(make)
    alone = estimate(make, problem)
    held = [torch.randn(p.shape, dtype=p.dtype, generator=seeded(9)) for p in problem.trainable]
    for p, g in zip(problem.trainable, held, strict=True):
        p.grad = g.clone()
    source = make(problem.loss, seeded())
    if source.additive:
        source(problem.model, problem.batch)
        wanted = [h + a for h, a in zip(held, alone, strict=True)]
        assert close(gradients(problem.model), wanted, rtol=1e-12), ".grad is not what it held plus the estimate"
        return
    try:
        source(problem.model, problem.batch)
    except AccumulationError:
        assert same(gradients(problem.model), held), ".grad was changed by a call that raised"
    else:
        raise AssertionError("normalised estimates were accumulated without an error")


def descends_by_what_it_estimates(make: Make) -> None:
    """Plain descent moves the weights by -lr times the estimate, and leaves no gradient, whatever ``.grad`` held."""
    problem = home(make)
    before, ghat = [p.detach().clone() for p in problem.trainable], estimate(make, problem)
    loss = Descent(problem.model, make(problem.loss, seeded()), 0.1).step(problem.batch)
    assert loss.shape == (), "plain descent returns the mean loss"
    assert not loss.requires_grad, "plain descent returns the loss with its graph"
    assert all(p.grad is None for p in problem.trainable), "plain descent leaves a gradient"
    expected = [p - 0.1 * g for p, g in zip(before, ghat, strict=True)]
    assert close(list(problem.trainable), expected), "plain descent moves the weights by something else than -lr * ghat"


def micro_batches_add_up_to_their_union(make: Make) -> None:
    """The estimates of two halves, drawn alike, add up to twice that of the whole; needs an additive source.

    One that draws for each example cannot draw alike for half of them; its estimates add up on average.
    """
    problem = home(make)
    if not make(problem.loss, seeded()).additive:
        return
    halves = [tree_map(lambda t, rows=half: t[rows], problem.batch) for half in (slice(0, 3), slice(3, 6))]

    def drawn(batch: Any) -> Tensor:
        generator = seeded()
        make(problem.loss, generator)(problem.model, batch)
        return generator.get_state()

    if torch.equal(drawn(halves[0]), drawn(problem.batch)):
        whole = estimate(make, problem)
        problem.model.zero_grad()
        for half in halves:
            drawn(half)
        union = [g / 2 for g in gradients(problem.model)]
        assert close(union, whole, rtol=1e-5, atol=1e-6), "two micro-batches do not add up to their union"
        return
    source, samples = make(problem.loss, seeded()), []
    for batches in (halves, [problem.batch]):
        estimates = []
        for _ in range(200):
            problem.model.zero_grad()
            for batch in batches:
                source(problem.model, batch)
            estimates.append(torch.cat([g.flatten() / len(batches) for g in gradients(problem.model)]))
        samples.append(torch.stack(estimates))
    error = (samples[0].var(0) + samples[1].var(0)).div(200).sqrt() + 1e-9
    z = float(((samples[0].mean(0) - samples[1].mean(0)) / error).abs().max())
    assert z < 5, f"two micro-batches add up to something {z:.1f} standard errors off the whole"


def gives_every_trainable_weight_its_shape_and_type(make: Make) -> None:
    """``.grad`` has the shape, type and device of its weight, and is finite, in three floating-point types."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        problem = home(make, dtype)
        loss = make(problem.loss, seeded())(problem.model, problem.batch)
        assert loss.dtype == dtype, f"the loss of a {dtype} model came back as {loss.dtype}"
        for p in problem.trainable:
            assert p.grad is not None, f"a trainable {dtype} weight got no .grad"
            assert (p.grad.shape, p.grad.dtype, p.grad.device) == (p.shape, dtype, p.device)
            assert bool(p.grad.isfinite().all()), f".grad of a {dtype} weight is not finite"
            assert not p.grad.requires_grad, ".grad carries a graph"


def leaves_frozen_weights_alone(make: Make) -> None:
    """A frozen weight gets no ``.grad``; the others get the estimate they would get in a model without it."""
    problem = problems.mlp()
    frozen = problem.model[0].weight.requires_grad_(False)
    value = frozen.clone()
    got = estimate(make, problem)
    assert frozen.grad is None, "a frozen weight got a .grad"
    assert torch.equal(frozen, value), "a frozen weight was changed"

    class Rest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias, self.rest = copy.deepcopy(problem.model[0].bias), copy.deepcopy(problem.model[1:])

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(nn.functional.linear(x, value, self.bias))

    alone = estimate(make, Problem(Rest(), problem.loss, problem.batch))
    assert close(got, alone), "freezing a weight changed the estimate for the others"


def keeps_tied_weights_tied(make: Make) -> None:
    """A tied weight is one tensor in every evaluation (the model asserts it), and gets one ``.grad``."""
    problem = problems.tied()
    estimate(make, problem)
    assert problem.model.head.weight is problem.model.embedding.weight, "a tied weight was untied"
    assert len(problem.trainable) == len(list(problem.model.parameters()))


# --- what is left behind -------------------------------------------------------------------------------------------


def leaves_weights_bit_identical(make: Make) -> None:
    """Weights are the same tensors with the same bits after a call."""
    for build in (problems.mlp, problems.tied, problems.conv, problems.batch_norm, problems.lstm):
        make_ = in_any_mode(make) if build.__name__ in problems.NOT_BATCHED else make
        for dtype in (torch.float64, torch.float32):
            problem = build(dtype)
            if owed_reason(make(problem.loss, seeded()), build):
                continue
            before = [(p, p.detach().clone(), p.data_ptr()) for p in problem.model.parameters()]
            make_(problem.loss, seeded())(problem.model, problem.batch)
            for (p, value, address), q in zip(before, problem.model.parameters(), strict=True):
                assert q is p, "the model holds another parameter than before"
                assert q.data_ptr() == address, "a parameter was moved"
                assert torch.equal(q, value), "weights are not bit-identical after a call"
                assert q.requires_grad, "a parameter was frozen"


def leaves_weights_and_grad_when_the_loss_raises(make: Make) -> None:
    """An exception inside the loss, at whichever evaluation, comes out, with weights and ``.grad`` as they were."""
    for build in (problems.mlp, problems.tied):
        assert _stopped(make, build(), Interruption), "the loss was not evaluated at all"


def leaves_weights_and_grad_on_keyboard_interrupt(make: Make) -> None:
    """The same for Ctrl-C."""
    for build in (problems.mlp, problems.tied):
        assert _stopped(make, build(), KeyboardInterrupt), "the loss was not evaluated at all"


def leaves_buffers_as_one_forward_would(make: Make) -> None:
    """Batch-norm statistics and a model's own buffers end as after one plain forward pass."""
    for build in (problems.batch_norm, problems.counting):
        make_ = in_any_mode(make) if build is problems.batch_norm else make
        problem, reference = build(), build()
        if owed_reason(make(problem.loss, seeded()), build):
            continue
        with torch.no_grad():
            reference.loss(reference.model, reference.batch)
        for calls in (1, 2):
            problem.model.zero_grad()
            make_(problem.loss, seeded())(problem.model, problem.batch)
            after = dict(problem.model.named_buffers())
            for name, wanted in reference.model.named_buffers():
                assert torch.equal(after[name], wanted), (
                    f"buffer {name} after {calls} calls is not as forwards leave it"
                )
            with torch.no_grad():
                reference.loss(reference.model, reference.batch)
    problem = problems.batch_norm()
    problem.model.eval()
    before = [b.clone() for b in problem.model.buffers()]
    make(problem.loss, seeded())(problem.model, problem.batch)
    assert same(before, list(problem.model.buffers())), "buffers moved in evaluation mode"


def leaves_modes_and_hooks(make: Make) -> None:
    """Training mode, ``requires_grad`` and gradient mode are as before."""
    problem = home(make)
    modules = list(problem.model.modules())
    modules[-1].training = False
    training, keys = [m.training for m in modules], [sorted(m.__dict__) for m in modules]
    make(problem.loss, seeded())(problem.model, problem.batch)
    assert [m.training for m in modules] == training
    assert all(p.requires_grad for p in problem.model.parameters())
    assert torch.is_grad_enabled(), "gradient mode was left off"
    assert [sorted(m.__dict__) for m in modules] == keys, "something was left in a module"


def runs_under_no_grad(make: Make) -> None:
    """The caller's gradient mode decides nothing."""
    problem = home(make)
    wanted = estimate(make, problem)
    with torch.no_grad():
        got = estimate(make, problem)
    assert close(got, wanted)


# --- randomness ----------------------------------------------------------------------------------------------------


def same_generator_same_gradient(make: Make) -> None:
    """Equal generators give bit-equal estimates, whatever the global random state."""
    problem = home(make)
    torch.manual_seed(1)
    first = estimate(make, problem, seed=7)
    torch.manual_seed(2)
    assert same(first, estimate(make, problem, seed=7)), "the same generator gave another gradient"


def draws_anew_at_every_call(make: Make) -> None:
    """Two calls in a row, and two seeds, give two estimates; what is drawn once, at the first call, is kept."""
    problem = home(make)
    generator = seeded(3)
    source = make(problem.loss, generator)
    source(problem.model, problem.batch)
    first, state = gradients(problem.model), generator.get_state()
    problem.model.zero_grad()
    source(problem.model, problem.batch)
    if torch.equal(generator.get_state(), state):
        assert same(first, gradients(problem.model)), "nothing was drawn, and yet the estimate changed"
        return
    assert not close(first, gradients(problem.model)), "two calls in a row used the same directions"
    assert not close(first, estimate(make, problem, seed=4)), "two seeds gave the same directions"


def never_touches_the_global_random_state(make: Make) -> None:
    """Neither torch's, numpy's nor Python's, with a generator of its own or the default one."""
    for generator in (seeded(), None):
        problem = home(make)
        states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        source = make(problem.loss, generator)
        source(problem.model, problem.batch)
        assert torch.equal(torch.get_rng_state(), states[0]), "torch's global random state moved"
        assert np.array_equal(np.random.get_state()[1], states[1]), "numpy's global random state moved"
        assert random.getstate() == states[2], "Python's global random state moved"


def dropout_moves_the_global_random_state_as_one_forward(make: Make) -> None:
    """A model that draws from the global state leaves it where one forward pass does."""
    problem = problems.dropout()
    torch.manual_seed(11)
    problem.loss(problem.model, problem.batch)
    wanted = torch.get_rng_state()
    torch.manual_seed(11)
    make(problem.loss, seeded())(problem.model, problem.batch)
    assert torch.equal(torch.get_rng_state(), wanted), "the global random state is not where one forward leaves it"


def dropout_sees_one_mask_in_all_evaluations(make: Make) -> None:
    """The estimate is that of the same model with the mask of one forward pass written into it.

    Where every example has a mask of its own, they are the same on both sides: what the masks do is no slope.
    """
    problem = problems.dropout()
    sample = make(problem.loss, seeded())
    if sample.per_example and sample.card.needs == "loss values":
        problem.loss = lambda model, batch: 1e-9 * model(batch[0]).sum(1) + nn.functional.dropout(batch[0]).sum(1)
        source = make(problem.loss, seeded())
        if source.forwards(1) >= 2:  # one forward has no two sides
            source(problem.model, problem.batch)
            largest = max(float(g.abs().max()) for g in gradients(problem.model))
            assert largest < 1e-4, "the two sides of a difference did not see the same dropout mask"
        return
    torch.manual_seed(12)
    mask = nn.functional.dropout(torch.ones(6, 8, dtype=torch.float64), 0.5)
    assert 0 < int(mask.count_nonzero()) < mask.numel()

    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * mask

    fixed = Problem(nn.Sequential(*problem.model[:2], Masked(), problem.model[3]), problem.loss, problem.batch)
    wanted = estimate(make, fixed)
    torch.manual_seed(12)
    got = estimate(make, problem)
    assert close(got, wanted, rtol=1e-6), "the two sides of a difference did not see the same dropout mask"


# --- the loss ------------------------------------------------------------------------------------------------------


def returns_the_detached_loss(make: Make) -> None:
    """A scalar that carries no graph, the mean loss at (or a step around) the weights."""
    for averaged in (False, True):
        problem = home(make)
        if averaged:
            problem.loss = problem.averaged
        source = make(problem.loss, seeded())
        if averaged and owed_reason_for_a_scalar(source, problem):
            continue
        loss = source(problem.model, problem.batch)
        assert isinstance(loss, Tensor)
        assert loss.shape == ()
        assert not loss.requires_grad, "the returned loss is not detached"
        drawn = source.card.needs in ("loss values", "layers") or isinstance(problem, problems.Machine)
        near = math.isclose(float(loss), problem.value(), rel_tol=0.2 if drawn else 1e-12)
        assert near, "the returned loss is not the model's loss"


def scalar_and_per_example_losses_mean_the_same(make: Make) -> None:
    """What is minimised is the mean of [B]."""
    problem = problems.mlp()
    per_example = estimate(make, problem)
    problem.loss = problems.mean_cross_entropy
    problem.model.zero_grad()
    if owed_reason_for_a_scalar(make(problem.loss, seeded()), problem):
        return
    # two ways to round a mean, divided by the 1.5e-8 that a one-sided difference steps in float64
    assert close(estimate(make, problem), per_example, rtol=1e-6, atol=1e-7)


def non_finite_loss_is_an_error_and_leaves_grad(make: Make) -> None:
    """NaN or infinity, in one example or all, at the first evaluation or a later one."""
    for bad in (math.nan, math.inf, -math.inf):
        for call in (1, 2, 3):
            problem, calls = problems.mlp(), [0]

            def loss(
                model: nn.Module, batch: Any, bad: float = bad, call: int = call, calls: list[int] = calls
            ) -> Tensor:
                calls[0] += 1
                losses = problems.cross_entropy(model, batch)
                if calls[0] < call:
                    return losses
                return torch.cat([losses[:1] * bad, losses[1:]])

            source = make(loss, seeded())
            for held in (None, torch.zeros(())):
                calls[0] = -1000  # the first call on a model may evaluate more: whether the loss depends on the weights
                problem.model.zero_grad()
                source(problem.model, problem.batch)
                calls[0] = 0
                for p in problem.trainable:
                    p.grad = None if held is None else torch.zeros_like(p)
                try:
                    source(problem.model, problem.batch)
                except NonFiniteLossError as error:
                    for p in problem.trainable:
                        assert (p.grad is None) if held is None else not p.grad.any(), ".grad was written"
                    assert ("nan" if math.isnan(bad) else "inf") in str(error), (
                        "the error does not say what the loss was"
                    )
                else:
                    assert calls[0] < call, f"a loss of {bad} at evaluation {call} went unnoticed"


def points_uphill(make: Make) -> None:
    """On average over a few calls the estimate has a positive inner product with the gradient of autograd."""
    for dtype in (torch.float64, torch.float32):
        problem = home(make, dtype)
        source = make(problem.loss, seeded(1))
        total = 0.0
        gradient = problem.autograd()
        for draws in range(400):  # twenty will do for most
            problem.model.zero_grad()
            source(problem.model, problem.batch)
            total += dot(gradients(problem.model), gradient)
            if draws >= 20 and total > 0:
                break
        assert total > 0, f"a {dtype} estimate does not point uphill"


# --- what takes the place of the above where there is no loss --------------------------------------------------------


def frozen_weights_decide_nothing(make: Make) -> None:
    """A frozen weight gets no ``.grad`` and stays as it is; the others get the estimate they got before it was frozen."""
    problem = home(make)
    whole = estimate(make, problem)
    for i, frozen in enumerate(problem.trainable):
        value = frozen.clone()
        frozen.requires_grad_(False).grad = None
        rest = estimate(make, problem)
        assert frozen.grad is None, "a frozen weight got a .grad"
        assert torch.equal(frozen, value), "a frozen weight was changed"
        assert close(rest, whole[:i] + whole[i + 1 :]), "freezing a weight changed the estimate for the others"
        frozen.requires_grad_(True)


class _StopsAt(TorchDispatchMode):
    """Raises at the ``call``-th operation on tensors."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.left = call

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left == 0:
            raise Interruption
        return func(*args, **(kwargs or {}))


def leaves_weights_bit_identical_wherever_it_is_stopped(make: Make) -> None:
    """Weights are the same tensors with the same bits after a call, and after one that was cut short at any operation."""
    for build in make.homes:
        for dtype in (torch.float64, torch.float32):
            problem = build(dtype)
            before = [(p, p.detach().clone(), p.data_ptr()) for p in problem.model.parameters()]
            calls, stopped = 0, True
            while stopped:
                calls += 1
                try:
                    with _StopsAt(calls):
                        make(problem.loss, seeded())(problem.model, problem.batch)
                    stopped = False
                except Interruption:
                    pass
                for (p, value, address), q in zip(before, problem.model.parameters(), strict=True):
                    assert q is p, "the model holds another parameter than before"
                    assert q.data_ptr() == address, "a parameter was moved"
                    assert torch.equal(q, value), f"weights are not bit-identical when stopped at operation {calls}"
            assert calls > 5, "nothing was stopped"


def leaves_buffers_and_the_random_state_as_one_forward_would(make: Make) -> None:
    """Batch-norm statistics, a model's own buffers and its draws of dropout end as after one plain forward pass."""
    for build in make.homes:
        problem, reference = build(), build()
        torch.manual_seed(11)
        reference.loss(reference.model, reference.batch)
        wanted_state = torch.get_rng_state()
        torch.manual_seed(11)
        estimate(make, problem)
        assert torch.equal(torch.get_rng_state(), wanted_state), (
            "the global random state is not where one forward leaves it"
        )
        for b, wanted in zip(problem.model.buffers(), reference.model.buffers(), strict=True):
            assert torch.equal(b, wanted), "a buffer is not as one forward leaves it"


def batch_that_is_not_finite_is_an_error_and_leaves_grad(make: Make) -> None:
    """NaN or infinity in one number of the batch."""
    for bad in (math.nan, math.inf, -math.inf):
        for held in (False, True):
            problem = home(make)
            next(t for t in tree_leaves(problem.batch) if t.is_floating_point())[0, 0] = bad
            for p in problem.trainable:
                p.grad = torch.ones_like(p) if held else None
            try:
                make(problem.loss, seeded())(problem.model, problem.batch)
            except NonFiniteLossError as error:
                assert "nan" in str(error) or "inf" in str(error), "the error does not say what the loss was"
            else:
                raise AssertionError(f"a batch with {bad} in it went unnoticed")
            for p in problem.trainable:
                assert (p.grad == 1).all() if held else p.grad is None, ".grad was written"


# --- claims --------------------------------------------------------------------------------------------------------


def equals_autograd(make: Make, rtol: float = 1e-12, atol: float = 1e-14) -> None:
    """The whole gradient of models of every kind, in float64."""
    for build in problems.ALL:
        problem = build()
        torch.manual_seed(2)
        wanted = problem.autograd()
        torch.manual_seed(2)
        got = estimate(in_any_mode(make) if build.__name__ in problems.NOT_BATCHED else make, problem)
        assert close(got, wanted, rtol, atol), f"not the gradient of {build.__name__}"


def is_unbiased(make: Make, draws: int = 1600, variance: Callable[..., float] | None = None) -> None:
    """z-test of the mean of many estimates on a quadratic, and of their variance against its closed form.

    A source that reads each example's loss is tested on a linear loss of several examples, as the quadratic has none.

    Args:
        make: Of a source that claims to be unbiased (up to its step).
        draws: How many estimates.
        variance: E‖ghat - g‖² from the problem; not tested where it is None.
    """
    problem: Any = problems.QuadraticProblem()
    if make(problem.loss, seeded()).per_example:
        problem = problems.LinearProblem()
    gradient = problem.gradient
    source = make(problem.loss, seeded(21))
    estimates = torch.empty(draws, gradient.numel(), dtype=torch.float64)
    for i in range(draws):
        problem.model.zero_grad()
        source(problem.model, problem.batch)
        estimates[i] = torch.cat([g.reshape(-1) for g in gradients(problem.model)])
    along = (estimates @ gradient / gradient.norm()).unsqueeze(1)
    for values, truth in ((estimates, gradient), (along, gradient.norm())):
        z = (values.mean(0) - truth) / (values.std(0) / math.sqrt(draws) + 1e-9)
        assert float(z.abs().max()) < 5, f"the mean estimate is off by {float(z.abs().max()):.1f} standard errors"
    if variance is not None:
        squares = (estimates - gradient).square().sum(1)
        wanted = variance(problem)
        z = float((squares.mean() - wanted) / (squares.std() / math.sqrt(draws) + 1e-9 * wanted))
        assert abs(z) < 5, f"the variance is {float(squares.mean()):.4g}, not {wanted:.4g} ({z:.1f} standard errors)"


def forwards_equal_the_card(make: Make) -> None:
    """The evaluations of one step are what the card's formula says; needs loss values alone, one by one."""
    problem, calls = problems.mlp(), [0]

    def counted(model: nn.Module, batch: Any) -> Tensor:
        calls[0] += len(batch[0]) / len(problem.batch[0])  # some take one example at a time
        return problem.loss(model, batch)

    source = make(counted, seeded())
    d = sum(p.numel() for p in problem.trainable)
    for _ in range(2):  # the first call may evaluate more: it finds out whether the loss depends on the weights
        problem.model.zero_grad()
        calls[0] = 0
        source(problem.model, problem.batch)
    assert calls[0] == pytest.approx(source.forwards(d)), (
        f"{calls[0]} forwards, but the card says {source.forwards(d):g}"
    )


def in_any_mode(make: Make) -> Make:
    """``make`` with ``batched`` relaxed to ``auto``, for the models that vmap cannot go through."""
    settings = dict(getattr(make, "settings", ()))
    if settings.get("evaluate") == "batched":
        return type(make)(make.method, tuple((settings | {"evaluate": "auto"}).items()))
    return make


CHECKS = [
    adds_to_what_grad_holds,
    descends_by_what_it_estimates,
    micro_batches_add_up_to_their_union,
    gives_every_trainable_weight_its_shape_and_type,
    leaves_frozen_weights_alone,
    keeps_tied_weights_tied,
    leaves_weights_bit_identical,
    leaves_weights_and_grad_when_the_loss_raises,
    leaves_weights_and_grad_on_keyboard_interrupt,
    leaves_buffers_as_one_forward_would,
    leaves_modes_and_hooks,
    runs_under_no_grad,
    same_generator_same_gradient,
    never_touches_the_global_random_state,
    dropout_moves_the_global_random_state_as_one_forward,
    dropout_sees_one_mask_in_all_evaluations,
    returns_the_detached_loss,
    scalar_and_per_example_losses_mean_the_same,
    non_finite_loss_is_an_error_and_leaves_grad,
    points_uphill,
]
"""What holds for every source, whatever it claims."""

LOSS_FREE_CHECKS = [
    adds_to_what_grad_holds,
    descends_by_what_it_estimates,
    gives_every_trainable_weight_its_shape_and_type,
    frozen_weights_decide_nothing,
    leaves_weights_bit_identical_wherever_it_is_stopped,
    leaves_buffers_and_the_random_state_as_one_forward_would,
    leaves_modes_and_hooks,
    runs_under_no_grad,
    same_generator_same_gradient,
    never_touches_the_global_random_state,
    returns_the_detached_loss,
    batch_that_is_not_finite_is_an_error_and_leaves_grad,
    points_uphill,
]
"""The same contract for a source that needs no loss, on the problems that it is at home on."""
