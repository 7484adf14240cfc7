"""Contrastive divergence: a restricted Boltzmann machine learns from data against samples of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dldw.card import Card, Choice, Float
from dldw.errors import DldwError, NonFiniteLossError
from dldw.gemm import add_product, product
from dldw.memory import keep_freed_memory
from dldw.nn.likelihood import exact_log_partition
from dldw.nn.rbm import RBM
from dldw.nn.units import GaussianUnits, bernoulli
from dldw.noise import tiles
from dldw.source import Batch, GradientSource
from dldw.weights import Weights, add_to_grad


class ContrastiveDivergence(GradientSource):
    """The gradient of the free energy, on the data minus on samples that Gibbs sampling reaches in k steps.

        ghat = 1/B · sum_i ∂F(v_i)/∂w - 1/n · sum_j ∂F(v'_j)/∂w,      ∂F/∂W = -p(h | v) vᵀ for Bernoulli units

    With samples v' from the machine itself this is the gradient of the mean negative log-likelihood. CD-k starts the chains
    at the data and is biased, the less the larger k; persistent CD goes on with the chains of the last step. What is
    returned is the mean squared error of a reconstruction, which tells that something is learnt but not what it is worth:
    ``rbm.log_likelihood`` does. Where values are missing (NaN), the batch is ``rbm.sample(len(batch), 20, clamp=batch)``.

    Cost: 2k + 3 products of a batch with W, of which a forward pass has one; persistent CD one more. As the sum over the
    data is divided by B and that over the chains by n, a last batch of another size counts as it should.

    Source: Hinton 2002, Neural Computation 14; persistent: Tieleman 2008, ICML.

    Args:
        k: Steps of Gibbs sampling.
        persistent: Whether the chains go on from step to step.
        chains: n, of persistent chains; by default as many as the first batch has examples.
        generator: See ``GradientSource``.

    Example:
        >>> import torch, dldw
        >>> rbm, images = dldw.nn.RBM(16, 4), torch.rand(32, 16).round()
        >>> optimizer = torch.optim.SGD(rbm.parameters(), lr=0.1, momentum=0.5, weight_decay=1e-4)
        >>> error = dldw.ContrastiveDivergence(k=1)(rbm, images)
        >>> optimizer.step()
        >>> rbm.weight.grad.shape
        torch.Size([4, 16])
    """

    card = Card(
        summary="A Boltzmann machine made likelier at the data and less so at samples of its own.",
        claim="biased",
        needs="no loss",
        forwards="2 * k + 3 + persistent",
        memory="d + visible and hidden units of the examples and the chains",
        paper="Hinton 2002, Neural Computation 14; persistent: Tieleman 2008, ICML",
        space={"lr": Float(1e-3, 1.0), "persistent": Choice((False, True)), "optimizer": Choice(("sgd", "adam"))},
        note="For dldw.nn.RBM alone. A forward here is one product with the weights, far less than an exact likelihood.",
    )

    def __init__(
        self,
        k: int = 1,
        *,
        persistent: bool = False,
        chains: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(generator=generator)
        if k < 1:
            raise DldwError(f"k must be at least 1, got {k}: without a step of sampling the two terms cancel.")
        if chains is not None and not persistent:
            raise DldwError(
                f"chains={chains} is the number of persistent chains, but persistent is False: those of CD-k start at the "
                "examples, one for each. Leave chains out, or set persistent=True."
            )
        if chains is not None and chains < 1:
            raise DldwError(f"chains must be at least 1, got {chains}; as many as a batch has examples is usual.")
        self.k, self.persistent, self.chains = k, persistent, chains
        self._state: Tensor | None = None
        self._held: _Phases | None = None
        keep_freed_memory()

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        weights, rbm = self._prepare(model), _machine(model)
        with torch.no_grad():
            error, phases = self._learn(weights, rbm, batch)
            for p, gradient in phases.gradients(rbm):
                add_to_grad(p, gradient if isinstance(gradient, Tensor) else product(*gradient))
        return error

    def descend(self, model: nn.Module, batch: Batch, rate: float) -> Tensor:
        weights, rbm = self._prepare(model), _machine(model)
        for p in weights.tensors:
            p.grad = None
        with torch.no_grad():
            error, phases = self._learn(weights, rbm, batch)
            for p, gradient in phases.gradients(rbm):
                if isinstance(gradient, Tensor):
                    p.sub_(gradient, alpha=rate)
                else:
                    add_product(p, *gradient, alpha=-rate)
        return error

    def _learn(self, weights: Weights, rbm: RBM, batch: Batch) -> tuple[Tensor, _Phases]:
        """The reconstruction error, and data and samples; the persistent chains have moved on."""
        v = _examples(rbm, batch)
        phases = self._phases(rbm, v)
        error, state = self._sample(rbm, v, phases, self._generator_on(weights.device))
        if not math.isfinite(error):
            raise NonFiniteLossError(
                f"the reconstruction error is {error}: the weights are not finite, or far too large; .grad is as it was. "
                "Lower the learning rate, or standardise the data of Gaussian units."
            )
        if self.persistent:
            self._state = state
        return torch.scalar_tensor(error, dtype=v.dtype, device=v.device), phases

    def _sample(self, rbm: RBM, v: Tensor, phases: _Phases, generator: torch.Generator) -> tuple[float, Tensor]:
        """Fills in both phases; returns the reconstruction error and the hidden states that the chains end in."""
        weight, bias, hidden_bias, units = rbm.weight, rbm.visible_bias, rbm.hidden_bias, rbm.units
        phases.take(v)
        data, samples, transposed = phases.examples, phases.samples, weight.t()
        torch.sigmoid(product(units.scaled(data.v), transposed, hidden_bias), out=data.h)
        error, state = None, self._state
        if self.persistent:
            error = _squares(data.v, rbm.visible_mean(data.h)) / data.v.numel()
        if state is None:  # chains start at the examples, as often over as there are more of them
            chains = len(samples.h)
            start = data.h if chains == len(v) else data.h[torch.arange(chains, device=v.device) % len(v)]
            state = bernoulli(start, generator)
        for step in range(self.k):
            field, squares = product(state, weight, bias), 0.0
            for rows in tiles(field, _CACHED if field.is_cpu else field.numel()):
                mean = units.mean_(field[rows])
                if error is None:
                    squares += _squares(data.v[rows], mean)
                units.draw(mean, generator, out=samples.v[rows])
            error = squares / field.numel() if error is None else error
            torch.sigmoid(product(units.scaled(samples.v), transposed, hidden_bias), out=samples.h)
            if self.persistent or step < self.k - 1:
                state = bernoulli(samples.h, generator)
        return error or 0.0, state

    def _phases(self, rbm: RBM, v: Tensor) -> _Phases:
        chains = examples = len(v)
        if self.persistent:
            chains = self.chains or examples if self._state is None else len(self._state)
            if self._state is not None and self._state.shape[1] != rbm.hidden:
                raise DldwError(
                    f"the persistent chains are those of a machine with {self._state.shape[1]} hidden units, and this one "
                    f"has {rbm.hidden}. Make a source for each machine."
                )
        held = self._held
        if held is None or not held.fits(v, chains, rbm.hidden):
            held = self._held = _Phases.of(v, chains, rbm.hidden)
        return held

    def criterion(self, model: nn.Module, batch: Batch) -> Tensor:
        """-log p(v) of each example [B] by enumeration, for autograd to differentiate: the estimate is a biased one of that.

        Raises:
            DldwError: The machine is too large (see ``dldw.nn.likelihood``).
        """
        rbm = _machine(model)
        return rbm.free_energy(_examples(rbm, batch)) + exact_log_partition(rbm)

    def state_dict(self) -> dict[str, Any]:
        """The states of the generator and of the persistent chains."""
        return super().state_dict() | {"chains": None if self._state is None else self._state.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._state = None if state["chains"] is None else state["chains"].clone()


@dataclass
class _Rows:
    """Visible units with what the hidden ones are given them, and what they count in the gradient.

    Attributes:
        v: [n, visible].
        h: p(h | v), [n, hidden].
        share: What each row counts, -1/B on data and 1/n on samples, [n].
    """

    v: Tensor
    h: Tensor
    share: Tensor

    def gradients(self, rbm: RBM) -> list[tuple[nn.Parameter, Tensor | tuple[Tensor, Tensor]]]:
        """What is trained, and its gradient of F over the rows, or two matrices whose product that is; ``h`` is spent."""
        h, scaled = self.h.mul_(self.share.unsqueeze(1)), rbm.units.scaled(self.v)
        found: list[tuple[nn.Parameter, Tensor | tuple[Tensor, Tensor]]] = []
        if isinstance(rbm.units, GaussianUnits) and rbm.units.log_variance.requires_grad:
            z, b = rbm.units.log_variance, rbm.visible_bias
            squares = self.share @ (self.v - b).square() / 2
            found.append((z, (squares - ((h @ rbm.weight) * self.v).sum(0)) * torch.exp(-z)))
        if rbm.visible_bias.requires_grad:
            found.append((rbm.visible_bias, torch.mv(scaled.t(), self.share)))
        if rbm.hidden_bias.requires_grad:
            found.append((rbm.hidden_bias, h.sum(0)))
        if rbm.weight.requires_grad:
            found.append((rbm.weight, (h.t(), scaled)))
        return found


@dataclass
class _Phases:
    """The data and the machine's own samples.

    Attributes:
        examples: The data.
        samples: Where the chains are.
        both: Data above and samples below, which they are parts of then: one product gives the gradient of both.
    """

    examples: _Rows
    samples: _Rows
    both: _Rows | None

    @classmethod
    def of(cls, v: Tensor, chains: int, hidden: int) -> _Phases:
        examples, visible = v.shape
        h, share = v.new_empty(examples + chains, hidden), v.new_full((examples + chains,), 1 / chains)
        share[:examples] = -1 / examples
        if examples > hidden:  # to copy them takes longer than another pass over the weights
            samples, both = v.new_empty(chains, visible), None
        else:
            both = _Rows(v.new_empty(examples + chains, visible), h, share)
            v, samples = both.v[:examples], both.v[examples:]
        return cls(_Rows(v, h[:examples], share[:examples]), _Rows(samples, h[examples:], share[examples:]), both)

    def fits(self, v: Tensor, chains: int, hidden: int) -> bool:
        kept = self.examples.v
        same = kept.shape == v.shape and kept.dtype == v.dtype and kept.device == v.device
        return same and self.samples.h.shape == (chains, hidden)

    def take(self, v: Tensor) -> None:
        """Makes ``v`` the data."""
        if self.both is None:
            self.examples.v = v.contiguous()
        else:
            self.examples.v.copy_(v)

    def gradients(self, rbm: RBM) -> list[tuple[nn.Parameter, Tensor | tuple[Tensor, Tensor]]]:
        """See ``_Rows.gradients``; those of the same parameter add up."""
        if self.both is not None:
            return self.both.gradients(rbm)
        return self.examples.gradients(rbm) + self.samples.gradients(rbm)


def _machine(model: nn.Module) -> RBM:
    if not isinstance(model, RBM):
        raise DldwError(
            f"contrastive divergence trains a restricted Boltzmann machine (dldw.nn.RBM), and {type(model).__name__} is "
            "none: it has no free energy and cannot be sampled. Build an RBM, or use a source that takes a loss."
        )
    return model


def _examples(rbm: RBM, batch: Batch) -> Tensor:
    """The batch [B, visible], after checks."""
    missing = rbm.require(batch, "the batch")
    v: Tensor = batch
    if v.ndim != 2:
        raise DldwError(f"the batch must be of shape [B, {rbm.visible}], an example in each row, got {list(v.shape)}.")
    if missing:
        raise NonFiniteLossError(
            "values of the batch are missing (nan), and there is no gradient without them; .grad is as it was. "
            "Draw them given those that are known: rbm.sample(len(batch), steps=20, clamp=batch)."
        )
    return v


_CACHED = 3 << 15
"""Numbers of visible units that stay in the processor's cache from their field to their draw."""


def _squares(v: Tensor, mean: Tensor) -> float:
    """The sum of (v - mean)², from products that need no copy of the difference."""
    v, mean = v.view(-1), mean.view(-1)
    total = float(torch.dot(v, v)) - 2 * float(torch.dot(v, mean)) + float(torch.dot(mean, mean))
    return 0.0 if total < 0 else total  # rounding may take it below zero
