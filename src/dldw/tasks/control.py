"""What the control tasks share: a policy, episodes by seed, the return over unseen ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dldw.errors import DldwError
from dldw.rollout import Array, Rollout
from dldw.tasks.task import Task, seeded

TRAINING = 1_000_000
"""Seeds below this one are for training; the hundred after it are the validation split and the test split begins at twice."""


class Scaled(nn.Module):
    """Observations over their usual size, fixed and known beforehand."""

    size: Tensor

    def __init__(self, size: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("size", torch.tensor(size))

    def forward(self, observation: Tensor) -> Tensor:
        """``observation`` [B, n] over its size."""
        return observation / self.size


class Control(Task):
    """A policy for one of gymnasium's environments; the loss is minus the return, and the seeds of episodes are the batch.

    Episodes are played in lockstep, from the equations below, which give those of gymnasium for the same seeds and actions.
    A time step counts once for each episode of training that is still running.

    Attributes:
        environment: Its name in gymnasium.
        sizes: Usual size of each observation, by which the policy divides it.
        outputs: Of the policy: one for each discrete action, or for each dimension of a continuous one.
    """

    metric = "return"
    environment: ClassVar[str]
    sizes: ClassVar[tuple[float, ...]]
    outputs: ClassVar[int]
    batch_size = 8
    width = 16
    train_examples = TRAINING
    test_examples = 100
    splits: ClassVar[dict[str, range]] = {
        "validation": range(TRAINING, TRAINING + 20),
        "test": range(2 * TRAINING, 2 * TRAINING + 100),
    }

    def __init__(self) -> None:
        try:
            from dldw.tasks.lockstep import Lockstep
        except ModuleNotFoundError as error:
            raise DldwError(
                f"{self.name} is played in gymnasium, which is not installed. Install it with: pip install 'dldw[rl]'"
            ) from error
        self._training, self._unseen = (Rollout(lambda n: Lockstep(self, n)) for _ in range(2))

    @staticmethod
    @abstractmethod
    def start(generator: np.random.Generator) -> Array:
        """The first state of an episode [s], drawn as gymnasium draws it."""

    @staticmethod
    @abstractmethod
    def advance(state: Array, action: Array) -> tuple[Array, Array, Array]:
        """The next states [s, n], rewards [n], and whether the episode ends there [n]."""

    @staticmethod
    def observe(state: Array) -> Array:
        """What a policy sees of states [s, n]; the states themselves by default."""
        return state

    @property
    def loss(self) -> Rollout:
        """Minus the return of each episode, [B]; REINFORCE asks it for more."""
        return self._training

    @property
    def interactions(self) -> int:
        return self._training.steps

    def model(self, seed: int, width: int | None = None) -> nn.Module:
        hidden = width or self.width
        return seeded(
            seed,
            lambda: nn.Sequential(
                Scaled(self.sizes), nn.Linear(len(self.sizes), hidden), nn.Tanh(), nn.Linear(hidden, self.outputs)
            ),
        )

    def batches(self, seed: int, tuning: bool = False) -> Iterator[Tensor]:
        """Seeds are drawn afresh, from a range that no split has a part in."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield torch.randint(TRAINING, (self.batch_size,), generator=generator)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str = "test") -> dict[str, float]:
        loss = float(self._unseen(model, torch.tensor(self.splits[split])).double().mean())
        return {"loss": loss, self.metric: -loss}
