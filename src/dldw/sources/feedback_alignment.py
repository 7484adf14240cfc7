"""Feedback alignment: back-propagation with other matrices on the way back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dldw.card import Card, Choice, Float, Published
from dldw.errors import DldwError
from dldw.layers import Call, Layers, require_layers, with_backward
from dldw.objective import Objective
from dldw.source import Batch, GradientSource, Loss

Mode = Literal["random", "sign-symmetric", "direct", "transpose"]


class FeedbackAlignment(GradientSource):
    """The error reaches each layer by feedback of its own, in the place of the transposed weights of the layers above.

    With y = W x + b and e = dL/dy, a layer adds e xᵀ to the gradient of W as ever, and hands back in the place of Wᵀ e

        random:          B e           B fixed, drawn once, of the shape of Wᵀ
        sign-symmetric:  mean|W| · sign(W)ᵀ e
        direct:          B eₒ          eₒ the error at the output layer, B fixed, from there to this layer's input
        transpose:       Wᵀ e          the control, which is back-propagation

    What lies between the layers is differentiated exactly, and so are the weights of the output layer. In layers below it
    the estimate is no gradient of any loss; it helps as W comes to align with B.

    Cost: 3 forward-equivalents, direct: 2 and the products with B; one B for each weight, direct: outputs x inputs a layer.

    Source: Lillicrap et al. 2016, Nature Communications 7; signs: Liao et al. 2016, arXiv 1510.05067; direct: Nøkland 2016,
    arXiv 1609.01596.

    Args:
        loss: ``loss(model, batch)``, differentiable, a scalar or one value per example [B].
        mode: Which feedback. Entries of B are Gaussian, of variance 1 / (size of the error).
        generator: Where B is drawn from; see ``GradientSource``.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> source = dldw.FeedbackAlignment(lambda m, x: m(x).square().sum(1), mode="direct")
        >>> loss = source(model, torch.ones(4, 2))
        >>> model[0].weight.grad.shape
        torch.Size([3, 2])
    """

    card = Card(
        summary="Back-propagation with fixed random matrices, or signs, in the place of transposed weights.",
        claim="biased",
        needs="autograd",
        forwards="2 if mode == 'direct' else 3",
        memory="d + a, and d for the feedback; direct: outputs x inputs for each layer",
        paper="Lillicrap et al. 2016; Liao et al. 2016, arXiv 1510.05067; Nøkland 2016, arXiv 1609.01596",
        space={
            "lr": Float(1e-4, 1.0),
            "mode": Choice(("direct", "random", "sign-symmetric")),
            "optimizer": Choice(("sgd", "adam")),
        },
        note="Other objective: below the output layer it follows its feedback, not dL/dw. Direct feedback takes "
        "outputs/width more forwards a step.",
        published=(
            Published(
                settings={"mode": "direct"},
                accuracy=98.55,
                backprop=None,
                data="MNIST",
                network="fully connected, with dropout",
                source="Nøkland 2016, arXiv 1609.01596",
            ),
        ),
    )

    def __init__(self, loss: Loss, *, mode: Mode = "direct", generator: torch.Generator | None = None) -> None:
        super().__init__(loss, generator)
        if mode not in ("random", "sign-symmetric", "direct", "transpose"):
            raise DldwError(f"mode must be random, sign-symmetric, direct or transpose, got {mode!r}.")
        self.mode = mode
        self._feedback: dict[tuple[int, ...], Tensor] = {}
        if mode == "transpose":
            self.card = replace(self.card, claim="exact", note="The control: equal to back-propagation.")

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        weights = self._prepare(model)
        generator = self._generator_on(weights.device)
        error_of_output: list[Tensor] = []  # comes back first, as autograd goes from the last call to the first

        def back(call: Call, error: Tensor, x: Tensor, wanted: bool) -> Tensor | None:
            if not error_of_output:
                error_of_output.append(error)
            if not wanted:
                return None
            if self.mode == "direct":
                return self._direct(call, error_of_output[0], x, generator)
            return call.to_input(error, x, self._instead_of(call, generator))

        def fed(call: Call) -> Tensor:
            return with_backward(call, back)

        objective = Objective(model, self.loss, batch, weights)
        with torch.enable_grad(), Layers(weights, fed) as layers, weights.gathered():
            losses = objective.with_graph()
            objective.check(losses)
            objective.require_graph(losses)
            require_layers(layers.calls, model)
            return objective.tensor(objective.backward(losses))

    def _instead_of(self, call: Call, generator: torch.Generator) -> Tensor:
        """What takes the place of W, of its shape."""
        w = call.weight.detach()
        if self.mode == "transpose":
            return w
        if self.mode == "sign-symmetric":
            return w.sign() * w.abs().mean()
        groups = call.options[-1] if call.options else 1
        return self._fixed(call, w.shape, w.shape[1] * groups / w.numel(), w, generator)

    def _direct(self, call: Call, error: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
        """B eₒ, of the shape of x."""
        if len(error) != len(x):
            raise DldwError(
                f"direct feedback sends each example's error from the output layer to every other, but the output layer has "
                f"{len(error)} rows and another layer's input {len(x)}. Keep the examples in the first dimension of both, or "
                "use mode='random'."
            )
        error = error.flatten(1)
        shape = torch.Size((error.shape[1], x[0].numel()))
        feedback = self._fixed(call, shape, 1 / error.shape[1], call.weight, generator)
        return (error @ feedback.to(error.dtype)).view(x.shape).to(x.dtype)

    def _fixed(
        self, call: Call, shape: torch.Size, variance: float, like: Tensor, generator: torch.Generator
    ) -> Tensor:
        """B of this call, drawn when it is first needed."""
        key = (call.index, *shape)
        if key not in self._feedback:
            drawn = torch.empty(shape, dtype=like.dtype, device=like.device).normal_(generator=generator)
            self._feedback[key] = drawn.mul_(variance**0.5)
        return self._feedback[key]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "feedback": dict(self._feedback)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._feedback = dict(state["feedback"])
