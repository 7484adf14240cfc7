"""Layers of a model as it runs, and the rules that see them: each against what its formula gives by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dldw
from dldw.compare.meter import peak_bytes
from dldw.layers import Call, Layers, Layout
from dldw.learners.goodness import with_label
from dldw.objective import Objective
from dldw.weights import Weights
from tests.contract import problems
from tests.contract.checks import close, gradients, seeded
from tests.contract.problems import Block, Problem


def chain(*sizes: int, activation: type[nn.Module] = nn.Tanh, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), activation())]
        return nn.Sequential(*layers[:-1]).to(dtype)


def problem(*sizes: int, examples: int = 6) -> Problem:
    x = torch.randn(examples, sizes[0], dtype=torch.float64, generator=seeded(1))
    return Problem(chain(*sizes), problems.cross_entropy, (x, torch.arange(examples) % sizes[-1]))


def estimate(source, p: Problem) -> list[torch.Tensor]:
    p.model.zero_grad()
    source(p.model, p.batch)
    return gradients(p.model)


# --- layers --------------------------------------------------------------------------------------------------------


class Functional(nn.Module):
    """Calls its layers itself, the second one first and twice, and one that is not trainable."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
        self.frozen = nn.Linear(3, 3).double().requires_grad_(False)

    def forward(self, x):
        x = F.linear(x, self.second.weight, self.second.bias)
        return self.first(self.frozen(self.second(x)))


def test_calls_come_in_execution_order_with_their_inputs():
    model, calls = Functional(), []
    x = torch.randn(4, 3, dtype=torch.float64, generator=seeded())
    with Layers(Weights.of(model), lambda call: (calls.append(call), call.output())[1]):
        out = model(x)
    assert torch.equal(out, model(x))
    assert [call.index for call in calls] == [0, 1, 2]
    assert [call.weight for call in calls] == [model.second.weight, model.second.weight, model.first.weight]
    assert torch.equal(calls[0].input, x)
    assert torch.equal(calls[2].input, model.frozen(model.second(model.second(x))))


LAYERS = {
    "linear": (lambda: nn.Linear(3, 4), (5, 3)),
    "linear of a sequence": (lambda: nn.Linear(3, 4), (2, 5, 3)),
    "linear without bias": (lambda: nn.Linear(3, 4, bias=False), (5, 3)),
    "linear of one example": (lambda: nn.Linear(3, 4), (3,)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, stride=2, padding=1), (3, 2, 9)),
    "conv2d": (lambda: nn.Conv2d(2, 4, (3, 2), padding=(1, 0), dilation=(1, 2)), (3, 2, 7, 6)),
    "conv2d of groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), (3, 4, 5, 5)),
    "conv2d with padding same": (lambda: nn.Conv2d(2, 4, (4, 3), padding="same"), (3, 2, 7, 6)),
    "conv2d with padding valid": (lambda: nn.Conv2d(2, 4, 3, padding="valid"), (3, 2, 7, 6)),
    "conv2d with padding reflect": (lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), (3, 2, 7, 6)),
    "conv2d of one example": (lambda: nn.Conv2d(2, 4, 3), (2, 7, 6)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2), (2, 1, 3, 4, 3)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_products_of_a_call_are_the_gradients_of_autograd(kind):
    make, shape = LAYERS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = make().double()
    x = torch.randn(shape, dtype=torch.float64, generator=seeded()).requires_grad_()
    calls: list[Call] = []
    with Layers(Weights.of(layer), lambda call: (calls.append(call), call.output())[1]):
        out = layer(x)
    (call,) = calls
    error = torch.randn(out.shape, dtype=torch.float64, generator=seeded(1))
    inner = error.reshape(call.output().shape)
    wanted = torch.autograd.grad(out, [call.input, *layer.parameters()], error)
    got = [call.to_input(inner, call.input, call.weight), call.to_weight(inner, call.input)]
    got += [call.to_bias(inner)] if layer.bias is not None else []
    assert close(got, list(wanted), rtol=1e-12)


def layout(p: Problem) -> Layout:
    return Layout.of(Objective(p.model, p.loss, p.batch, Weights.of(p.model)))


def test_layout_counts_nodes_and_leaves_out_what_is_used_in_another_way_too():
    found = layout(problems.conv())
    assert found.nodes == {(0, 1): 2 * 4 * 4, (2, 3): 3}
    assert (found.calls, found.output) == (2, (4, 3))
    tied = problems.tied()
    places = {id(p): i for i, p in enumerate(tied.model.parameters())}
    body = tied.model.body[0]
    assert layout(tied).nodes == {(places[id(body.weight)], places[id(body.bias)]): 4}
    decayed = problem(3, 4, 2)
    decayed.loss = lambda m, batch: problems.cross_entropy(m, batch) + m[0].weight.square().sum()
    assert layout(decayed).nodes == {(2, 3): 2}


# --- feedback alignment --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["random", "direct", "sign-symmetric"])
def test_feedback_alignment_is_its_formula(mode):
    p = problem(5, 4, 3, 2)
    source = dldw.FeedbackAlignment(p.loss, mode=mode, generator=seeded())
    got = estimate(source, p)
    fixed = list(source.state_dict()["feedback"].values())  # in the order in which errors come back
    with torch.no_grad():
        x, labels = p.batch
        weights = [m.weight for m in p.model if isinstance(m, nn.Linear)]
        h0 = p.model[:2](x)
        h1 = p.model[:4](x)
        e2 = (p.model(x).softmax(1) - F.one_hot(labels, 2)) / len(x)
        if mode == "sign-symmetric":
            back = [w.sign() * w.abs().mean() for w in weights]
        else:
            back = [None, fixed[1], fixed[0]]
        e1 = e2 @ back[2] * (1 - h1.square())
        e0 = (e2 if mode == "direct" else e1) @ back[1] * (1 - h0.square())
        wanted = [t for e, h in ((e0, x), (e1, h0), (e2, h1)) for t in (e.T @ h, e.sum(0))]
    assert close(got, wanted, rtol=1e-12)


@pytest.mark.parametrize("build", [problems.conv, problems.residual, problems.tied], ids=lambda build: build.__name__)
@pytest.mark.parametrize("mode", ["random", "direct", "sign-symmetric"])
def test_gradient_of_the_output_layer_stays_exact_and_that_of_others_does_not(mode, build):
    p = build()
    wanted = p.autograd()
    got = estimate(dldw.FeedbackAlignment(p.loss, mode=mode, generator=seeded()), p)
    assert close(got[-1:], wanted[-1:], rtol=1e-12)
    assert not close(got, wanted, rtol=0.01)


def test_true_transpose_equals_backprop_and_says_so():
    p = problems.conv()
    source = dldw.FeedbackAlignment(p.loss, mode="transpose")
    assert close(estimate(source, p), p.autograd(), rtol=1e-12)
    assert (source.card.claim, dldw.FeedbackAlignment.card.claim) == ("exact", "biased")


def test_feedback_alignment_comes_to_align():
    """The angle between what comes back and the true gradient shrinks as the weights learn (Lillicrap et al. 2016)."""
    p = problem(20, 30, 3, examples=60)
    source = dldw.FeedbackAlignment(p.loss, mode="random", generator=seeded(2))
    learner = dldw.Descent(p.model, source, torch.optim.SGD(p.model.parameters(), lr=0.5))

    def cosine() -> float:
        got, wanted = (torch.cat([t.flatten() for t in g[:2]]) for g in (estimate(source, p), p.autograd()))
        return float(F.cosine_similarity(got, wanted, dim=0))

    before = cosine()
    for _ in range(60):
        learner.step(p.batch)
    assert cosine() > max(0.5, before + 0.2)


def test_direct_feedback_between_other_numbers_of_rows_is_an_error():
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.second(self.first(x.flatten(0, 1)).view(*x.shape[:2], 4).mean(1))

    source = dldw.FeedbackAlignment(lambda m, x: m(x).square().sum(1), mode="direct")
    model = Pooled()
    source(model, torch.ones(5, 2, 3))  # nothing comes back to the first layer's input
    model = nn.Sequential(nn.Linear(3, 3), model)
    model.zero_grad()
    with pytest.raises(
        dldw.DldwError, match=r"output layer has 5 rows and another layer's input 10. Keep the examples"
    ):
        source(model, torch.ones(5, 2, 3))
    assert all(p.grad is None for p in model.parameters())


# --- node perturbation ---------------------------------------------------------------------------------------------


def draws(source, p: Problem, count: int) -> torch.Tensor:
    return torch.stack([torch.cat([g.flatten() for g in estimate(source, p)]) for _ in range(count)])


def off_by(samples: torch.Tensor, wanted: torch.Tensor) -> float:
    """Of their mean, in standard errors."""
    return float(((samples.mean(0) - wanted) / (samples.std(0) / math.sqrt(len(samples)) + 1e-9)).abs().max())


@pytest.mark.parametrize("layers", ["auto", "nodes", "weights"])
def test_node_perturbation_of_a_deep_network_is_unbiased(layers):
    p = problems.conv()
    source = dldw.NodePerturbation(p.loss, layers=layers, generator=seeded(3))
    samples = draws(source, p, 600)
    assert off_by(samples, torch.cat([g.flatten() for g in p.autograd()])) < 5


def test_variance_where_only_the_mean_loss_is_known_has_its_closed_form():
    """N · sum‖δ_i‖² · sum‖x_i‖² / B² + ‖g‖², by the moments of Gaussians; the bias is an input of 1."""
    p = problems.LinearProblem()
    x, delta = p.batch
    source = dldw.NodePerturbation(p.loss, per_example=False, generator=seeded(4))
    samples = draws(source, p, 3000)
    assert off_by(samples, p.gradient) < 5
    inputs = float(x.square().sum()) + len(x)
    square = float(p.gradient.square().sum())
    wanted = p.nodes * float(delta.square().sum()) * inputs / len(x) ** 2 + square
    squares = (samples - p.gradient).square().sum(1)
    assert abs(float(squares.mean()) - wanted) < 5 * float(squares.std()) / math.sqrt(len(squares))
    each = (p.nodes + 1) * float(p.each.square().sum(1).mean()) / len(x)
    assert wanted > 3 * each, "each example's own loss would be no advantage here"


def test_auto_perturbs_each_layer_where_it_has_less():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).double()  # 40 against 144
    x = torch.randn(5, 1, 8, 8, dtype=torch.float64, generator=seeded())
    p = Problem(model, problems.cross_entropy, (x, torch.arange(5)))
    objective = Objective(model, p.loss, p.batch, Weights.of(model))
    places = {w: dldw.NodePerturbation(p.loss, layers=w)._on_nodes(objective) for w in ("auto", "nodes", "weights")}
    assert places == {"auto": {2, 3}, "nodes": {0, 1, 2, 3}, "weights": set()}


def test_node_perturbation_of_what_cannot_be_told_apart_is_an_error():
    p = problem(3, 4, 2)
    p.model = nn.Sequential(nn.Flatten(0, 1), p.model, nn.Unflatten(0, (5, 2)), nn.Flatten())
    x = torch.ones(5, 2, 3, dtype=torch.float64)
    source = dldw.NodePerturbation(lambda m, batch: m(batch).square().sum(1))
    with pytest.raises(
        dldw.DldwError, match=r"each of the 5 examples .* puts out 10 rows, .* or use per_example=False"
    ):
        source(p.model, x)
    with pytest.raises(dldw.DldwError, match=r"reads one loss for each example \[B\], and the loss is a scalar"):
        dldw.NodePerturbation(lambda m, batch: m(batch).square().sum())(p.model, x)
    turns = iter((3, 3, 4))  # one look at the layers, and two sides

    def changing(m, batch):
        return m[1][0](batch[: next(turns)]).square().sum(1)

    with pytest.raises(dldw.DldwError, match="layers that the model runs changed between the two sides"):
        dldw.NodePerturbation(changing)(p.model, torch.ones(5, 3, dtype=torch.float64))


def test_settings_that_node_perturbation_cannot_have():
    with pytest.raises(dldw.DldwError, match=r"sigma .* must be positive and finite, got 0"):
        dldw.NodePerturbation(problems.cross_entropy, sigma=0)
    with pytest.raises(dldw.DldwError, match="layers must be auto, nodes or weights, got 'some'"):
        dldw.NodePerturbation(problems.cross_entropy, layers="some")


# --- local losses --------------------------------------------------------------------------------------------------


def local_gradients(p: Problem, readouts: list[torch.Tensor]) -> list[torch.Tensor]:
    """Of cross-entropy at the readout of every hidden layer of a chain with tanh, and at the output, one by one."""
    x, labels = p.batch
    out = []
    for number in range(0, len(p.model), 2):
        block = p.model[number : number + 2]
        h = block(x)
        scores = h @ readouts[number // 2].T if number + 2 < len(p.model) else h
        out += torch.autograd.grad(F.cross_entropy(scores, labels), list(block.parameters()))
        x = h.detach()
    return out


def test_local_backprop_is_the_gradient_of_every_layers_own_loss():
    p = problem(5, 4, 4, 3)
    source = dldw.LocalBackprop(p.loss, generator=seeded())
    got = estimate(source, p)
    assert close(got, local_gradients(p, list(source.state_dict()["readouts"].values())), rtol=1e-12)


@pytest.mark.parametrize("groups", [1, 3, 4, 50])
def test_activity_forward_gradients_are_local_backprop_on_average(groups):
    p = problem(5, 4, 4, 3)
    local = dldw.LocalBackprop(p.loss, generator=seeded())
    wanted = torch.cat([g.flatten() for g in estimate(local, p)])
    source = dldw.ActivityForwardGradient(p.loss, groups=groups, generator=seeded(6))
    source.load_state_dict({"generator": None, "readouts": local.state_dict()["readouts"]})
    assert off_by(draws(source, p, 500), wanted) < 5


def test_activity_forward_gradients_of_convolutions_are_local_backprop_on_average():
    p = problems.conv()
    local = dldw.LocalBackprop(p.loss, generator=seeded())
    wanted = torch.cat([g.flatten() for g in estimate(local, p)])
    source = dldw.ActivityForwardGradient(p.loss, groups=2, generator=seeded(6))
    source.load_state_dict({"generator": None, "readouts": local.state_dict()["readouts"]})
    assert off_by(draws(source, p, 500), wanted) < 5


def test_more_groups_leave_less_variance():
    p = problem(5, 16, 3)
    spread = []
    for groups in (1, 4, 16):
        source = dldw.ActivityForwardGradient(p.loss, groups=groups, generator=seeded(7))
        spread.append(float(draws(source, p, 200)[:, : 16 * 6].var(0).sum()))
    assert spread[0] > 2 * spread[1] > 4 * spread[2]


def test_blocks_named_by_the_model_are_trained_one_by_one():
    model = nn.Sequential(nn.Linear(5, 3), Block(3), Block(3), nn.Linear(3, 3)).double()
    x = torch.randn(6, 5, dtype=torch.float64, generator=seeded(1))
    p = Problem(model, problems.cross_entropy, (x, torch.arange(6) % 3))
    source = dldw.LocalBackprop(p.loss, generator=seeded())
    with pytest.raises(dldw.DldwError, match="something bypasses the layer that ends block"):
        source(model, p.batch)
    model.dldw_blocks = ["0", "1", "2", "3"]
    got = estimate(source, p)
    readouts = [m for (block, *_), m in source.state_dict()["readouts"].items() if block < 3]
    h, wanted = x, []
    for number, block in enumerate(model):
        out = block(h)
        scores = out @ readouts[number].T if number < 3 else out
        wanted += torch.autograd.grad(F.cross_entropy(scores, p.batch[1]), list(block.parameters()))
        h = out.detach()
    assert close(got, wanted, rtol=1e-12)
    model.dldw_blocks = ["0", "one"]
    with pytest.raises(dldw.DldwError, match=r"dldw_blocks of Sequential names the submodule 'one', which it does not"):
        source(model, p.batch)


def test_activity_forward_gradients_train_named_blocks_with_and_without_layers():
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 3), Block(3), nn.Linear(3, 3)).double()
    model.dldw_blocks = ["0", "1", "2", "3"]
    x = torch.randn(6, 5, dtype=torch.float64, generator=seeded(1))
    p = Problem(model, problems.cross_entropy, (x, torch.arange(6) % 3))
    local = dldw.LocalBackprop(p.loss, generator=seeded())
    wanted = torch.cat([g.flatten() for g in estimate(local, p)])
    source = dldw.ActivityForwardGradient(p.loss, groups=1, generator=seeded(6))
    source.load_state_dict({"generator": None, "readouts": local.state_dict()["readouts"]})
    assert off_by(draws(source, p, 400), wanted) < 5


def test_bypass_of_the_last_layer_is_found_too():
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            h = self.first(x)
            return h + self.last(h.relu())

    model = Skipping()
    batch = torch.ones(4, 3), torch.arange(4) % 3
    for make in (dldw.LocalBackprop, lambda loss: dldw.MonoForward(model, loss=loss)):
        made = make(problems.cross_entropy)
        step = made.step if isinstance(made, dldw.Learner) else lambda b, made=made: made(model, b)
        with pytest.raises(dldw.DldwError, match="something bypasses the layer that ends block 1"):
            step(batch)


@pytest.mark.parametrize(
    "make", [dldw.LocalBackprop, dldw.ActivityForwardGradient, lambda loss: dldw.MonoForward(chain(3, 4, 2), loss=loss)]
)
def test_loss_without_a_gradient_is_a_reasoned_error(make):
    p = problem(3, 4, 2)
    made = make(lambda m, batch: (m(batch[0]).argmax(1) != batch[1]).double())
    step = made.step if isinstance(made, dldw.Learner) else lambda b: made(p.model, b)
    with pytest.raises(dldw.DldwError, match="the loss does not depend on the model's trainable weights"):
        step(p.batch)
    assert all(w.grad is None for w in p.trainable)


def test_layer_without_a_gradient_cannot_have_an_optimizer():
    class Step(nn.Module):
        def forward(self, x):
            return (x > 0).to(x.dtype)

    layers = nn.Sequential(nn.Linear(6, 4), Step(), nn.Linear(4, 3))
    with pytest.raises(dldw.DldwError, match=r"layer 1 has no weights that its own loss can move"):
        dldw.ForwardForward(layers).step((torch.ones(2, 6), torch.zeros(2).long()))


def test_readouts_need_one_tensor_put_out_once():
    p = problem(3, 4, 2)
    p.loss = lambda m, batch: (m(batch[0]) - m(batch[0] + 1)).square().sum(1)
    with pytest.raises(dldw.DldwError, match=r"the loss has to call the model once and the model to return one tensor"):
        dldw.LocalBackprop(p.loss)(p.model, p.batch)


def test_sequences_of_any_length_share_a_readout():
    model = chain(3, 4, 2)

    def loss(m, x):
        return m(x).square().flatten(1).sum(1)

    source = dldw.LocalBackprop(loss, generator=seeded())
    for length in (5, 7):
        source(model, torch.rand(2, length, 3, dtype=torch.float64, generator=seeded()))
    assert [tuple(m.shape) for m in source.state_dict()["readouts"].values()] == [(2, 4)]


def test_head_only_is_the_gradient_of_the_last_layer_and_zero_elsewhere():
    p = problem(5, 4, 4, 3)
    got, wanted = estimate(dldw.HeadOnly(p.loss), p), p.autograd()
    assert close(got[-2:], wanted[-2:], rtol=1e-12)
    assert not any(g.any() for g in got[:-2])


class Elementwise(nn.Module):
    """Has weights, and no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.scale


@pytest.mark.parametrize("name", [n for n, m in dldw.methods().items() if m.card.note.startswith("Other objective: ")])
def test_model_without_layers_is_a_reasoned_error(name):
    model, batch = Elementwise(), (torch.rand(4, 3), torch.arange(4) % 3)
    learner = dldw.methods()[name].build(model, problems.cross_entropy, seeded())
    with pytest.raises(
        dldw.DldwError, match=r"a rule for Linear and Conv layers, and Elementwise runs none .* dldw.SPSA"
    ):
        learner.step(batch)


# --- learners ------------------------------------------------------------------------------------------------------


def test_a_step_of_mono_forward_moves_every_layer_and_projection_down_its_own_loss():
    p = problem(5, 4, 4, 3)
    learner = dldw.MonoForward(p.model, loss=p.loss, lr=0.1, optimizer="sgd", generator=seeded())
    learner.step(p.batch)
    for _ in range(2):
        before = [w.detach().clone() for w in p.trainable]
        projections = [m.clone() for m in learner.state_dict()["projections"].values()]
        x, labels = p.batch
        first, second = p.model[:2](x), p.model[:4](x)
        of_projections = [
            torch.autograd.grad(F.cross_entropy(h.detach() @ m.requires_grad_().T, labels), m)[0]
            for h, m in zip((first, second), projections, strict=True)
        ]
        wanted = local_gradients(p, [m.detach() for m in projections])
        learner.step(p.batch)
        moved = [(b - w) / 0.1 for b, w in zip(before, p.trainable, strict=True)]
        assert close([m.detach() for m in moved], wanted, rtol=1e-10)
        after = learner.state_dict()["projections"].values()
        steps = [(b - a).detach() / 0.1 for b, a in zip(projections, after, strict=True)]
        assert close(steps, of_projections, rtol=1e-10)


def test_label_is_written_over_the_first_inputs():
    x = torch.arange(12.0).view(2, 2, 3) + 1
    assert with_label(x, torch.tensor([2, 0]), 3).tolist() == [
        [[0, 0, 1], [4, 5, 6]],
        [[1, 0, 0], [10, 11, 12]],
    ]


@pytest.mark.parametrize("loss", ["goodness", "symba"])
def test_a_step_of_forward_forward_moves_every_layer_down_its_own_loss(loss):
    layers = chain(6, 5, 4, activation=nn.ReLU)
    layers.append(nn.ReLU())
    x, labels = torch.rand(7, 6, dtype=torch.float64, generator=seeded(1)), torch.arange(7) % 2
    learner = dldw.ForwardForward(
        layers, loss=loss, classes=2, threshold=1.5, alpha=1.5, lr=0.1, optimizer="sgd", generator=seeded()
    )
    before = [w.detach().clone() for w in layers.parameters()]
    wanted, pair, total = [], [with_label(x, y, 2) for y in (labels, 1 - labels)], 0.0  # two classes: one wrong label
    for block in (layers[:2], layers[2:]):
        outs = [block(h) for h in pair]
        good, bad = (h.square().mean(1) for h in outs)
        local = torch.log1p(torch.exp(1.5 * (bad - good)))
        if loss == "goodness":
            local = torch.log1p(torch.exp(1.5 - good)) + torch.log1p(torch.exp(bad - 1.5))
        wanted += torch.autograd.grad(local.mean(), list(block.parameters()))
        total += float(local.mean().detach())
        pair = [h.detach() / h.detach().square().mean(1, keepdim=True).sqrt() for h in outs]
    assert float(learner.step((x, labels))) == pytest.approx(total, rel=1e-6)
    moved = [(b - w.detach()) / 0.1 for b, w in zip(before, layers.parameters(), strict=True)]
    assert close(moved, wanted, rtol=1e-4, atol=1e-7)  # the root mean square is kept from zero by 1e-8


def test_forward_forward_predicts_the_label_that_all_layers_find_good():
    layers = chain(6, 5, 3, activation=nn.ReLU)
    learner = dldw.ForwardForward(layers)
    x = torch.rand(4, 6, dtype=torch.float64, generator=seeded())
    scores = learner.model(x)
    for label in range(3):
        first = layers[:2](with_label(x, torch.full((4,), label), 3))
        second = layers[2:](first / first.square().mean(1, keepdim=True).sqrt())
        assert torch.allclose(scores[:, label], first.square().mean(1) + second.square().mean(1), rtol=1e-5)


def test_errors_of_forward_forward():
    layers = chain(6, 3, dtype=torch.float32)
    learner = dldw.ForwardForward(layers)
    for batch in (torch.ones(2, 6), (torch.ones(2, 6), torch.ones(2)), (torch.ones(2, 6), torch.ones(3).long())):
        with pytest.raises(dldw.DldwError, match=r"batches must be \(inputs, labels\): .* use dldw.MonoForward"):
            learner.step(batch)
    with pytest.raises(dldw.DldwError, match="writes the label over the first inputs, one of 8, and an example has 6"):
        dldw.ForwardForward(layers, classes=8).step((torch.ones(2, 6), torch.zeros(2).long()))
    with pytest.raises(dldw.DldwError, match="loss must be goodness or symba, got 'mse'"):
        dldw.ForwardForward(layers, loss="mse")
    with pytest.raises(dldw.DldwError, match="threshold and alpha must be positive, got 0 and 8"):
        dldw.ForwardForward(layers, threshold=0)
    with pytest.raises(dldw.NonFiniteLossError, match="the loss of layer 1 is nan, so it has no gradient to follow"):
        learner.step((torch.full((2, 6), torch.nan), torch.zeros(2).long()))


@pytest.mark.parametrize("name", ["mono-forward", "forward-forward"])
def test_memory_of_a_step_does_not_grow_with_depth(name):
    def peak(method: str, depth: int) -> int:
        model = chain(32, *[32] * depth, 10, dtype=torch.float32)
        batch = torch.rand(64, 32, generator=seeded()), torch.arange(64) % 10
        learner = dldw.methods()[method].build(model, problems.cross_entropy, seeded(), lr=1e-3, optimizer="sgd")
        learner.step(batch)
        model.zero_grad()
        return peak_bytes(lambda: (learner.step(batch), None)[1], model)

    assert peak(name, 40) < 1.1 * peak(name, 4)
    assert peak("backprop", 40) > 4 * peak("backprop", 4), "the measure sees no graph at all"


# --- cards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("feedback-alignment", "local-backprop", "head-only", "activity-forward-gradient"),
        *("mono-forward", "forward-forward"),
    ],
)
def test_card_says_that_the_objective_is_another(name):
    card = dldw.methods()[name].card
    assert card.claim == "biased"
    assert card.note.startswith("Other objective: ")


def test_settings_that_local_rules_cannot_have():
    with pytest.raises(dldw.DldwError, match="mode must be random, sign-symmetric, direct or transpose, got 'none'"):
        dldw.FeedbackAlignment(problems.cross_entropy, mode="none")
    with pytest.raises(dldw.DldwError, match="groups must be at least 1, got 0"):
        dldw.ActivityForwardGradient(problems.cross_entropy, groups=0)
    with pytest.raises(dldw.DldwError, match="optimizer must be sgd or adam, got 'lion'"):
        dldw.MonoForward(chain(2, 2), loss=problems.cross_entropy, optimizer="lion")
