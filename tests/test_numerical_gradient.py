"""The full numerical gradient by changes that are followed through a model, and what is made of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dldw
from dldw.differences import every_weight
from dldw.differences.changes import Column
from dldw.differences.every_weight import nudged
from dldw.differences.tensor import Difference, Run
from dldw.objective import Objective
from dldw.weights import Weights
from tests.contract import problems
from tests.contract.checks import seeded


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=torch.float64, generator=seeded(seed)).to(dtype)


# --- rules ------------------------------------------------------------------------------------------------------------

mask = torch.tensor([[True, False, True, False]] * 3)
labels = torch.tensor([0, 3, 1])
RULES = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "softplus": F.softplus,
    "softplus, beta": lambda x: F.softplus(x + 16, beta=2.0),
    "log sigmoid": F.logsigmoid,
    "leaky relu": lambda x: F.leaky_relu(x, 0.2),
    "elu": F.elu,
    "selu": F.selu,
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.25),
    "relu6": F.relu6,
    "clamp below": lambda x: x.clamp(min=0.1),
    "clamp above": lambda x: x.clamp(max=0.1),
    "abs": torch.abs,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": lambda x: (x.abs() + 1).log(),
    "log1p": lambda x: x.abs().log1p(),
    "sqrt": lambda x: (x * x + 1).sqrt(),
    "rsqrt": lambda x: (x * x + 1).rsqrt(),
    "reciprocal": lambda x: (x * x + 1).reciprocal(),
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "square": torch.square,
    "cube": lambda x: x**3,
    "negative": lambda x: -x,
    "softmax": lambda x: x.softmax(1),
    "log softmax": lambda x: x.log_softmax(0),
    "logsumexp": lambda x: x.logsumexp(1),
    "layer norm": lambda x: F.layer_norm(x, (4,), torch.arange(4).double(), torch.ones(4).double()),
    "group norm": lambda x: F.group_norm(x.view(3, 2, 2), 2, torch.arange(2).double(), torch.ones(2).double()),
    "batch norm": lambda x: F.batch_norm(x, torch.ones(4).double(), torch.arange(1, 5).double()),
    "max pooling": lambda x: F.max_pool2d(x.view(1, 3, 2, 2), 2),
    "average pooling": lambda x: F.avg_pool2d(x.view(1, 3, 2, 2), 2),
    "sum": lambda x: x.sum(),
    "mean of rows": lambda x: x.mean(1, keepdim=True),
    "product": lambda x: x * x.flip(0) + 1 - x,
    "quotient": lambda x: x / (1 + x.T @ x).diagonal().abs(),
    "matrix product": lambda x: x @ x.mT,
    "three dimensions": lambda x: x.view(3, 2, 2) @ x.view(3, 2, 2).transpose(1, 2),
    "linear": lambda x: F.linear(x, randn(5, 4), randn(5)),
    "convolution": lambda x: F.conv1d(x.unsqueeze(0), randn(2, 3, 3), padding=1),
    "concatenation": lambda x: torch.cat([x, torch.ones(3, 1).double(), x[:, :2]], 1),
    "where": lambda x: torch.where(mask, x, 2 * x),
    "mask": lambda x: x.masked_fill(mask, -math.inf).softmax(1),
    "cross-entropy": lambda x: F.cross_entropy(x, labels),
    "cross-entropy of each": lambda x: F.cross_entropy(x, labels, reduction="none", ignore_index=3),
    "weighted cross-entropy": lambda x: F.cross_entropy(x, labels, weight=torch.arange(4).double()),
    "smoothed cross-entropy": lambda x: F.cross_entropy(x, labels, label_smoothing=0.1),
    "square loss": lambda x: F.mse_loss(x, randn(3, 4, seed=5)),
    "binary cross-entropy": lambda x: F.binary_cross_entropy_with_logits(x, mask.double()),
    "in place": lambda x: (2 * x).add_(1).relu_(),
}


@pytest.mark.parametrize("kind", ["all", "column"])
@pytest.mark.parametrize("name", RULES)
@torch.no_grad()
def test_change_of_an_operation_is_the_difference_of_its_values(name, kind):
    """Of long steps a difference of values is exact enough; of short ones it is the derivative of forward mode."""
    function, a = RULES[name], randn(3, 4)
    members, index = 5, torch.tensor([0, 3, 1, 1, 2])
    for length, tolerance in ((0.7, 1e-12), (1e-9, 1e-7)):
        d = length * randn(members, 3, 4, seed=1)
        change = d
        if kind == "column":
            picked = d[torch.arange(members), :, index]
            change = Column(1, index, picked)
            d = change.dense(a.shape)
        out = function(Difference(a, change, Run(members, exact=True)))
        assert torch.allclose(out.base, function(a), rtol=1e-15, equal_nan=True)
        got = out.dense
        for m in range(members):
            if length > 1e-3:
                wanted = function(a + d[m]) - function(a)
            else:
                wanted = torch.func.jvp(function, (a,), (d[m],))[1]
            assert torch.allclose(got[m], wanted, rtol=tolerance, atol=tolerance * length * 10), f"member {m}"


def test_operation_without_a_rule_is_subtracted_and_named():
    run = Run(2, exact=False)
    a, d = randn(3), 0.1 * randn(2, 3, seed=1)
    with torch.no_grad():
        out = torch.special.i0(Difference(a, d, run))
    assert run.valued == {"i0"}
    assert torch.allclose(out.dense, torch.special.i0(a + d) - torch.special.i0(a), rtol=1e-14)


# --- every weight -------------------------------------------------------------------------------------------------------


def central(problem, step):
    """The central difference of every weight, one after the other, as it is defined."""
    model, loss, batch = problem
    quotients = []
    with torch.no_grad():
        for p in problem.trainable:
            flat, q = p.view(-1), torch.empty(p.numel(), dtype=torch.float64)
            for i, held in enumerate(flat.tolist()):
                values = []
                for side in (1, -1):
                    flat[i] = held + side * step
                    torch.manual_seed(2)
                    values.append(float(loss(model, batch).double().mean()))
                flat[i] = held
                q[i] = (values[0] - values[1]) / (2 * step)
            quotients.append(q.view(p.shape))
    return quotients


def numerical(problem, **settings):
    source = dldw.FiniteDifference(problem.loss, **settings)
    problem.model.zero_grad()
    torch.manual_seed(2)
    source(problem.model, problem.batch)
    return [p.grad.double() for p in problem.trainable], source.path


def distance(a, b):
    """The largest difference over the largest entry."""
    scale = max(float(y.abs().max()) for y in b)
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True)) / scale


FOLLOWED = [b for b in problems.ALL if b.__name__ not in ("batch_norm", "lstm")]


def kinked():
    """A unit of the first layer passes through zero within the step on some rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.LeakyReLU(0.2), nn.Linear(5, 2)).double()
    x = randn(40, 3)
    return problems.Problem(model, lambda m, b: m(b).square().sum(1), x)


def scalar_loss():
    problem = problems.mlp()
    problem.loss = lambda m, b: 2 * F.cross_entropy(m(b[0]), b[1]) + 1
    return problem


def square_loss():
    problem = problems.residual()
    problem.loss = lambda m, b: F.mse_loss(m(b[0]), b[0][:, :3])
    return problem


def losses_of_tokens():
    """Rows that meet in attention, and go their own ways afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = nn.Sequential(nn.Embedding(7, 4), CausalBlock(), nn.LayerNorm(4), nn.Linear(4, 7)).double()
        x, y = torch.randint(6, (5, 3)), torch.randint(7, (5, 3))
    return problems.Problem(model, lambda m, b: F.cross_entropy(m(b[0]).flatten(0, 1), b[1].flatten()), (x, y))


class CausalBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4)
        return x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


MORE = [kinked, scalar_loss, square_loss, losses_of_tokens]


@pytest.mark.parametrize("step", [0.03, 2**-10])
@pytest.mark.parametrize("build", [*FOLLOWED, *MORE], ids=lambda b: b.__name__)
def test_followed_changes_give_the_central_difference_of_the_same_step(build, step):
    problem = build()
    found, path = numerical(problem, step=step)
    assert path == "differences"
    assert distance(found, central(problem, step)) < 1e-9


@pytest.mark.parametrize("build", [*FOLLOWED, scalar_loss, square_loss, losses_of_tokens], ids=lambda b: b.__name__)
def test_nothing_cancels_so_a_short_step_gives_the_gradient_to_the_last_digits(build):
    problem = build()
    torch.manual_seed(2)
    exact = problem.autograd()
    found, path = numerical(problem)
    assert path == "differences"
    assert distance(found, exact) < 1e-13


@pytest.mark.parametrize(
    "build", [problems.mlp, problems.conv, problems.residual, problems.causal_attention], ids=lambda b: b.__name__
)
def test_float32_has_six_digits(build):
    exact = build().autograd()
    found, path = numerical(build(torch.float32))
    assert path == "differences"
    assert distance(found, exact) < 1e-5


def test_one_sided_quotients_are_those_of_the_definition():
    problem, step = problems.mlp(), 2**-9
    model, loss, batch = problem
    found, _ = numerical(problem, step=step, central=False)
    here = float(loss(model, batch).mean())
    with torch.no_grad():
        for p, g in zip(problem.trainable, found, strict=True):
            flat = p.view(-1)
            for i, held in enumerate(flat.tolist()):
                flat[i] = held + step
                assert float(g.view(-1)[i]) == pytest.approx(
                    (float(loss(model, batch).mean()) - here) / step, abs=1e-11
                )
                flat[i] = held


def test_kinks_within_the_step_are_found():
    """Without a look at what four values show, the unit would be taken for smooth."""
    problem, step = kinked(), 0.03
    rows = problem.model[0](problem.batch).detach()
    assert int((rows.abs() < step).sum()) > 3, "the network has no kink within the step"
    assert distance(numerical(problem, step=step)[0], problem.autograd()) > 1e-3


def test_path_is_named():
    for problem, path in (
        (problems.mlp(), "differences"),
        (problems.mlp(torch.bfloat16), "batched"),
        (problems.lstm(), "one by one"),
        (problems.batch_norm(), "one by one"),
    ):
        assert numerical(problem)[1] == path
    problem = problems.mlp()
    problem.loss = lambda m, b: torch.special.i0(m(b[0])).sum(1)
    found, path = numerical(problem)
    assert path == "differences, values of i0"
    assert distance(found, problem.autograd()) < 1e-8
    assert numerical(problems.mlp(), evaluate="sequential")[1] == "one by one"
    assert numerical(problems.mlp(), evaluate="batched")[1] == "batched"


def test_path_is_logged_when_it_changes(caplog):
    problem = problems.mlp()
    source = dldw.FiniteDifference(problem.loss)
    with caplog.at_level("INFO", logger="dldw"):
        for _ in range(3):
            source(problem.model, problem.batch)
    assert [r.message for r in caplog.records] == ["single weights of Sequential are nudged by the path 'differences'"]


def passes(monkeypatch):
    """Collects every pass from here on."""
    made = []

    class Noted(Run):
        def __init__(self, members, *, exact):
            super().__init__(members, exact=exact)
            made.append(self)

    monkeypatch.setattr(every_weight, "Run", Noted)
    return made


def test_a_layer_takes_four_members_a_unit_and_not_two_a_weight(monkeypatch):
    made, model = passes(monkeypatch), nn.Sequential(nn.Linear(50, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    problem = problems.Problem(model, problems.cross_entropy, (randn(9, 50), torch.arange(9) % 3))
    numerical(problem)
    assert sum(run.members for run in made) == 4 * (6 + 3)


def test_rows_that_meet_take_two_members_a_position_of_a_unit(monkeypatch):
    made, problem = passes(monkeypatch), losses_of_tokens()
    numerical(problem)
    units, positions = 4 + 12, 3  # of the embedding, and of q, k and v
    after = 4 + 7  # units of layers after which nothing meets
    tries = 4 * every_weight._FIRST * 3  # first passes that show that rows meet, and that the embedding is one
    norm = 2 * 8
    assert sum(run.members for run in made) <= 2 * units * positions + 4 * after + norm + tries


def test_a_row_of_an_embedding_that_is_not_looked_up_changes_nothing():
    problem = losses_of_tokens()
    found, _ = numerical(problem)
    assert not found[0][6].any()
    assert found[0][:6].any()


def test_a_pass_keeps_to_the_memory_bound(monkeypatch):
    problem = problems.conv()
    objective = Objective(problem.model, problem.loss, problem.batch, Weights.of(problem.model))
    with torch.no_grad():
        whole = nudged(objective, 2**-20, 1 << 30)
        made = passes(monkeypatch)
        bound = 10_000
        chunked = nudged(objective, 2**-20, bound)
    assert len(made) > 10
    assert all(run.most <= bound for run in made if run.members > 2 * every_weight._FIRST)
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-18) for a, b in zip(whole.odd, chunked.odd, strict=True))
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-18) for a, b in zip(whole.even, chunked.even, strict=True))


def test_gradient_does_not_depend_on_the_memory_bound():
    for problem in (problems.mlp(), losses_of_tokens()):
        whole, _ = numerical(problem)
        chunked, path = numerical(problem, evaluate=dldw.Evaluator(memory=1))
        assert path == "differences"
        assert distance(chunked, whole) < 1e-13


def test_estimate_of_followed_changes_is_what_a_call_adds():
    problem = problems.mlp()
    found, _ = numerical(problem)
    estimate = dldw.FiniteDifference(problem.loss).estimate(problem.model, problem.batch)
    assert torch.allclose(torch.tensor(estimate.coefficients), torch.cat([g.flatten() for g in found]).float())


# --- some weights -------------------------------------------------------------------------------------------------------


def test_coordinate_wise_is_the_finite_difference_on_its_mask():
    for problem in (problems.mlp(), problems.tied(), problems.conv()):
        name, weight = next(iter(problem.model.named_parameters()))
        chosen = torch.rand(weight.shape, generator=seeded()) < 0.4
        whole = central(problem, 2**-9)
        for reuse, path in ((True, "differences"), (False, "batched")):
            source = dldw.CoordinateWise(problem.loss, sigma=2**-9, select={name: chosen}, central=True, reuse=reuse)
            problem.model.zero_grad()
            source(problem.model, problem.batch)
            assert source.path == path
            assert torch.allclose(weight.grad[chosen], whole[0][chosen], rtol=1e-9, atol=1e-11)
            assert not weight.grad[~chosen].any()
            assert all(p.grad is None or not p.grad.any() for p in problem.trainable[1:])
            assert source.forwards(0) == 2 * int(chosen.sum())


def test_coordinate_wise_draws_another_part_each_time_and_every_weight_has_its_turn():
    problem = problems.mlp()
    source, whole = dldw.CoordinateWise(problem.loss, fraction=0.3, generator=seeded()), numerical(problem)[0]
    d, counts = sum(p.numel() for p in problem.trainable), 0
    for _ in range(40):
        problem.model.zero_grad()
        source(problem.model, problem.batch)
        hit = torch.cat([(p.grad != 0).flatten() for p in problem.trainable])
        assert int(hit.sum()) == math.ceil(0.3 * d)
        counts = counts + hit.int()
        for p, g in zip(problem.trainable, whole, strict=True):
            assert torch.allclose(p.grad[p.grad != 0], g[p.grad != 0], atol=5e-3)
    assert bool((counts > 0).all())
    assert bool((counts < 40).all())


@pytest.mark.parametrize("memory", [1, 1 << 40])
@pytest.mark.parametrize("reuse", [True, False])
def test_a_drawn_part_holds_no_weight_twice_whatever_is_held_at_a_time(memory, reuse):
    problem = problems.mlp()
    evaluate = dldw.Evaluator(memory=memory)
    source = dldw.CoordinateWise(problem.loss, fraction=0.9, reuse=reuse, evaluate=evaluate, generator=seeded())
    source(problem.model, problem.batch)
    d = sum(p.numel() for p in problem.trainable)
    assert sum(int(p.grad.count_nonzero()) for p in problem.trainable) == math.ceil(0.9 * d)


def test_wrong_settings_of_coordinate_wise_say_so():
    loss, model = problems.cross_entropy, problems.mlp()
    with pytest.raises(dldw.DldwError, match="fraction must be above 0 and at most 1, got 0: it is the part"):
        dldw.CoordinateWise(loss, fraction=0)
    with pytest.raises(dldw.DldwError, match="select must be random or a mask for each parameter by name, got 'big'"):
        dldw.CoordinateWise(loss, select="big")
    with pytest.raises(dldw.DldwError, match=r"the mask 'x' is for no parameter of the model. Give one boolean"):
        dldw.CoordinateWise(loss, select={"x": torch.ones(1).bool()})(model.model, model.batch)
    with pytest.raises(
        dldw.DldwError, match=r"the masks select no trainable weight, so there is nothing to nudge. Set some"
    ):
        dldw.CoordinateWise(loss, select={"0.bias": torch.zeros(4).bool()})(model.model, model.batch)


# --- curvature ----------------------------------------------------------------------------------------------------------


def hessian(problem):
    """By autograd, over all weights as one vector."""
    names = [n for n, p in problem.model.named_parameters() if p.requires_grad]
    sizes = [p.numel() for p in problem.trainable]

    def value(flat):
        parts = [t.view(p.shape) for t, p in zip(flat.split(sizes), problem.trainable, strict=True)]
        given = dict(zip(names, parts, strict=True))
        run = lambda *inputs: torch.func.functional_call(problem.model, given, inputs)  # noqa: E731
        return problem.loss(run, problem.batch).mean()

    return torch.autograd.functional.hessian(value, torch.cat([p.detach().flatten() for p in problem.trainable]))


@pytest.mark.parametrize("build", [problems.mlp, problems.conv, problems.residual], ids=lambda b: b.__name__)
def test_diagonal_of_the_hessian_is_that_of_autograd_within_its_error(build):
    problem = build()
    exact = hessian(problem).diagonal()
    found = dldw.hessian_diagonal(*problem)
    values, errors = (torch.cat([t.flatten() for t in by_name.values()]) for by_name in (found.values, found.errors))
    assert found.path == "differences"
    assert list(found.values) == [name for name, _ in problem.model.named_parameters()]
    assert bool(((values - exact).abs() <= errors).all())
    settled = errors < 1e-5 * exact.abs().max()
    assert bool(settled.all()) if build is not problems.conv else int((~settled).sum()) == 1, "but for one kink"


@pytest.mark.parametrize(("build", "path"), [(problems.lstm, "one by one"), (problems.mlp, "batched")])
def test_diagonal_of_the_hessian_without_following_changes(build, path):
    problem = build()
    evaluate = dldw.Evaluator("batched") if path == "batched" else None
    found = dldw.hessian_diagonal(*problem, evaluate=evaluate)
    assert found.path == path
    values, errors = (torch.cat([t.flatten() for t in by_name.values()]) for by_name in (found.values, found.errors))
    if path == "batched":
        assert bool(((values - hessian(problem).diagonal()).abs() <= errors).all())
    else:
        wanted = torch.cat([t.flatten() for t in dldw.hessian_diagonal(*problem, step=2**-6).values.values()])
        assert torch.allclose(values, wanted, atol=1e-6)
    assert float(errors.max()) < 1e-3


def test_diagonal_of_the_hessian_of_a_long_step_is_exact_on_a_quadratic():
    problem = problems.QuadraticProblem()
    found = dldw.hessian_diagonal(*problem, step=1.0)
    got = torch.cat([t.flatten() for t in found.values.values()])
    assert torch.allclose(got, problem.hessian.diagonal(), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("build", [problems.mlp, problems.residual], ids=lambda b: b.__name__)
def test_directional_curvature_is_that_of_autograd_within_its_error(build, dtype):
    matrix = hessian(build())
    problem = build(dtype)
    names = [name for name, _ in problem.model.named_parameters()]
    z = {name: randn(*p.shape, seed=i) for i, (name, p) in enumerate(zip(names, problem.trainable, strict=True))}
    flat = torch.cat([t.flatten() for t in z.values()])
    wanted = float(flat @ matrix @ flat)
    found = dldw.directional_curvature(*problem, z)
    assert abs(found.value - wanted) <= found.error
    assert found.error < (1e-5 if dtype == torch.float64 else 0.5) * abs(wanted)
    assert found.forwards <= 29


def test_curvature_leaves_the_model_as_it_was():
    problem = problems.dropout()
    torch.manual_seed(5)
    problem.loss(problem.model, problem.batch)
    wanted = torch.get_rng_state()
    before = [p.detach().clone() for p in problem.trainable]
    for measure in (
        lambda: dldw.hessian_diagonal(*problem),
        lambda: dldw.directional_curvature(*problem, {"0.bias": torch.ones(8)}),
    ):
        torch.manual_seed(5)
        measure()
        assert torch.equal(torch.get_rng_state(), wanted)
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, problem.trainable, strict=True))


def test_wrong_directions_say_so():
    problem = problems.mlp()
    with pytest.raises(dldw.DldwError, match=r"the direction's 'x' is for no parameter of the model. Give one tensor"):
        dldw.directional_curvature(*problem, {"x": torch.ones(1)})
    with pytest.raises(dldw.DldwError, match=r"the direction's '0.bias' has the shape \[1\]. Give one tensor for each"):
        dldw.directional_curvature(*problem, {"0.bias": torch.ones(1)})
    with pytest.raises(dldw.DldwError, match="the direction is zero, along which nothing changes"):
        dldw.directional_curvature(*problem, {"0.bias": torch.zeros(4)})
    with pytest.raises(dldw.DldwError, match="must be positive and finite, got 0"):
        dldw.hessian_diagonal(*problem, step=0)
