"""REINFORCE: back-propagation through the log-probabilities of actions, for returns that have no derivative."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dldw.card import Card, Choice, Float
from dldw.errors import DldwError
from dldw.rollout import Rollout, Sample
from dldw.source import Batch, GradientSource, Loss
from dldw.sources.backprop import Backprop


class Reinforce(GradientSource):
    """The policy gradient: actions are drawn, and those that came off better than in the other episodes made likelier.

        ghat = -1/B · sum_i sum_t  ∇ log π(a_it | s_it) · (R_it - b_it),      R_it = r_it + r_i,t+1 + …

    with b_it the mean of R_t over the other episodes that are still running, which depends on none of episode i's actions,
    so that ghat is unbiased for the gradient of the expected loss of the policy that draws. What is trained is that policy;
    what is evaluated is mostly the one that plays its best action.

    Cost: one forward and one backward over each batch of episodes.

    Source: Williams 1992, Machine Learning 8; baseline of the others: Kool, van Hoof & Welling 2019.

    Args:
        loss: A ``dldw.Rollout``; the batch is the seeds of its episodes [B].
        std: Standard deviation of continuous actions, in half-ranges of the action.
        generator: See ``GradientSource``.

    Example:
        >>> import gymnasium, torch, dldw
        >>> rollout = dldw.Rollout(lambda n: gymnasium.make_vec("CartPole-v1", n, vectorization_mode="sync"))
        >>> policy = torch.nn.Linear(4, 2)
        >>> loss = dldw.Reinforce(rollout)(policy, torch.arange(4))
        >>> bool(loss < 0), policy.weight.grad.shape
        (True, torch.Size([2, 4]))
    """

    card = Card(
        summary="Actions are drawn, and those with a better return than the others' made likelier, by backprop.",
        claim="unbiased",
        needs="episodes",
        forwards="3",
        memory="d + a for each time step",
        paper="Williams 1992, Machine Learning 8",
        space={"lr": Float(1e-4, 1.0), "std": Float(0.1, 1.0), "optimizer": Choice(("sgd", "adam"))},
        note="Unbiased for the policy that draws its actions. Needs a dldw.Rollout for a loss.",
    )

    def __init__(self, loss: Loss, *, std: float = 0.5, generator: torch.Generator | None = None) -> None:
        super().__init__(loss, generator)
        if not isinstance(loss, Rollout):
            raise DldwError(
                "REINFORCE draws the actions itself and weighs each by the rewards after it, and a plain loss shows it "
                "neither. Give it a dldw.Rollout, or use a method that needs loss values alone, such as dldw.SPSA."
            )
        if not std > 0:
            raise DldwError(f"std must be positive, got {std}: actions that cannot vary show nothing.")
        self.rollout, self.std = loss, std

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        generator = self._generator_on(self._prepare(model).device)

        def surrogate(policy: nn.Module, seeds: Tensor) -> Tensor:
            """Has the value of the loss and the gradient of the estimate, [B]."""
            sample = self.rollout.sample(policy, seeds, self.std, generator)
            weighed = -(sample.log_probabilities * advantages(sample)).sum(0)
            return weighed - weighed.detach() - sample.rewards.sum(0)

        return Backprop(surrogate)(model, batch)


def advantages(sample: Sample) -> Tensor:
    """R_it - b_it [T, B]; zero where an episode has ended, and R_it where it is the last one running."""
    running = sample.running.to(sample.rewards.dtype)
    to_come = sample.rewards.flip(0).cumsum(0).flip(0)
    others = running.sum(1, keepdim=True) - running
    baseline = (to_come.sum(1, keepdim=True) - to_come) / others.clamp(min=1)
    return running * (to_come - baseline)
