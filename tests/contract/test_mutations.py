"""Deliberately wrong sources: the contract catches every one of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import dldw
from dldw.card import Card
from dldw.source import GradientSource
from tests.contract import checks, problems
from tests.contract.variants import Variant

DIRECTIONS = 64


class Wrapped(GradientSource):
    """A sound source, whose estimate the mutants below spoil before it goes into ``.grad``."""

    card = dldw.SPSA.card

    def __init__(self, loss, generator=None):
        super().__init__(loss, generator or torch.Generator().manual_seed(torch.initial_seed()))
        self.directions, self.two_sided = DIRECTIONS, True
        self.inner = self.make(loss)

    def make(self, loss) -> GradientSource:
        return dldw.SPSA(loss, directions=DIRECTIONS, generator=self.generator)

    def spoiled(self, estimate: list[Tensor]) -> list[Tensor]:
        return estimate

    def __call__(self, model, batch):
        weights = [p for p in model.parameters() if p.requires_grad]
        held = [p.grad for p in weights]
        for p in weights:
            p.grad = None
        try:
            loss = self.inner(model, batch)
            estimate = self.spoiled([p.grad for p in weights])
        except BaseException:
            for p, h in zip(weights, held, strict=True):
                p.grad = h
            raise
        for p, h, e in zip(weights, held, estimate, strict=True):
            p.grad = e if h is None else h + e
        return loss


class TooLong(Wrapped):
    def spoiled(self, estimate):
        return [1.05 * e for e in estimate]


class WrongSignOnOneTensor(Wrapped):
    def spoiled(self, estimate):
        return [*estimate[:-1], -estimate[-1]]


class OneDirectionForAll(Wrapped):
    """The mean over directions that are all the same is the estimate along that one."""

    def make(self, loss):
        return dldw.SPSA(loss, directions=1, generator=self.generator)


class ProbedAlongOneUpdatedAlongAnother(Wrapped):
    def spoiled(self, estimate):
        return [
            e.abs() * torch.empty_like(e).bernoulli_(0.5, generator=self.generator).mul_(2).sub_(1) for e in estimate
        ]


class OverwritesGrad(Wrapped):
    def __call__(self, model, batch):
        model.zero_grad()
        return super().__call__(model, batch)


class LeavesWeightsPerturbed(Wrapped):
    """Adds sigma z, takes 2 sigma z away and adds sigma z again, as if rounding did not exist."""

    def __call__(self, model, batch):
        loss = super().__call__(model, batch)
        with torch.no_grad():
            for p in model.parameters():
                z = torch.empty_like(p).normal_(generator=self.generator)
                p.add_(z, alpha=1e-3).sub_(z, alpha=2e-3).add_(z, alpha=1e-3)
        return loss


class ReturnsTheGraph(Wrapped):
    def __call__(self, model, batch):
        super().__call__(model, batch)
        return self.loss(model, batch).mean()


class DrawsFromTheGlobalState(Wrapped):
    def __call__(self, model, batch):
        self.generator.manual_seed(int(torch.randint(1 << 30, ())))
        return super().__call__(model, batch)


class IgnoresInfinity(Wrapped):
    def make(self, loss):
        return dldw.SPSA(
            lambda model, batch: loss(model, batch).nan_to_num(), directions=DIRECTIONS, generator=self.generator
        )


class TextbookLoop(GradientSource):
    """SPSA as one would write it in an afternoon: perturbs in place, without a thought for what else is in a model."""

    card = Card("A loop.", "unbiased", "loss values", "2", "d", "-")

    def __call__(self, model, batch):
        weights = list(model.parameters())
        with torch.no_grad():
            z = [torch.randint(2, p.shape, generator=self.generator).to(p.dtype) * 2 - 1 for p in weights]
            losses = []
            for step in (1e-3, -2e-3):
                for p, direction in zip(weights, z, strict=True):
                    p.add_(direction, alpha=step)
                losses.append(self.loss(model, batch).mean())
            for p, direction in zip(weights, z, strict=True):
                p.add_(direction, alpha=1e-3)
                p.grad = (losses[0] - losses[1]) / 2e-3 * direction
        return losses[0]


def catch(check, make) -> bool:
    """Whether ``check`` fails for ``make``."""
    try:
        check(make)
    except AssertionError:
        return True
    return False


def is_unbiased_with_its_variance(make):
    checks.is_unbiased(make, 1200, lambda problem: float(problem.gradient @ problem.gradient) * 5 / DIRECTIONS)


@pytest.mark.parametrize("holds", [*checks.CHECKS, is_unbiased_with_its_variance], ids=lambda check: check.__name__)
def test_the_source_that_the_mutants_spoil_is_sound(holds):
    holds(Wrapped)


@pytest.mark.parametrize(
    ("mutant", "check"),
    [
        (TooLong, is_unbiased_with_its_variance),
        (WrongSignOnOneTensor, is_unbiased_with_its_variance),
        (OneDirectionForAll, is_unbiased_with_its_variance),
        (ProbedAlongOneUpdatedAlongAnother, is_unbiased_with_its_variance),
        (OverwritesGrad, checks.adds_to_what_grad_holds),
        (LeavesWeightsPerturbed, checks.leaves_weights_bit_identical),
        (ReturnsTheGraph, checks.returns_the_detached_loss),
        (DrawsFromTheGlobalState, checks.never_touches_the_global_random_state),
        (DrawsFromTheGlobalState, checks.same_generator_same_gradient),
        (IgnoresInfinity, checks.non_finite_loss_is_an_error_and_leaves_grad),
        (TextbookLoop, checks.adds_to_what_grad_holds),
        (TextbookLoop, checks.leaves_weights_bit_identical),
        (TextbookLoop, checks.leaves_weights_and_grad_when_the_loss_raises),
        (TextbookLoop, checks.leaves_weights_and_grad_on_keyboard_interrupt),
        (TextbookLoop, checks.leaves_buffers_as_one_forward_would),
        (TextbookLoop, checks.leaves_frozen_weights_alone),
        (TextbookLoop, checks.dropout_sees_one_mask_in_all_evaluations),
        (TextbookLoop, checks.dropout_moves_the_global_random_state_as_one_forward),
        (TextbookLoop, checks.non_finite_loss_is_an_error_and_leaves_grad),
    ],
)
def test_wrong_source_is_caught(mutant, check):
    assert catch(check, mutant)


@pytest.mark.parametrize("mutate", [lambda g: 1.05 * g, lambda g: -g], ids=["x1.05", "wrong sign on one tensor"])
def test_wrong_exact_source_is_caught(mutate):
    class Spoiled(dldw.Backprop):
        def __call__(self, model, batch):
            loss = super().__call__(model, batch)
            last = [p for p in model.parameters() if p.grad is not None][-1]
            last.grad = mutate(last.grad)
            return loss

    assert catch(checks.equals_autograd, lambda loss, generator: Spoiled(loss, generator=generator))


# --- what needs no loss --------------------------------------------------------------------------------------------


class WithoutALoss(dldw.Perceptron):
    """A sound source, on the problems that the mutants below are tried on."""

    homes = problems.homes("perceptron")


class Downhill(WithoutALoss):
    def __call__(self, model, batch):
        for p in model.parameters():
            p.grad = None
        loss = super().__call__(model, batch)
        for p in model.parameters():
            p.grad = -p.grad
        return loss


class TriesTheStep(WithoutALoss):
    """Takes the step to look at the loss behind it, and takes it back."""

    def __call__(self, model, batch):
        loss = super().__call__(model, batch)
        with torch.no_grad():
            for p in model.parameters():
                held = p.clone()
                p.sub_(1.0)
                (loss + 1).exp()
                p.copy_(held)
        return loss


class LooksTwice(WithoutALoss):
    def __call__(self, model, batch):
        model(batch[0])
        return super().__call__(model, batch)


class TrainsWhatIsFrozen(WithoutALoss):
    def __call__(self, model, batch):
        frozen = [p for p in model.parameters() if not p.requires_grad]
        for p in frozen:
            p.requires_grad_(True)
        loss = super().__call__(model, batch)
        for p in frozen:
            p.requires_grad_(False)
        return loss


class TakesAnyNumber(WithoutALoss):
    def __call__(self, model, batch):
        return super().__call__(model, (batch[0].nan_to_num(), batch[1]))


class Counts(WithoutALoss):
    """Returns the number of examples in place of the loss."""

    def __call__(self, model, batch):
        return 0 * super().__call__(model, batch) + len(batch[1])


@pytest.mark.parametrize(
    ("mutant", "check"),
    [
        (Downhill, checks.points_uphill),
        (Downhill, checks.adds_to_what_grad_holds),
        (TriesTheStep, checks.leaves_weights_bit_identical_wherever_it_is_stopped),
        (LooksTwice, checks.leaves_buffers_and_the_random_state_as_one_forward_would),
        (TrainsWhatIsFrozen, checks.frozen_weights_decide_nothing),
        (TakesAnyNumber, checks.batch_that_is_not_finite_is_an_error_and_leaves_grad),
        (Counts, checks.returns_the_detached_loss),
    ],
)
def test_wrong_source_without_a_loss_is_caught(mutant, check):
    def maker(source):
        def make(loss, generator):
            return source(generator=generator)

        make.homes = source.homes
        return make

    assert catch(check, maker(mutant))
    check(maker(WithoutALoss))


def test_source_that_costs_more_than_its_card_says_is_caught():
    class Cheap(dldw.SPSA):
        def __call__(self, model, batch):
            self.loss(model, batch)
            return super().__call__(model, batch)

    assert catch(checks.forwards_equal_the_card, lambda loss, generator: Cheap(loss, generator=generator))
    checks.forwards_equal_the_card(Variant("spsa"))
