"""Is the gradient of this model right?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_unflatten

from dldw.checking.examine import examine
from dldw.checking.problem import Problem, backward
from dldw.checking.result import CheckResult
from dldw.errors import DldwError, UnknownNameError
from dldw.registry import unknown
from dldw.source import Batch, Loss
from dldw.weights import Weights


def check(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    *,
    parameters: Iterable[str | nn.Parameter] | None = None,
    inputs: bool = False,
    directions: int = 8,
    seed: int = 0,
) -> CheckResult:
    """Compares what ``loss.backward()`` puts into ``.grad`` with difference quotients along random sign directions.

    For directions z of random signs (with magnitudes in [1/2, 3/2]), g the gradient and L the mean loss:

        g . z = (L(w + h z) - L(w - h z)) / 2h + O(h²), extrapolated from h and h/2 (Richardson 1911)

    Every quotient comes with an estimate of its own error, from which follows the step h and what can be said: the verdict is
    ``right``, ``wrong`` or ``cannot tell``, and errors are relative to the slopes, with no absolute tolerance. Models in
    float32 or bfloat16 are evaluated in float64 where they can be copied and converted. A wrong gradient is located by
    bisection over blocks, and common mistakes are recognised.

    The model, its ``.grad``, its buffers and the global random state are left as they were. Random numbers are the same in
    every evaluation. What stands on a kink (ReLU at zero, say) is checked beside it.

    Cost: at most 40 forwards and one backward pass where the gradient is right, whatever the number of weights; below
    float64 a second backward pass where rounding does not let the first decide (a third for a nearly vanishing gradient),
    and one more to go beside a kink. Where kinks are met only after most directions, nothing is left to go there with, and
    the verdict may be that there is no telling; more ``directions`` may take more forwards. Where the gradient is wrong,
    locating takes 4 to 24 forwards for every block that is tried, two blocks to a halving.

    Source: Richardson 1911; Nocedal & Wright 2006, Numerical Optimization, 8.1.

    Args:
        model: Any module.
        loss: ``loss(model, batch)``, a scalar or one value per example [B].
        batch: Handed to ``loss`` as it is.
        parameters: Which parameters to check, by name or themselves; by default all that are trainable.
        inputs: Whether to check the gradients of the floating-point tensors of ``batch`` as well.
        directions: How many directions.
        seed: What they are drawn from.

    Raises:
        DldwError: Nothing can be checked, or the loss is neither a scalar nor one value per example.
        UnknownNameError: ``parameters`` names one that is not there.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        >>> found = dldw.check(model, lambda m, x: m(x).square().mean(), torch.ones(5, 3))
        >>> bool(found), found.backwards, found.forwards <= 40
        (True, 1, True)
    """
    owner, evaluated = (model, loss) if not inputs else _with_inputs(model, loss, batch)
    weights = Weights.of(owner)
    weights.require_trainable()
    names = _names(owner, weights, prefix="model." if inputs else "")
    chosen = tuple(range(len(names))) if parameters is None else _chosen(parameters, model, weights, names)
    if inputs and parameters is not None:
        chosen += tuple(i for i, name in enumerate(names) if name.startswith("batch"))
    problem = Problem(owner, evaluated, batch, backward, chosen, names)
    return examine(problem, directions=directions, seed=seed)


def _names(model: nn.Module, weights: Weights, prefix: str) -> tuple[str, ...]:
    """The first name of every weight, and the others of a shared one behind it."""
    known: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        known.setdefault(id(p), []).append(name.removeprefix(prefix))
    if isinstance(model, _WithInputs):
        known |= {id(p): [f"batch{path}"] for path, p in zip(model.paths, model.inputs, strict=True)}
    return tuple(" = ".join(known[id(p)]) for p in weights.tensors)


def _chosen(
    parameters: Iterable[str | nn.Parameter], model: nn.Module, weights: Weights, names: tuple[str, ...]
) -> tuple[int, ...]:
    known = model.named_parameters(remove_duplicate=False)
    named = {name: weights.places[id(p)] for name, p in known if id(p) in weights.places}
    chosen = []
    for wanted in parameters:
        if isinstance(wanted, str):
            if wanted not in named:
                raise UnknownNameError(unknown("trainable parameter", wanted, named, of=type(model).__name__))
            chosen.append(named[wanted])
        elif id(wanted) in weights.places:
            chosen.append(weights.places[id(wanted)])
        else:
            raise DldwError(
                f"parameters holds a tensor of shape {list(wanted.shape)} that is no trainable parameter of "
                f"{type(model).__name__}. Its trainable parameters: {', '.join(names)}."
            )
    if not chosen:
        raise DldwError("parameters is empty, so there is nothing to check. Leave it out to check all of them.")
    return tuple(dict.fromkeys(chosen))


class _WithInputs(nn.Module):
    """A model and the floating-point tensors of a batch as if they were weights."""

    def __init__(self, model: nn.Module, inputs: list[Tensor], paths: list[str]) -> None:
        super().__init__()
        self.model = model
        self.inputs = nn.ParameterList([nn.Parameter(t.detach().clone()) for t in inputs])
        self.paths = paths


def _with_inputs(model: nn.Module, loss: Loss, batch: Batch) -> tuple[_WithInputs, Loss]:
    leaves, spec = tree_flatten_with_path(batch)
    at = [i for i, (_, t) in enumerate(leaves) if isinstance(t, Tensor) and t.is_floating_point()]
    if not at:
        raise DldwError(
            "inputs=True asks for the gradient of the batch, but it holds no floating-point tensor. Leave inputs out, or "
            "check the model from its embeddings on."
        )
    owner = _WithInputs(model, [leaves[i][1] for i in at], [keystr(leaves[i][0]) for i in at])

    def evaluated(owner: Any, batch: Batch) -> Tensor:
        values = [value for _, value in tree_flatten_with_path(batch)[0]]
        for i, tensor in zip(at, owner.inputs, strict=True):
            values[i] = tensor
        return loss(owner.model, tree_unflatten(values, spec))

    return owner, evaluated
