"""Bad input: each error says what is wrong, why, and what to do, and nothing is lost."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

import dldw
from dldw.registry import method
from tests.contract import problems
from tests.contract.checks import gradients, seeded
from tests.contract.variants import LOSS_FREE, SOURCES

every_variant = pytest.mark.parametrize("source", SOURCES, ids=str)
every_source = pytest.mark.parametrize("source", [*SOURCES, *LOSS_FREE], ids=str)


def square(model, batch):
    return model(batch).square().sum(1)


def chain(*layers: nn.Module) -> nn.Module:
    """A chain of at least two, so that it can be checkpointed."""
    return nn.Sequential(*layers, nn.Identity())


def assert_raises(source, model, batch, loss, *texts: str, error=dldw.DldwError) -> None:
    """``source`` raises ``error`` with every text in it, twice in a row, and leaves weights and ``.grad``."""
    before = [p.detach().clone() for p in model.parameters()]
    made = source(loss, None)
    for _ in range(2):
        with pytest.raises(error) as caught:
            made(model, batch)
        assert isinstance(caught.value, ValueError)
        for text in texts:
            assert re.search(text, str(caught.value)), f"{text!r} is not in: {caught.value}"
        assert all(p.grad is None for p in model.parameters())
        assert all(p.is_meta or torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


# --- the loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reduce", "found"),
    [
        (lambda y: y, r"got shape \[[51], 3\], torch\.float32"),
        (lambda y: y.sum(0)[:0], r"got shape \[0\]"),
        (lambda y: y.sum(1).to(torch.complex64), r"complex64"),
        (lambda y: 1.5, "got float"),
        (lambda y: None, "got NoneType"),
    ],
    ids=["matrix", "empty", "complex", "float", "None"],
)
@every_variant
def test_loss_that_is_neither_a_scalar_nor_per_example(source, reduce, found):
    model, batch = chain(nn.Linear(2, 3)), torch.randn(5, 2, generator=seeded())
    assert_raises(
        source,
        model,
        batch,
        lambda m, b: reduce(m(b)),
        r"the loss must be a real scalar or one value per example \[B\]",
        found,
        "its mean is what is minimised",
        r"losses\.flatten\(1\)\.mean\(1\)",
    )


@pytest.mark.parametrize("bad", ["nan", "inf"])
@every_variant
def test_loss_that_is_not_finite(source, bad):
    model, batch = chain(nn.Linear(2, 3)), torch.randn(5, 2, generator=seeded())
    assert_raises(
        source,
        model,
        batch,
        lambda m, b: square(m, b) + float(bad),
        f"the loss is {bad}",
        "no slope to follow",
        r"\.grad is as it was",
        "check the batch",
        error=dldw.NonFiniteLossError,
    )


CONSTANT = {
    "another model": lambda other: lambda m, b: other(b).square().sum(1),
    "the batch alone": lambda other: lambda m, b: b.square().sum(1),
}


@pytest.mark.parametrize("kind", CONSTANT)
@every_variant
def test_loss_that_does_not_depend_on_the_weights(source, kind):
    model, batch = chain(nn.Linear(2, 3)), torch.randn(5, 2, generator=seeded())
    other = nn.Linear(2, 3).requires_grad_(False)
    assert_raises(
        source,
        model,
        batch,
        CONSTANT[kind](other),
        "the loss does not depend on the model's trainable weights",
        "(?i)use the model (that )?the loss function is given",
        "detach",
    )


@pytest.mark.parametrize("evaluate", ["sequential", "batched"])
def test_search_for_weights_on_which_the_loss_does_not_depend(evaluate):
    model, batch = nn.Linear(2, 3), torch.randn(5, 2, generator=seeded())
    search = dldw.Search(model, lambda m, b: b.square().sum(1), dldw.RandomSearch(population=4), evaluate=evaluate)
    with pytest.raises(dldw.DldwError, match="the loss does not depend on the model's trainable weights"):
        search.step(batch)


@pytest.mark.parametrize("evaluate", ["sequential", "batched"])
def test_search_with_a_loss_of_a_wrong_shape(evaluate):
    model, batch = nn.Linear(2, 3), torch.randn(5, 2, generator=seeded())
    search = dldw.Search(model, lambda m, b: m(b), dldw.RandomSearch(population=4), evaluate=evaluate)
    with pytest.raises(dldw.DldwError, match=r"scalar or one value per example \[B\], got shape \[5, 3\]"):
        search.step(batch)


def test_backprop_of_a_detached_loss():
    model, batch = nn.Linear(2, 3), torch.randn(5, 2, generator=seeded())
    with pytest.raises(dldw.DldwError, match=r"carries no graph.* do not detach .* such as dldw\.SPSA"):
        dldw.Backprop(lambda m, b: square(m, b).detach())(model, batch)


@pytest.mark.parametrize("name", [name for name, m in dldw.methods().items() if m.is_source and m.takes_loss])
def test_loss_that_is_a_criterion_already_applied(name):
    with pytest.raises(dldw.DldwError, match=r"loss must be a function loss\(model, batch\) .* got float\. Wrap"):
        dldw.methods()[name].factory(0.5)


# --- the model -----------------------------------------------------------------------------------------------------


@every_source
def test_model_without_parameters(source):
    assert_raises(
        source,
        chain(nn.Tanh()),
        torch.ones(2, 3),
        square,
        "Sequential has no trainable parameter",
        "no parameters at all",
    )


@every_source
def test_model_whose_parameters_are_all_frozen(source):
    assert_raises(
        source,
        chain(nn.Linear(2, 3)).requires_grad_(False),
        torch.ones(2, 2),
        square,
        "no trainable parameter",
        "all its 2 parameters have requires_grad=False",
        r"requires_grad_\(\)",
    )


class Integers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(2, 3, dtype=torch.int8), requires_grad=False)

    def forward(self, x):
        return x @ self.w.to(x.dtype)


@every_source
def test_model_with_integer_weights(source):
    assert_raises(
        source,
        Integers(),
        torch.ones(2, 2),
        square,
        "no trainable parameter",
        r"of type torch\.int8, and integers have no derivative",
        "search method, or make the weights floating point",
    )


@every_source
def test_model_with_complex_weights(source):
    assert_raises(
        source,
        chain(nn.Linear(2, 3, dtype=torch.complex64)),
        torch.ones(2, 2, dtype=torch.complex64),
        lambda m, b: m(b).abs().sum(1),
        r"complex \(torch\.complex64\)",
        "view_as_real",
    )


@pytest.mark.parametrize("name", [name for name, m in dldw.methods().items() if m.card.needs != "episodes"])
def test_learner_of_a_model_that_cannot_be_trained(name):
    model = nn.Linear(2, 3).requires_grad_(False)
    with pytest.raises(ValueError, match=r"no trainable parameter|empty parameter list|nothing to adapt"):
        method(name).build(model, square).step(torch.ones(2, 2))


# --- devices and precision -----------------------------------------------------------------------------------------


@every_variant
def test_batch_on_another_device_than_the_model(source):
    assert_raises(
        source,
        chain(nn.Linear(2, 3)),
        torch.ones(4, 2, device="meta"),
        square,
        "the batch is on meta but the model is on cpu",
        r"batch\.to\(device\)",
    )


@pytest.mark.parametrize("source", LOSS_FREE, ids=str)
def test_batch_on_another_device_than_the_model_where_there_is_no_loss(source):
    problem = source.homes[0]()
    assert_raises(
        source,
        problem.model,
        tree_map(lambda t: t.to("meta"), problem.batch),
        problem.loss,
        "the batch is on meta but the model is on cpu",
        r"batch\.to\(device\)",
    )


def test_search_with_a_batch_on_another_device_than_the_model():
    search = dldw.Search(nn.Linear(2, 3), square, dldw.RandomSearch())
    with pytest.raises(dldw.DldwError, match="the batch is on meta but the model is on cpu"):
        search.step(torch.ones(4, 2, device="meta"))


@pytest.mark.parametrize("source", [s for s in SOURCES if s.sample.card.needs != "autograd"], ids=str)
def test_generator_on_another_device_than_the_weights(source):
    model = nn.Linear(2, 3, device="meta")
    made = source(square, torch.Generator("cpu"))
    with pytest.raises(dldw.DldwError) as caught:
        made(model, torch.ones(4, 2, device="meta"))
    text = str(caught.value)
    assert "the generator is on cpu but the weights are on meta" in text
    assert "directions are drawn where the weights are" in text
    assert "Pass generator=torch.Generator('meta')" in text


@every_source
def test_call_in_the_middle_of_autocast(source):
    model, batch = chain(nn.Linear(2, 3)), torch.randn(5, 2, generator=seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_raises(
            source,
            model,
            batch,
            square,
            r"was called inside torch\.autocast",
            "low precision",
            "Call it outside, and put the autocast context inside the loss function",
        )


@every_variant
def test_autocast_inside_the_loss_is_welcome(source):
    model, batch = chain(nn.Linear(2, 3)), torch.randn(5, 2, generator=seeded())

    def loss(m, b):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = m(b)
        return y.float().square().sum(1)

    assert source(loss, seeded())(model, batch).isfinite()
    assert all(g.dtype == torch.float32 for g in gradients(model))


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.0, -1e-3, float("nan"), float("inf"), 0, -1])
@pytest.mark.parametrize("make", [dldw.SPSA, dldw.EvolutionStrategy], ids=lambda c: c.__name__)
def test_sigma_that_is_not_positive(make, sigma):
    with pytest.raises(dldw.DldwError, match=rf"sigma .* must be positive and finite, got {sigma}.* divided by it"):
        make(square, sigma=sigma)


@pytest.mark.parametrize("step", [0.0, -1.0])
def test_finite_difference_step_that_is_not_positive(step):
    with pytest.raises(dldw.DldwError, match=rf"must be positive and finite, got {step}"):
        dldw.FiniteDifference(square, step=step)


@pytest.mark.parametrize(("low", "high"), [(0.1, -0.1), (0.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_nudge_from_an_empty_range(low, high):
    with pytest.raises(dldw.DldwError, match=rf"needs finite low < high, got {low} and {high}\. The default is"):
        dldw.WeightPerturbation(square, low=low, high=high)


def test_odd_population_with_antithetic_pairs():
    with pytest.raises(
        dldw.DldwError, match=r"even with antithetic=True because .* pairs .*got 7\. Use 8 or antithetic"
    ):
        dldw.EvolutionStrategy(square, population=7)
    dldw.EvolutionStrategy(square, population=7, antithetic=False)


@pytest.mark.parametrize("population", [1, 0, -4])
def test_population_that_is_too_small(population):
    with pytest.raises(dldw.DldwError, match=rf"population must be at least 2, .*got {population}\. Use 2"):
        dldw.EvolutionStrategy(square, population=population)


@pytest.mark.parametrize("make", [dldw.SPSA, dldw.ForwardGradient], ids=lambda c: c.__name__)
def test_no_directions(make):
    with pytest.raises(dldw.DldwError, match="directions must be at least 1, got 0"):
        make(square, directions=0)


def test_no_weights_to_nudge():
    with pytest.raises(dldw.DldwError, match="weights must be at least 1, got 0"):
        dldw.WeightPerturbation(square, weights=0)


def test_unknown_distribution():
    with pytest.raises(dldw.DldwError, match="distribution must be one of rademacher, gaussian, sphere, got 'uniform'"):
        dldw.SPSA(square, distribution="uniform")


def test_unknown_shaping():
    with pytest.raises(dldw.DldwError, match="shaping must be one of centered_ranks, z_score, none, got 'ranks'"):
        dldw.EvolutionStrategy(square, shaping="ranks")


@pytest.mark.parametrize("make", [dldw.SPSA, dldw.EvolutionStrategy, dldw.FiniteDifference], ids=lambda c: c.__name__)
def test_unknown_way_to_evaluate(make):
    with pytest.raises(dldw.DldwError, match="evaluate must be 'auto', 'sequential' or 'batched', got 'parallel'"):
        make(square, evaluate="parallel")


@pytest.mark.parametrize("shaping", ["centered_ranks", "z_score"])
def test_accumulating_estimates_that_do_not_add_up(shaping):
    problem = problems.mlp()
    source = dldw.EvolutionStrategy(problem.loss, shaping=shaping)
    source(problem.model, problem.batch)
    held = gradients(problem.model)
    with pytest.raises(dldw.AccumulationError) as caught:
        source(problem.model, problem.batch)
    text = str(caught.value)
    assert "ranks or standardises its losses" in text
    assert "do not add up" in text
    assert "zero_grad()" in text
    assert "shaping='none'" in text
    assert all(torch.equal(a, b) for a, b in zip(gradients(problem.model), held, strict=True))


def test_gradients_set_to_zero_in_place_may_be_followed_by_estimates_that_do_not_add_up():
    problem = problems.mlp()
    source = dldw.EvolutionStrategy(problem.loss)
    source(problem.model, problem.batch)
    problem.model.zero_grad(set_to_none=False)
    source(problem.model, problem.batch)


def test_checkpoint_names_a_submodule_that_is_not_there():
    with pytest.raises(dldw.DldwError, match=r"the submodule 'encoder', which Sequential does not have\. It has: 0, 1"):
        dldw.Backprop(square, checkpoint=["encoder"])(chain(nn.Linear(2, 3)), torch.ones(1, 2))


def test_checkpoint_finds_nothing_to_cut():
    with pytest.raises(dldw.DldwError, match=r"no repeated blocks and no nn\.Sequential in Linear.* Give the names"):
        dldw.Backprop(square, checkpoint=True)(nn.Linear(2, 3), torch.ones(1, 2))


# --- names ---------------------------------------------------------------------------------------------------------


def test_unknown_method_gets_the_nearest_match_and_the_list():
    with pytest.raises(dldw.DldwError) as caught:
        method("spza")
    assert "there is no method 'spza'. Did you mean 'spsa'? Known: backprop" in str(caught.value)


def test_unknown_setting_gets_the_nearest_match_and_the_list():
    with pytest.raises(dldw.DldwError) as caught:
        method("spsa").build(nn.Linear(2, 3), square, sgima=0.1)
    assert "there is no setting 'sgima' of spsa. Did you mean 'sigma'? Known: sigma, directions" in str(caught.value)


def test_unknown_optimizer():
    with pytest.raises(dldw.DldwError, match="optimizer must be sgd or adam, got 'lion'"):
        method("backprop").build(nn.Linear(2, 3), square, optimizer="lion")


def test_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'dldw' has no attribute 'SPQR'"):
        _ = dldw.SPQR
