"""Deep belief networks: Boltzmann machines on top of each other, trained one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from dldw.errors import DldwError
from dldw.learner import Descent
from dldw.nn.rbm import RBM
from dldw.source import GradientSource, repeatable
from dldw.sources.contrastive_divergence import ContrastiveDivergence

Progress = Callable[[Sequence[int], str], Iterable[int]]
"""``progress(range(n), description)`` gives the same numbers, and may draw a bar as they are taken."""

_SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.5)


def stack(rbms: Iterable[RBM]) -> DeepBeliefNetwork:
    """A deep belief network of these machines, the lowest first; it trains and holds the machines themselves.

    Raises:
        DldwError: There is none, or one does not fit on top of the one below.
    """
    return DeepBeliefNetwork(rbms)


class DeepBeliefNetwork(nn.Module):
    """Machines each of which learns the hidden units of the one below.

    Trained greedily: each new machine raises a lower bound of log p(v), if it starts as good as the one below it (Hinton,
    Osindero & Teh 2006). ``forward`` gives the features of the highest, ``sample`` draws from the whole, and ``sequential``
    makes an ordinary network of it, to be fine-tuned by any source of dL/dw.

    Source: Hinton, Osindero & Teh 2006, Neural Computation 18.

    Args:
        rbms: The machines, the lowest first.

    Example:
        >>> import torch, dldw
        >>> network = dldw.nn.stack([dldw.nn.RBM(16, 8), dldw.nn.RBM(8, 4)])
        >>> errors = network.pretrain(torch.rand(100, 16).round(), epochs=2)    # with a bar: progress=rich.progress.track
        >>> network.sequential(outputs=3)(torch.rand(5, 16)).shape
        torch.Size([5, 3])
    """

    def __init__(self, rbms: Iterable[RBM]) -> None:
        super().__init__()
        self.rbms = nn.ModuleList(rbms)
        if not len(self.rbms):
            raise DldwError("a deep belief network needs at least one machine, got none. Give a list of dldw.nn.RBM.")
        for i, (below, above) in enumerate(zip(self, list(self)[1:], strict=False)):
            if below.hidden != above.visible:
                raise DldwError(
                    f"machine {i + 1} has {above.visible} visible units but the one below it {below.hidden} hidden ones, and "
                    "these are the same units. Make the numbers equal."
                )

    def __iter__(self) -> Iterator[RBM]:
        return (cast(RBM, rbm) for rbm in self.rbms)

    def forward(self, v: Tensor) -> Tensor:
        """The features of the highest machine, [..., hidden], every layer below at its mean."""
        for rbm in self:
            v = rbm(v)
        return v

    def pretrain(
        self,
        data: Tensor,
        *,
        epochs: int = 10,
        batch_size: int = 100,
        source: Callable[[torch.Generator], GradientSource] = lambda generator: ContrastiveDivergence(
            generator=generator
        ),
        optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer] = _SGD,
        progress: Progress | None = None,
        generator: torch.Generator | None = None,
    ) -> list[list[float]]:
        """Trains one machine after the other, each on the mean features of those below.

        Args:
            data: Examples [N, visible].
            epochs: Passes of each machine.
            batch_size: Examples in a batch; the last one of a pass may have fewer.
            source: Makes the source of each machine; it draws from the given generator.
            optimizer: Makes the optimizer of each from its parameters; plain descent at 0.1 with momentum 0.5 by default.
            progress: Draws a bar for each machine, a step for each pass: ``rich.progress.track`` or ``tqdm.tqdm``.
            generator: Decides orders and what is sampled; by default one seeded with ``torch.initial_seed()``.

        Returns:
            The mean reconstruction error of each pass, a list for each machine.

        Raises:
            DldwError: No passes, or examples that the lowest machine cannot learn from.
        """
        if epochs < 1 or batch_size < 1:
            raise DldwError(f"epochs and batch_size must be at least 1, got {epochs} and {batch_size}.")
        next(iter(self)).require(data, "data")
        generator = generator or repeatable(data.device)
        errors, depth = [], len(self.rbms)
        for i, rbm in enumerate(self):
            learner = Descent(rbm, source(generator), optimizer(rbm.parameters()))
            what = f"machine {i + 1} of {depth}: {rbm.visible} to {rbm.hidden} units"
            passes = range(epochs) if progress is None else progress(range(epochs), what)
            errors.append([_epoch(learner, data, batch_size, generator) for _ in passes])
            with torch.no_grad():
                data = rbm(data)
        return errors

    @torch.no_grad()
    def sample(self, n: int, steps: int = 1000, *, generator: torch.Generator | None = None) -> Tensor:
        """Examples [n, visible]: Gibbs sampling in the highest machine, then one pass down.

        Args:
            n: How many.
            steps: Of Gibbs sampling.
            generator: What is drawn from; the global random state by default.
        """
        *lower, top = self
        v = top.sample(n, steps, generator=generator)
        for rbm in reversed(lower):
            v = rbm.units.draw(rbm.visible_mean(v), generator)
        return v

    def sequential(self, outputs: int | None = None) -> nn.Sequential:
        """An ordinary network with these weights, copied: a linear layer and a sigmoid for each machine.

        Args:
            outputs: Outputs of one more linear layer, with fresh weights; none by default.
        """
        layers: list[nn.Module] = []
        for rbm in self:
            linear = nn.Linear(rbm.visible, rbm.hidden).to(rbm.weight)
            with torch.no_grad():
                linear.weight.copy_(rbm.units.scaled(rbm.weight))
                linear.bias.copy_(rbm.hidden_bias)
            layers += [linear, nn.Sigmoid()]
        if outputs is not None:
            top = list(self)[-1]
            layers.append(nn.Linear(top.hidden, outputs).to(top.weight))
        return nn.Sequential(*layers)


def _epoch(learner: Descent, data: Tensor, batch_size: int, generator: torch.Generator) -> float:
    """One pass in a new order; returns the mean reconstruction error."""
    order = torch.randperm(len(data), generator=generator, device=data.device)
    total = 0.0
    for rows in order.split(batch_size):
        total += float(learner.step(data[rows])) * len(rows)
    return total / len(data)
