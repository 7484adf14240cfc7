"""Every source runs every kind of model, and batched evaluation gives what one by one gives."""

from __future__ import annotations

import logging

import pytest
import torch

import dldw
from dldw.directional import Directional
from dldw.directions import AllCoordinates
from dldw.slopes import Jvp
from tests.contract import checks, problems
from tests.contract.checks import close, dot, estimate, gradients, seeded
from tests.contract.variants import METHODS, SOURCES, Variant


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("build", problems.ALL, ids=lambda build: build.__name__)
@pytest.mark.parametrize("source", [s for s in SOURCES if s.mode != "batched"], ids=str)
def test_source_runs_the_model(source, build, dtype):
    problem = build(dtype)
    torch.manual_seed(4)
    made = source(problem.loss, seeded())
    loss = made(problem.model, problem.batch)
    assert loss.isfinite()
    for p in problem.trainable:
        assert p.grad is not None
        assert p.grad.shape == p.shape
        assert p.grad.isfinite().all()
    assert any(p.grad.any() for p in problem.trainable)


@pytest.mark.parametrize("build", problems.ALL, ids=lambda build: build.__name__)
def test_forward_mode_along_every_coordinate_is_the_gradient_of_autograd(build):
    def make(loss, generator):
        return Directional(loss, AllCoordinates(), Jvp(), generator=generator)

    problem = build()
    torch.manual_seed(5)
    gradient = problem.autograd()
    torch.manual_seed(5)
    assert close(estimate(make, problem), gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("build", [problems.lstm, problems.attention_in_eval_mode], ids=lambda build: build.__name__)
def test_forward_mode_leaves_the_choice_of_kernels_as_it_was(build):
    def chosen() -> tuple[bool, ...]:
        b = torch.backends
        return b.mkldnn.enabled, b.cudnn.enabled, b.mha.get_fastpath_enabled(), b.cuda.flash_sdp_enabled()

    before = chosen()
    estimate(Variant("forward-gradient"), build())
    assert chosen() == before


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_recurrent_layer_lists_its_own_weights_after_a_call_and_after_an_exception(source):
    problem = problems.lstm()
    made = checks.in_any_mode(source)(problem.loss, seeded())
    made(problem.model, problem.batch)
    layer = problem.model.lstm
    assert all(a is b for a, b in zip(layer._flat_weights, layer.parameters(), strict=True))

    def stopping(model, batch):
        problem.loss(model, batch)
        raise KeyboardInterrupt

    problem.model.zero_grad()
    with pytest.raises(KeyboardInterrupt):
        checks.in_any_mode(source)(stopping, seeded())(problem.model, problem.batch)
    assert all(a is b for a, b in zip(layer._flat_weights, layer.parameters(), strict=True))


BATCHED = [
    Variant("spsa", (("directions", 6),)),
    Variant("spsa", (("directions", 6), ("two_sided", False), ("distribution", "sphere"))),
    Variant("evolution-strategy", (("population", 8),)),
    Variant("evolution-strategy", (("population", 7), ("antithetic", False))),
    Variant("finite-difference"),
]


def _with(source: Variant, **settings: object) -> Variant:
    return Variant(source.method, tuple((dict(source.settings) | settings).items()))


@pytest.mark.parametrize(
    "build", [b for b in problems.ALL if b.__name__ not in problems.NOT_BATCHED], ids=lambda build: build.__name__
)
@pytest.mark.parametrize("source", BATCHED, ids=str)
def test_batched_equals_sequential(source, build):
    problem = build()
    torch.manual_seed(6)
    one_by_one = estimate(_with(source, evaluate="sequential"), problem)
    torch.manual_seed(6)
    batched = estimate(_with(source, evaluate="batched"), problem)
    assert close(batched, one_by_one, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", sorted(problems.NOT_BATCHED))
@pytest.mark.parametrize("source", BATCHED, ids=str)
def test_auto_goes_one_by_one_where_vmap_cannot_and_logs_the_reason(source, name, caplog):
    problem = getattr(problems, name)()
    one_by_one = estimate(_with(source, evaluate="sequential"), problem)
    problem = getattr(problems, name)()
    made = source(problem.loss, seeded())
    with caplog.at_level(logging.INFO, logger="dldw"):
        made(problem.model, problem.batch)
        assert close(gradients(problem.model), one_by_one, rtol=1e-12)
        made(problem.model, problem.batch) if made.additive else None
    reasons = [r.getMessage() for r in caplog.records if "one by one" in r.getMessage()]
    assert len(reasons) == 1, "the reason is logged once"
    assert type(problem.model).__name__ in reasons[0]
    assert len(reasons[0]) > len(f"{type(problem.model).__name__} is evaluated one by one: ")


@pytest.mark.parametrize("name", sorted(problems.NOT_BATCHED))
def test_batched_is_an_error_where_vmap_cannot_go(name):
    problem = getattr(problems, name)()
    source = dldw.SPSA(problem.loss, directions=4, evaluate="batched")
    with pytest.raises(dldw.DldwError, match=r"cannot run \w+ under torch.func.vmap: .+ Use evaluate='auto'"):
        source(problem.model, problem.batch)
    assert all(p.grad is None for p in problem.trainable)


def test_dropout_in_batched_evaluation_draws_the_mask_of_one_forward():
    checks.dropout_sees_one_mask_in_all_evaluations(
        Variant("evolution-strategy", (("population", 16), ("evaluate", "batched")))
    )


def test_bfloat16_estimates_point_uphill_with_a_step_that_bfloat16_can_see():
    steps = {
        "spsa": {"sigma": 0.1, "directions": 16},
        "evolution-strategy": {"sigma": 0.1},
        "weight-perturbation": {"low": -0.5, "high": 0.5, "weights": 40},
        "finite-difference": {"step": 0.125},
    }
    gradient = problems.mlp(torch.float64).autograd()
    for name, registered in METHODS.items():
        if registered.is_source and registered.takes_loss:
            problem = problems.mlp(torch.bfloat16)
            problem.loss = lambda model, batch: problems.cross_entropy(lambda x: model(x).float(), batch)
            got = estimate(Variant(name, tuple(steps.get(name, {}).items())), problem)
            assert all(g.dtype == torch.bfloat16 for g in got)
            assert dot(got, gradient) > 0, name


def test_models_of_mixed_types_get_gradients_of_mixed_types():
    problem = problems.mlp(torch.float32)
    problem.model[0].to(torch.float64)
    problem.model[1].register_forward_hook(lambda m, i, out: out.float())
    problem.batch = problem.batch[0].double(), problem.batch[1]
    gradient = problem.autograd()
    for source in SOURCES:
        got = estimate(source, problem)
        assert [g.dtype for g in got] == [torch.float64] * 2 + [torch.float32] * 3
        if source.deterministic:
            assert close(got, gradient, rtol=0.02, atol=0.01), source


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_weights_in_another_memory_layout_get_the_same_gradient(source):
    plain, last = problems.conv(), problems.conv()
    last.model[0].to(memory_format=torch.channels_last)
    last.model[4].weight = torch.nn.Parameter(last.model[4].weight.detach().t().contiguous().t())
    assert not last.model[4].weight.is_contiguous()
    if source.deterministic:
        assert close(estimate(source, last), estimate(source, plain), rtol=1e-7, atol=1e-8)
    else:
        assert all(g.isfinite().all() for g in estimate(source, last))
