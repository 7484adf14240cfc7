"""A model that is fixed features with one linear layer on top: what a perceptron's rule can train."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from dldw.errors import DldwError
from dldw.objective import require_same_device


@dataclass(frozen=True)
class Readout:
    """The parts of such a model; the layer has one output for two classes, or one for each class.

    Attributes:
        fixed: What makes features of the inputs, in order; nothing in it is trained.
        layer: What makes scores of the features.
    """

    fixed: tuple[nn.Module, ...]
    layer: nn.Linear

    @classmethod
    def of(cls, model: nn.Module) -> Readout:
        """The parts of ``model``.

        Raises:
            DldwError: It is neither a ``nn.Linear`` nor a ``nn.Sequential`` that ends in one, or more than that layer's
                weight and bias are trained.
        """
        parts = dict(model._modules) if _is(model, nn.Sequential) else {"": model}
        last, layer = parts.popitem() if parts else ("", None)
        if not isinstance(layer, nn.Linear) or not _is(layer, nn.Linear):
            raise DldwError(
                f"a perceptron is one nn.Linear, or a nn.Sequential of fixed parts that ends in one, got {_named(model)}: "
                "its rule has to see what goes into the layer it trains. Build the model so, or take another method, such "
                "as dldw.Backprop."
            )
        trained = [(part, *np) for part, m in parts.items() if m for np in m.named_parameters(remove_duplicate=False)]
        trained += [(last, name, p) for name, p in layer.named_parameters() if name not in ("weight", "bias")]
        others = [f"{part}.{name}" for part, name, p in trained if p.requires_grad]
        if others:
            raise DldwError(
                f"a perceptron's rule trains the weight and bias of the last layer alone, and {_named(model)} has other "
                f"trainable weights ({', '.join(others)}): it has nothing to say about them. Freeze them with "
                "requires_grad_(False), or take another method, such as dldw.Backprop."
            )
        return cls(tuple(m for m in parts.values() if m), layer)

    def features(self, batch: Any) -> tuple[Tensor, Tensor]:
        """What goes into the layer [B, d], and the labels [B].

        Raises:
            DldwError: The batch is not a pair (x, y), or does not fit the model.
        """
        require_same_device(batch, self.layer.weight.device)
        if not (isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)):
            raise DldwError(
                f"a perceptron learns from a batch (x, y) of examples [B, ...] and their classes [B], got "
                f"{type(batch).__name__}: it has to know which answer is right. Give it both tensors."
            )
        x, y = batch
        for part in self.fixed:
            x = part(x)
        if x.ndim != 2:
            raise DldwError(
                f"the layer that a perceptron trains must be given one row of features for each example [B, d], got "
                f"{list(x.shape)}. Put nn.Flatten() before it."
            )
        classes = max(2, self.layer.out_features)
        if y.is_floating_point() or y.is_complex() or y.shape != x.shape[:1]:
            raise DldwError(
                f"the classes must be one whole number for each of the {len(x)} examples, got {y.dtype} of shape "
                f"{list(y.shape)}. Convert them: y.long().flatten()."
            )
        if y.numel() and not 0 <= int(y.min()) <= int(y.max()) < classes:
            raise DldwError(
                f"the classes must be 0 to {classes - 1} for a layer of {self.layer.out_features} outputs, got "
                f"{int(y.min())} to {int(y.max())}. Number them from 0 (for two classes 0 and 1, not -1 and 1), or widen the "
                "layer."
            )
        if not y.numel():
            raise DldwError("the batch has no examples: there is nothing to learn from. Leave it out.")
        return x, y.to(torch.int64)


def require_margin(margin: float) -> None:
    """Raises ``DldwError`` unless ``margin`` is a finite number that is not negative."""
    if not isinstance(margin, Real) or not 0 <= margin < float("inf"):
        raise DldwError(
            f"margin must be a finite number that is not negative, got {margin!r}: how far the own score must be above the "
            "best of the others. A perceptron takes no loss; it has its own criterion. Use margin=0.0."
        )


def _is(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether ``module`` computes what ``kind`` does, and not something of a subclass's own."""
    return isinstance(module, kind) and type(module).forward is kind.forward


def _named(model: nn.Module) -> str:
    inside = f" of {', '.join(type(m).__name__ for m in model)}" if isinstance(model, nn.Sequential) and model else ""
    return f"{type(model).__name__}{inside}"
