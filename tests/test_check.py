"""``dldw.check``: every fault of the corpus is found and located, and nothing that is right is accused."""

from __future__ import annotations

import math
import re
import textwrap
import tomllib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dldw
from dldw.checking.judge import judge
from dldw.checking.quotient import Direction, Losses, Quotient
from dldw.objective import Objective
from dldw.weights import Weights
from tests.check_corpus import RIGHT, WRONG, Case, Written, classify, network, norm, rows
from tests.harness import dldw as command


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def named(cases: list[Case]):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def fault(name: str) -> Case:
    return next(case for case in WRONG if case.name == name)


def checked(name: str, **settings) -> dldw.CheckResult:
    return dldw.check(*fault(name).make(), **settings)


# --- the corpus ------------------------------------------------------------------------------------------------------------


def test_the_corpus_is_large_enough():
    assert len(WRONG) >= 60
    assert len(RIGHT) >= 60
    assert len({case.name for case in WRONG + RIGHT}) == len(WRONG + RIGHT)


@named(WRONG)
def test_a_fault_is_found_and_located_to_its_tensors(case):
    off = case.truth()
    assert math.sqrt(sum(size**2 for size in off.values())) >= 1e-4
    found = dldw.check(*case.make())
    assert found.verdict == "wrong", found.explain()
    assert {part.name.split(" = ")[0] for part in found.wrong} == set(off)


@named(RIGHT)
def test_what_is_right_is_not_accused_and_costs_forty_forwards_at_most(case):
    model, loss, batch = case.make()
    calls = []

    def counted(model, batch):
        calls.append(torch.is_grad_enabled())
        return loss(model, batch)

    found = dldw.check(model, counted, batch)
    assert found.verdict == "right", found.explain()
    assert len(calls) == found.forwards <= 40
    assert calls.count(True) == found.backwards
    float64 = all(p.dtype == torch.float64 for p in model.parameters() if p.is_floating_point())
    if float64 and "kink" not in case.name:
        assert found.backwards == 1


@pytest.mark.parametrize("weights", [10, 1000, 100_000])
def test_the_number_of_forwards_does_not_depend_on_the_number_of_weights(weights):
    model = nn.Sequential(nn.Linear(10, weights // 10, bias=False), nn.Tanh()).double()
    found = dldw.check(model, lambda m, x: m(x).square().mean(1), torch.ones(2, 10).double())
    assert (found.verdict, found.backwards) == ("right", 1)
    assert 34 <= found.forwards <= 40


# --- where, and what it looks like -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "where", "looks"),
    [
        ("linear, argument 1: zeroed entry", r"entry \[\d, \d\]", "zero"),
        ("linear, argument 1: zeroed row", r"row \[1, :\]", "zero"),
        ("linear, argument 1: zeroed column", r"column \[:, 1\]", "zero"),
        ("linear, argument 1: two rows exchanged", r"rows \[\[0, 1\], :\]", None),
        ("conv, argument 1: zeroed entry", r"entry \[\d, \d, \d, \d\]", "zero"),
        ("conv, argument 1: zeroed row", r"slice \[1, :, :, :\]", "zero"),
        ("linear, argument 1: factor 1.001", "all of it", "scaled by 1.001"),
        ("linear, argument 1: factor 1.01 in an entry", r"entry \[\d, \d\]", "scaled by 1.01"),
        ("linear, argument 1: factor 2", "all of it", "scaled by 2: accumulated twice, or a factor 2 of a square"),
        ("linear, argument 1: sign", "all of it", "scaled by -1: the sign is wrong"),
        ("linear, argument 1: zero", "all of it", "zero"),
        ("linear, argument 1: transposed", "all of it", "transposed"),
        ("linear, argument 1: off by one", "all of it", "off by one along dimension 0"),
        ("linear, argument 1: reversed", "all of it", "reversed along dimension 0"),
        ("linear, argument 1: detached", "all of it", "missing: the backward pass returned None"),
        ("scale reduced by mean", "all of it", "scaled by 0.166667: a mean over the batch of 6 where the sum belongs"),
        ("residual branch detached", "all of it", "detached by detach() in check_corpus.py, line "),
        ("residual branch by .data", "all of it", "detached by .data in check_corpus.py, line "),
        ("residual branch without a graph", "all of it", "detached by no_grad in check_corpus.py, line "),
        ("shared weight counted once", "all of it", "counted once: the weight is used in 2 places"),
    ],
)
def test_a_fault_is_narrowed_down_and_its_cause_named(name, where, looks):
    part = checked(name).wrong[0]
    assert re.fullmatch(where, part.where)
    assert any(cause.startswith(looks) for cause in part.causes) if looks else not part.causes


def test_a_zeroed_entry_is_the_one_that_was_zeroed():
    case = fault("linear, argument 1: zeroed entry")
    model, loss, batch = case.make()
    loss(model, batch).mean().backward()
    at = (model.own[0].grad == 0).nonzero()
    assert len(at) == 1
    assert dldw.check(*case.make()).wrong[0].where == f"entry {at[0].tolist()}"


def test_the_line_that_detaches_is_the_right_one():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.b(self.a(x).detach())

    line = Cut.forward.__code__.co_firstlineno + 1
    found = dldw.check(Cut().double(), classify, rows(6, 4))
    causes = found.wrong[0].causes
    assert causes[0].startswith("missing from the graph: autograd finds no path from the loss to it")
    assert causes[1] == f"detached by detach() in test_check.py, line {line}; without that it is right"


def test_a_detach_that_is_right_is_not_named_beside_another_fault():
    case = next(case for case in RIGHT if case.name == "detached maximum in a softmax")
    model, _, batch = case.make()
    model.b = nn.Linear(3, 3).double()

    def loss(model, batch):
        doubled = Written.apply(lambda x: x * 1, lambda g, out, x: (2 * g,), model.b(model(batch[0])))
        return F.cross_entropy(doubled, batch[1], reduction="none")

    found = dldw.check(model, loss, batch)
    assert [part.causes for part in found.wrong] == [("scaled by 2: accumulated twice, or a factor 2 of a square",)] * 4


def test_a_stale_gradient_is_recognised_by_a_second_backward_pass():
    assert checked("stale gradient added").causes == (
        "stale: a second backward pass from the same weights gives another gradient, so it keeps state",
    )


def test_where_an_error_enters_is_said_when_all_before_it_is_wrong():
    assert checked("norm without mean").causes == (
        "all that is used up to before.bias is wrong, and nothing from own.0 on: look at the backward pass of what lies "
        "between them",
    )


def test_a_surrogate_gradient_is_told_from_the_loss():
    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x):
            return Written.apply(lambda x: (x > 0).to(x), lambda g, out, x: (g,), self.a(x))

    found = dldw.check(Step().double(), classify, rows(6, 4))
    assert found.verdict == "wrong"
    assert "the gradient is not zero and the loss is flat along" in found.reason
    assert (
        found.wrong[0].causes[0].startswith("not zero, though the loss does not change: a surrogate (straight-through)")
    )


def test_a_gradient_that_is_not_finite_is_wrong():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3)).double()
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)

    def loss(model, x):
        return model[1](model[0](x).square().sum(1, keepdim=True).sqrt() + x).square().mean(1)

    found = dldw.check(model, loss, torch.ones(4, 2).double())
    assert found.verdict == "wrong"
    assert found.wrong[0].causes == ("not finite: 4 of 4 entries are NaN or infinite",)


def test_a_backward_pass_that_raises_is_wrong():
    made = network(norm, lambda g, out, x, gain, bias: (g, g[:, :2], g))
    found = dldw.check(*made)
    assert (found.verdict, found.forwards, found.backwards) == ("wrong", 1, 1)
    assert "the backward pass itself raises: " in found.reason


def test_a_fault_in_low_precision_alone_is_found():
    def backward(g, out, x, w):
        grad = g.T @ x
        return g @ w, grad if g.dtype == torch.float64 else 1.01 * grad

    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.w = nn.Linear(4, 4), nn.Parameter(torch.randn(3, 4))

        def forward(self, x):
            return Written.apply(lambda x, w: x @ w.T, backward, self.a(x).tanh(), self.w)

    found = dldw.check(Narrow(), classify, rows(6, 4, dtype=torch.float32))
    assert found.verdict == "wrong"
    assert "in float64 the gradient is right, but in float32 it is" in found.reason
    assert [part.name for part in found.wrong] == ["w"]


# --- what there is no telling about ----------------------------------------------------------------------------------------


def cannot_tell(found: dldw.CheckResult, text: str) -> None:
    assert found.verdict == "cannot tell", found.explain()
    assert not found
    assert re.search(text, found.reason), found.reason


def test_randomness_of_ones_own_is_named():
    generator = torch.Generator().manual_seed(0)

    def loss(model, batch):
        return classify(model, batch) + torch.rand((), generator=generator, dtype=torch.float64)

    cannot_tell(
        dldw.check(nn.Linear(4, 3).double(), loss, rows(6, 4)),
        r"^the loss is not deterministic: at the same weights it was [\d.]+ and [\d.]+, although every evaluation starts "
        "from the same state of torch's random numbers. Draw from torch's global generator, or from one that the loss seeds",
    )


def test_a_little_randomness_is_named_too_below_float64():
    generator = torch.Generator().manual_seed(0)

    def loss(model, batch):
        return classify(model, batch) + 1e-4 * torch.rand((), generator=generator)

    cannot_tell(dldw.check(nn.Linear(4, 3), loss, rows(6, 4, dtype=torch.float32)), "^the loss is not deterministic")


def test_a_flat_loss_has_nothing_to_compare():
    def loss(model, batch):
        return classify(model, batch).round().clamp(max=0) * model.weight.sum() * 0 + 1

    cannot_tell(
        dldw.check(nn.Linear(4, 3).double(), loss, rows(6, 4)),
        "^the gradient is zero and the loss is the same along every direction: .* Check it at other weights",
    )


def test_a_loss_that_is_not_finite_has_no_slope():
    loss = lambda model, batch: classify(model, batch) / 0  # noqa: E731
    cannot_tell(dldw.check(nn.Linear(4, 3).double(), loss, rows(6, 4)), "^the loss is inf at the given weights")


def test_low_precision_inside_the_loss_is_named():
    def loss(model, batch):
        return classify(model, batch).bfloat16()

    cannot_tell(dldw.check(nn.Linear(4, 3).double(), loss, rows(6, 4)), r"low precision \(machine epsilon 8e-03\)")


def test_a_slope_that_is_lost_in_the_loss_is_named():
    def loss(model, batch):
        return 1e13 + classify(model, batch)

    cannot_tell(
        dldw.check(nn.Linear(4, 3).double(), loss, rows(6, 4)),
        "the slope is small beside the loss itself|or noise around",
    )


def test_noise_that_no_step_escapes_is_named():
    def loss(model, x):
        y = model(x)
        return y + (y.detach() * 1e9).frac() * 1e-3

    model = nn.Linear(2, 1).double()
    cannot_tell(dldw.check(model, lambda m, x: loss(m, x).mean(), torch.randn(200, 2).double()), "kinks|noise")


def test_a_model_that_cannot_be_copied_up_is_evaluated_as_it_is():
    target = torch.randn(6, 3)

    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x):
            assert self.a.weight.dtype == torch.float32, "float32 only"
            return self.a(x)

    found = dldw.check(Stubborn(), lambda m, x: (m(x) - target).square().mean(1), torch.randn(6, 4))
    assert found.verdict == "right", found.explain()
    assert 1e-5 < found.resolution <= 1e-2
    assert "evaluated in float32, as there can be no copy in float64: float32 only" in found.notes


def test_a_loss_that_looks_at_a_captured_model_is_checked_on_that():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = rows(6, 4, dtype=torch.float32)
    found = dldw.check(model, lambda _, batch: F.mse_loss(model(x), F.one_hot(y, 3).float()), (x, y))
    assert found.verdict == "right", found.explain()


def test_what_stands_on_a_kink_is_checked_beside_it():
    case = next(case for case in RIGHT if case.name == "ReLU on its kink")
    assert any("they stand on a kink of the loss" in note for note in dldw.check(*case.make()).notes)


@pytest.mark.parametrize(("seed", "directions"), [(1, 8), (6, 8), (1, 16)])
def test_kinks_among_the_directions_cost_no_more_forwards(seed, directions):
    torch.manual_seed(seed)
    sizes = (20, 256, 256, 3)
    layers = [layer for n, m in pairwise(sizes) for layer in (nn.Linear(n, m), nn.ReLU())][:-1]
    batch = torch.randn(32, 20).double(), torch.randint(3, (32,))
    found = dldw.check(nn.Sequential(*layers).double(), classify, batch, seed=seed, directions=directions)
    assert found.verdict == "right", found.explain()
    assert found.forwards <= max(40, 4 * directions + 8)


def test_a_fault_on_a_kink_is_found_beside_it():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    nn.init.zeros_(model[0].bias)
    x, y = rows(6, 4)
    x[::2] = 0

    def loss(model, batch):
        doubled = Written.apply(lambda w: w * 1, lambda g, out, w: (2 * g,), model[2].weight)
        return F.cross_entropy(F.linear(model[:2](batch[0]), doubled, model[2].bias), batch[1])

    found = dldw.check(model, loss, (x, y))
    assert [part.name for part in found.wrong] == ["2.weight"]


def test_zero_gradients_are_noted():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).double()
    nn.init.zeros_(model[1].weight)
    found = dldw.check(model, classify, rows(6, 4))
    assert found
    assert found.notes == ("the gradient of 0.weight, 0.bias is zero at these weights, and the loss agrees.",)


# --- judging ---------------------------------------------------------------------------------------------------------------


def measured(value: float, error: float, jump: float = 0.0) -> Quotient:
    return Quotient(value, error, 0.0, jump, 1e-5)


def test_a_verdict_follows_from_disagreement_and_error():
    settings = {"floor": 1e-6, "limit": 1e-4}
    exact = [measured(v, 1e-9) for v in (1.0, -2.0, 0.5, 1.5)]
    slopes = [q.value for q in exact]
    assert judge(exact, slopes, **settings).verdict == "right"
    assert judge(exact, [1.0001 * p for p in slopes], **settings).verdict == "wrong"
    assert judge(exact[:3], slopes[:3], **settings).verdict == "cannot tell"
    assert judge(exact, [p + 1e-7 for p in slopes], **settings).verdict == "right"
    vague = [measured(q.value, 1e-3) for q in exact]
    assert judge(vague, [1.0001 * p for p in slopes], **settings).verdict == "cannot tell"
    assert judge(vague, [1.1 * p for p in slopes], **settings).verdict == "wrong"
    assert judge(vague, [math.nan, *slopes[1:]], **settings).verdict == "wrong"


def test_a_direction_with_a_kink_judges_nothing():
    kinked = [measured(v, 1e-9, jump=1e-5) for v in (1.0, -2.0)]
    assert judge(kinked, [5.0, 5.0], floor=1e-6, limit=1e-4).verdict == "cannot tell"


def test_a_quotient_knows_its_error():
    """The slope of a sum of exponentials is known; the estimated error bounds the true one at every step."""
    model = nn.Linear(5, 1, bias=False).double()
    objective = Objective(model, lambda m, _: m.weight.exp().sum(), None, Weights.of(model))
    losses = Losses(objective)
    direction = Direction(objective.weights, {0: None}, torch.Generator().manual_seed(0))
    exact = direction.dot([model.weight.detach().exp()])
    for power in range(-26, -1):
        quotient = losses.quotient(direction, 2.0**power)
        assert abs(quotient.value - exact) <= quotient.error
    best = losses.search(direction, 0.5, good=1e-9, forwards=40)
    assert abs(best.value - exact) <= best.error <= 1e-8 * abs(exact)


def test_directions_are_signs_of_different_magnitudes_inside_their_block():
    model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 3)).double()
    weights = Weights.of(model)
    direction = Direction(weights, {0: ([1, 4], None)}, torch.Generator().manual_seed(0))
    (z,) = direction.parts.values()
    inside = z[[1, 4]].abs()
    assert 0.5 <= inside.min() <= 0.6 <= 1.4 <= inside.max() <= 1.5
    assert int(z.count_nonzero()) == 60
    moved = direction.moved(0.25)
    assert torch.equal(moved[0], model[0].weight + 0.25 * z)
    assert all(m is p for m, p in zip(moved[1:], weights.tensors[1:], strict=True))


# --- the model is left as it was -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("right", [True, False])
def test_nothing_of_the_model_is_changed(dtype, right):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 3)).to(dtype)
    model[0].weight.grad = torch.ones_like(model[0].weight)

    def loss(model, batch):
        value = classify(model, batch)
        return value if right else Written.apply(lambda v: v * 1, lambda g, out, v: (2 * g,), value)

    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert dldw.check(model, loss, rows(8, 4, dtype=dtype)).verdict == ("right" if right else "wrong")
    torch.random.set_rng_state(state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(p.grad is None for p in list(model.parameters())[1:])
    torch.manual_seed(0)


def test_the_random_state_is_left_as_it_was():
    state = torch.get_rng_state()
    made = RIGHT[[case.name for case in RIGHT].index("dropout before ReLU")].make()
    assert dldw.check(*made)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_seed_gives_the_same_result():
    first, second = (checked("norm without mean", seed=5) for _ in range(2))
    assert first == second
    assert first != checked("norm without mean", seed=6)


# --- what is checked -------------------------------------------------------------------------------------------------------


def test_some_parameters_alone():
    model, loss, batch = fault("linear, argument 1: sign").make()
    assert dldw.check(model, loss, batch, parameters=["before.weight", model.after.bias])
    found = dldw.check(model, loss, batch, parameters=["own.0"])
    assert [(part.name, part.verdict) for part in found.parts] == [("own.0", "wrong")]


def test_gradients_of_inputs():
    def loss(model, batch):
        halved = Written.apply(lambda x: x * 1, lambda g, out, x: (g / 2,), batch["x"])
        return F.cross_entropy(model(halved), batch["y"])

    x, y = rows(6, 4)
    model = nn.Linear(4, 3).double()
    assert dldw.check(model, loss, {"x": x, "y": y})
    found = dldw.check(model, loss, {"x": x, "y": y}, inputs=True)
    assert [(p.name, p.verdict) for p in found.parts] == [
        ("weight", "right"),
        ("bias", "right"),
        ("batch['x']", "wrong"),
    ]
    assert found.wrong[0].causes == ("scaled by 0.5",)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"parameters": ["weigth"]}, "no trainable parameter 'weigth' of Linear. Did you mean 'weight'?"),
        ({"parameters": []}, "parameters is empty, so there is nothing to check. Leave it out"),
        (
            {"parameters": [nn.Parameter(torch.ones(2))]},
            r"a tensor of shape \[2\] that is no trainable parameter of Linear",
        ),
        ({"directions": 0}, "directions must be at least 1, got 0: without one there is nothing to compare"),
        ({"inputs": True}, "inputs=True asks for the gradient of the batch, but it holds no floating-point tensor"),
    ],
)
def test_mistakes_are_explained(settings, text):
    with pytest.raises(dldw.DldwError, match=text):
        dldw.check(nn.Linear(4, 3), lambda m, b: m(torch.ones(2, 4)).mean(), torch.ones(3).long(), **settings)


def test_nothing_to_train_and_a_loss_of_the_wrong_shape_are_explained():
    with pytest.raises(dldw.DldwError, match="ReLU has no trainable parameter"):
        dldw.check(nn.ReLU(), lambda m, x: m(x).mean(), torch.ones(3))
    with pytest.raises(
        dldw.DldwError, match=r"the loss must be a real scalar or one value per example \[B\], got shape"
    ):
        dldw.check(nn.Linear(2, 3), lambda m, x: m(x), torch.ones(5, 2))


# --- functions -------------------------------------------------------------------------------------------------------------


def rosenbrock(x, a=1.0):
    return ((a - x[:-1]) ** 2).sum() + 100 * ((x[1:] - x[:-1] ** 2) ** 2).sum()


def rosenbrock_gradient(x, a=1.0):
    g = np.zeros_like(x)
    g[:-1] = -2 * (a - x[:-1]) - 400 * x[:-1] * (x[1:] - x[:-1] ** 2)
    g[1:] += 200 * (x[1:] - x[:-1] ** 2)
    return g


def test_it_takes_the_place_of_check_grad():
    optimize = pytest.importorskip("scipy.optimize")
    x = np.array([0.3, -1.2, 0.7, 2.0])
    assert optimize.check_grad(rosenbrock, rosenbrock_gradient, x, 2.0) < 1e-3
    assert dldw.check_function(rosenbrock, rosenbrock_gradient, x, 2.0)
    assert dldw.check_function(rosenbrock, rosenbrock_gradient, list(x))

    def wrong(x):
        g = rosenbrock_gradient(x)
        g[2] = 0
        return g

    found = dldw.check_function(rosenbrock, wrong, x)
    assert (found.wrong[0].name, found.wrong[0].where, found.wrong[0].causes) == ("x", "entry [2]", ("zero",))


@pytest.mark.parametrize("x", [2.0, 2, np.float64(2.0), torch.tensor(2.0), np.array([2.0])])
def test_numbers_of_every_kind(x):
    assert dldw.check_function(lambda x: x**3, lambda x: 3 * x**2, x)
    assert not dldw.check_function(lambda x: x**3, lambda x: 2 * x**2, x)


def test_values_that_are_no_scalars():
    x = np.array([0.5, -1.0, 2.0])
    assert dldw.check_function(np.sin, np.cos, x)
    assert dldw.check_function(lambda x: np.outer(x, x[:2]).ravel(), _outer_jacobian, x)
    assert not dldw.check_function(np.sin, lambda x: np.diag(np.sin(x)), x)


def _outer_jacobian(x):
    jacobian = np.zeros((6, 3))
    for i in range(3):
        for j in range(2):
            jacobian[2 * i + j, i] += x[j]
            jacobian[2 * i + j, j] += x[i]
    return jacobian


def test_several_arguments_of_which_one_is_wrong():
    x, y = torch.randn(3, 4), torch.randn(4, 2)
    found = dldw.check_function(
        lambda x, y: (x @ y).square().sum(), lambda x, y: (2 * x @ y @ y.T, x.T @ (x @ y)), (x, y)
    )
    assert [(part.name, part.verdict) for part in found.parts] == [("x[0]", "right"), ("x[1]", "wrong")]
    assert found.wrong[0].causes == ("scaled by 0.5",)


class Cube(torch.autograd.Function):
    """x³ with a second output that carries no graph, a right reverse mode, and a wrong forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        top = x.argmax()
        ctx.mark_non_differentiable(top)
        return x**3, top

    @staticmethod
    def backward(ctx, g, _):
        return 3 * ctx.saved_tensors[0] ** 2 * g

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * ctx.saved_tensors[0] ** 2 * tangent, None


class Frozen(torch.autograd.Function):
    """x² whose backward pass is right but cannot be differentiated again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0].detach()


def test_autograd_functions_in_reverse_and_forward_mode_and_twice():
    x = torch.randn(3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert dldw.check_function(Cube, "reverse", x)
    assert dldw.check_function(Cube, "hessian", x)
    found = dldw.check_function(Cube, "forward", x)
    assert found.wrong[0].causes == ("scaled by 0.666667",)
    assert dldw.check_function(Frozen, "reverse", x)
    assert not dldw.check_function(Frozen, "hessian", x)


def test_a_derivative_that_is_not_there_is_not_called_wrong():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return 2 * g * ctx.saved_tensors[0]

    x = torch.randn(3, dtype=torch.float64)
    assert dldw.check_function(Once, "reverse", x)
    cannot_tell(dldw.check_function(Once, "forward", x), "forward mode raises: .* jvp")
    cannot_tell(
        dldw.check_function(lambda x: Once.apply(x).square(), "hessian", x),
        "the backward pass cannot be differentiated: .*once_differentiable",
    )


def test_forward_mode_and_hessians_of_ordinary_functions_are_right():
    x, w = torch.randn(4, 3), torch.randn(3, 2).double()
    f = lambda x, w: (x.to(w) @ w).tanh().logsumexp(1).sum()  # noqa: E731
    assert dldw.check_function(f, "forward", (x.double(), w))
    assert dldw.check_function(f, "hessian", (x.double(), w))


@pytest.mark.parametrize(
    ("f", "gradient", "x", "text"),
    [
        (lambda x: x.sum(), lambda x: x[:2], np.ones(3), r"an array of shape \[2\] for an argument of shape \[3\]"),
        (
            lambda x: x.sum(),
            "backward",
            torch.ones(3),
            "gradient must be a function, 'reverse', 'forward' or 'hessian', got",
        ),
        (
            lambda x: x.sum(),
            "reverse",
            np.ones(3),
            "is what autograd gives, which does not follow NumPy. Give x as torch",
        ),
        (lambda x: x.sum(), np.ones_like, np.ones(3, int), "x holds nothing to differentiate by: ndarray"),
        (
            lambda x, y: x.sum(),
            lambda x, y: (x,),
            (np.ones(3), np.ones(3)),
            "gradient returned 1 arrays for 2 arguments",
        ),
        (lambda x: int(x.sum()), np.ones_like, np.ones(3), "f returns nothing to differentiate"),
    ],
)
def test_mistakes_with_functions_are_explained(f, gradient, x, text):
    with pytest.raises(dldw.DldwError, match=text):
        dldw.check_function(f, gradient, x)


# --- texts -----------------------------------------------------------------------------------------------------------------


def test_a_result_prints_a_table_and_explains_itself():
    found = checked("linear, argument 1: zeroed row")
    lines = str(found).splitlines()
    assert re.fullmatch(
        r"wrong: the gradient is [\d.]+ % off along 8 random directions: 1 of 6 tensors wrong.", lines[0]
    )
    assert re.fullmatch(r"  own.0 +4x4 +[\d.]+ +wrong +[\d.]+ +row \[1, :\] +zero", lines[4])
    text = found.explain()
    assert "own.0: wrong in row [1, :].\n  It looks zero.\n" in text
    assert f"It took {found.forwards} forward and {found.backwards} backward passes." in text
    right = dldw.check(*fault("linear, argument 1: zeroed row").reference())
    assert re.match(
        r"right: the gradient agrees with slopes of the loss along 8 random directions to \S+ of them", str(right)
    )
    assert "An error of 4e-06 of the gradient or more would have shown." in right.explain()


def test_the_assertion_and_the_fixture_print_the_explanation(assert_gradient):
    model, loss, batch = fault("linear, argument 1: sign").make()
    with pytest.raises(AssertionError) as caught:
        dldw.testing.assert_gradient(model, loss, batch)
    assert str(caught.value) == dldw.check(model, loss, batch).explain()
    assert dldw.testing.assert_gradient(torch.sin, torch.cos, torch.ones(3)).verdict == "right"
    with pytest.raises(AssertionError, match="the sign is wrong"):
        assert_gradient(model, loss, batch)


@pytest.fixture
def assert_gradient():
    """The plugin's own fixture, whether the plugin is installed or not."""
    from dldw.integrations import pytest as plugin

    return plugin.assert_gradient.__wrapped__()


def test_the_project_declares_its_plugin():
    project = tomllib.loads((Path(dldw.__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"dldw": "dldw.integrations.pytest"}


# --- the command line ------------------------------------------------------------------------------------------------------

FILE = """
    import torch
    from torch import nn

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return FACTOR * g

    class Picky(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, table):
            return table[x]

        @staticmethod
        def backward(ctx, g):
            return None, g

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, x):
            return Double.apply(self.a(x))

    class Other: ...

    batch = torch.ones(4, 3)

    def loss(model, batch):
        return model(batch).square().mean(1)
"""


@pytest.fixture
def operations(tmp_path):
    """The same file twice, once with a wrong backward pass."""
    for place, factor in (("right", "2"), ("wrong", "1")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "ops.py").write_text(textwrap.dedent(FILE).replace("FACTOR", factor))
    return tmp_path


@pytest.mark.parametrize(
    ("target", "status", "text"),
    [
        ("right/ops.py:Model", 0, "^right: the gradient agrees"),
        ("wrong/ops.py:Model", 1, "scaled by 0.5"),
        ("right/ops.py:Double", 0, "^right: the gradient agrees"),
        (
            "right",
            3,
            r"right/ops.py:Double: right: (.|\n)*ops.py:Picky: cannot tell: it gives no example, and with 2 random",
        ),
        ("wrong", 1, "wrong/ops.py:Double: wrong: "),
        ("wrong/ops.py", 1, "wrong/ops.py:Double: wrong: "),
    ],
)
def test_the_command_checks_models_functions_files_and_directories(operations, capsys, target, status, text):
    from dldw.compare.check import check_target

    assert check_target(str(operations / target), directions=8, seed=0) == status
    assert re.search(text, capsys.readouterr().out)


def test_the_verdict_is_the_exit_status_of_the_command(operations):
    wrong = command("check", str(operations / "wrong" / "ops.py:Model"))
    assert wrong.returncode == 1, wrong.stderr
    assert wrong.stdout.startswith("wrong: ")


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("nowhere.py:Model", "there is no file"),
        ("ops.py:Modle", "there is no class 'Modle' of .*Did you mean 'Model'"),
        ("ops.py:Other", "Other is neither a torch.nn.Module, a torch.autograd.Function nor a dldw task"),
        ("bare.py:Model", "does not give batch and loss, which checking Model needs: define batch"),
        ("bare.py", "holds no torch.autograd.Function, so there is nothing to check. Name a model as"),
        ("raises.py:Model", r"Model cannot be checked: .*raises.py, line \d+, raised RuntimeError: no such thing"),
    ],
)
def test_the_command_explains_mistakes(tmp_path, target, text, monkeypatch):
    from dldw.compare.check import check_target

    (tmp_path / "ops.py").write_text(textwrap.dedent(FILE).replace("FACTOR", "2"))
    (tmp_path / "bare.py").write_text("from torch import nn\nclass Model(nn.Linear): ...\n")
    (tmp_path / "raises.py").write_text(
        "from torch import nn\nbatch = None\nloss = None\nclass Model(nn.Module):\n    def __init__(self):\n"
        "        raise RuntimeError('no such thing')\n"
    )
    with pytest.raises(dldw.DldwError, match=text):
        check_target(str(tmp_path / target), directions=8, seed=0)


def test_a_task_is_checked_with_its_own_loss_and_batches(capsys):
    from dldw.compare.check import check_target
    from dldw.tasks import digits

    assert check_target(f"{digits.__file__}:Digits", directions=8, seed=0) == 0
    assert capsys.readouterr().out.startswith("right: ")
