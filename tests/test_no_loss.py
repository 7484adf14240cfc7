"""A method that needs no loss: its card says so, and it is made, built and run without one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dldw
from dldw.registry import Method
from tests.contract import problems

CARD = dldw.Card("Made up.", "biased", "no loss", "1", "d", "-")


class Decay(dldw.GradientSource):
    """Pulls every weight to zero."""

    card = CARD

    def __init__(self, strength=1.0, *, generator=None):
        super().__init__(generator=generator)
        self.strength = strength

    def __call__(self, model, batch):
        for p in self._prepare(model).tensors:
            p.grad = self.strength * p.detach()
        return torch.zeros(())


class Shrinker:
    """The same as a learner, whose ``loss`` is a setting of its own."""

    card = CARD

    def __init__(self, model, *, loss="square", generator=None):
        self.model, self.loss, self.generator = model, loss, generator


def test_source_without_a_loss_is_built_and_trains():
    model = nn.Linear(2, 3)
    start = model.weight.detach().clone()
    learner = Method("decay", Decay).build(model, problems.cross_entropy, lr=0.5, strength=0.5)
    learner.step(None)
    assert torch.equal(model.weight, 0.75 * start)
    assert not hasattr(learner.source, "loss")


def test_learner_without_a_loss_is_built_and_its_loss_is_a_setting():
    method = Method("shrinker", Shrinker)
    assert method.settings == {"loss": "square"}
    generator = torch.Generator()
    learner = method.build(nn.Linear(2, 3), problems.cross_entropy, generator, loss="absolute")
    assert (learner.loss, learner.generator) == ("absolute", generator)


def test_source_that_needs_a_loss_is_not_made_without_one():
    with pytest.raises(dldw.DldwError, match=r"loss must be a function loss\(model, batch\) .* got NoneType"):
        dldw.Backprop(None)
