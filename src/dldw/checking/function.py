"""Is the gradient of this function right?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dldw.checking.examine import examine
from dldw.checking.problem import BackwardError, Claim, Claims, ForwardMode, Gradient, Problem, Unavailable, backward
from dldw.checking.result import CheckResult
from dldw.errors import DldwError

Mode = Literal["reverse", "forward", "hessian"]


def check_function(
    f: Callable[..., Any] | type[torch.autograd.Function],
    gradient: Callable[..., Any] | Mode,
    x: Any,
    *args: Any,
    directions: int = 8,
    seed: int = 0,
) -> CheckResult:
    """Compares a gradient with difference quotients of ``f``: ``scipy.optimize.check_grad`` with a verdict and a location.

    ``f(x, *args)`` is a function of NumPy arrays or torch tensors, or an ``autograd.Function``. Where its value is not a
    scalar, its product with a fixed random tensor is differentiated; outputs that are not floating point, or that carry no
    graph, are left out.

    Cost, method and verdicts are those of ``dldw.check``.

    Args:
        f: The function.
        gradient: ``gradient(x, *args)``, an array like x, or what of autograd is checked: ``reverse`` mode, ``forward`` mode,
            or ``hessian``, the product of the Hessian with a random vector, for which the backward pass itself has to be
            differentiable. For a tuple x it returns a tuple; for a value of shape S and an x of shape N the Jacobian
            [*S, *N], or derivatives entry by entry where value and x are of one shape.
        x: Where: an array, a tensor, a number, or a tuple of these for a function of several arguments. A list is an array,
            as it is in SciPy. What of a tuple is not floating point is handed on as it is.
        *args: More arguments of ``f`` and ``gradient``.
        directions: How many directions.
        seed: What they are drawn from.

    Raises:
        DldwError: x holds nothing to differentiate by, or the values of ``f`` or ``gradient`` have no fitting shape.

    Example:
        >>> import numpy as np, dldw
        >>> f, gradient = lambda x: (x**3).sum(), lambda x: 2 * x**2
        >>> print(dldw.check_function(f, gradient, np.array([1.0, -2.0, 0.5])))
        wrong: the gradient is 33.3 % off along 8 random directions: 1 of 1 tensors wrong.
          tensor  shape  |gradient|  verdict  error  where      it looks
          x       3      8.26        wrong    0.33   all of it  scaled by 0.666667
    """
    point = _Point(x)
    if not any(True for _ in point.parameters()):
        raise DldwError(
            f"x holds nothing to differentiate by: {type(x).__name__}. Give floating-point numbers, or an array."
        )
    if isinstance(gradient, str) and point.numpy:
        raise DldwError(
            f"gradient={gradient!r} is what autograd gives, which does not follow NumPy. Give x as torch tensors."
        )
    call = f.apply if isinstance(f, type) and issubclass(f, torch.autograd.Function) else f
    value = _Value(call, args, seed)
    loss = _Product(value, seed) if gradient == "hessian" else value
    names = tuple(point.names)
    problem = Problem(point, loss, None, _claims(gradient, args, value), tuple(range(len(names))), names)
    return examine(problem, directions=directions, seed=seed)


class _Point(nn.Module):
    """The arguments of a function, of which the floating-point ones are parameters."""

    def __init__(self, x: Any) -> None:
        super().__init__()
        several = isinstance(x, tuple)
        self.rest: list[Any] = list(x) if several else [x]
        self.places: list[int] = []
        self.names: list[str] = []
        self.several = several
        self.numpy = not any(isinstance(value, Tensor) for value in self.rest)
        self.held = nn.ParameterList()
        for i, value in enumerate(self.rest):
            tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value, ndmin=0))
            if isinstance(value, int) and not isinstance(value, bool) and not several:
                tensor = tensor.double()
            if tensor.is_floating_point():
                self.held.append(nn.Parameter(tensor.detach().clone()))
                self.places.append(i)
                self.names.append(f"x[{i}]" if several else "x")

    def arguments(self) -> list[Any]:
        """What the function is called with."""
        values = list(self.rest)
        for place, tensor in zip(self.places, self.held, strict=True):
            values[place] = tensor.detach().cpu().numpy() if self.numpy else tensor
        return values


class _Value:
    """The value of the function, or its product with random numbers, as a loss of the point.

    ``followed`` says which floating-point outputs carry a graph, ``shape`` is that of the first one.
    """

    def __init__(self, call: Callable[..., Any], args: Sequence[Any], seed: int) -> None:
        self.call, self.args, self.seed = call, args, seed
        self.followed: Sequence[bool] = ()
        self.shape = torch.Size()

    def __call__(self, point: Any, batch: Any) -> Tensor:
        out = self.call(*point.arguments(), *self.args)
        outputs = [_tensor(value) for value in (out if isinstance(out, tuple | list) else (out,))]
        outputs = [t for t in outputs if t.is_floating_point()]
        if torch.is_grad_enabled() and any(t.requires_grad for t in outputs):
            self.followed = [t.requires_grad for t in outputs]
        outputs = [t for t, followed in zip(outputs, self.followed or [True] * len(outputs), strict=True) if followed]
        if not outputs:
            raise DldwError("f returns nothing to differentiate: no floating-point number, array or tensor.")
        self.shape = outputs[0].shape
        if len(outputs) == 1 and not self.shape:
            return outputs[0]
        return torch.stack([(t * self.cotangent(t.shape).to(t)).sum() for t in outputs]).sum()

    def cotangent(self, shape: torch.Size) -> Tensor:
        """Random numbers to multiply an output with, the same every time."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)


class _Product:
    """The product of the gradient with a fixed random vector, whose own gradient is a product with the Hessian."""

    def __init__(self, value: _Value, seed: int) -> None:
        self.value, self.seed = value, seed

    def __call__(self, point: Any, batch: Any) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 1)
        followed = torch.is_grad_enabled()
        tensors = list(point.held)
        with torch.enable_grad():
            if not followed:
                tensors = [t.detach().requires_grad_() for t in tensors]
                point = _At(point, tensors)
            first = torch.autograd.grad(
                self.value(point, batch), tensors, create_graph=followed, materialize_grads=True
            )
            vectors = [torch.randn(g.shape, generator=generator, dtype=torch.float64).to(g) for g in first]
            return torch.stack([(g * v).sum() for g, v in zip(first, vectors, strict=True)]).sum()


class _At:
    """A point at other tensors."""

    def __init__(self, point: _Point, tensors: list[Tensor]) -> None:
        self._point, self._tensors = point, tensors

    def arguments(self) -> list[Any]:
        values = list(self._point.rest)
        for place, tensor in zip(self._point.places, self._tensors, strict=True):
            values[place] = tensor
        return values


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))


def _claims(gradient: Callable[..., Any] | Mode, args: Sequence[Any], value: _Value) -> Claims:
    if gradient == "reverse":
        return backward
    if gradient == "hessian":
        return _second
    if gradient == "forward":
        return lambda problem: ForwardMode(problem.objective)
    if not callable(gradient):
        raise DldwError(f"gradient must be a function, 'reverse', 'forward' or 'hessian', got {gradient!r}.")

    def claim(problem: Problem) -> Claim:
        point: Any = problem.model
        with torch.no_grad():
            loss = float(problem.objective.at(problem.weights.tensors))
            found = gradient(*point.arguments(), *args)
        parts = found if point.several and isinstance(found, tuple | list) else (found,)
        if len(parts) == len(point.rest) and len(parts) > len(point.places):
            parts = [parts[place] for place in point.places]
        if len(parts) != len(point.places):
            raise DldwError(
                f"gradient returned {len(parts)} arrays for {len(point.places)} arguments. Return one for each."
            )
        return Gradient([_contracted(g, p, value) for g, p in zip(parts, point.held, strict=True)], loss)

    return claim


def _second(problem: Problem) -> Claim:
    try:
        return backward(problem)
    except (RuntimeError, BackwardError) as error:
        raise Unavailable(f"the backward pass cannot be differentiated: {error}") from error


def _contracted(g: Any, p: Tensor, value: _Value) -> Tensor | None:
    """A gradient in the shape of its argument; a Jacobian, or derivatives entry by entry, times the cotangent."""
    if g is None:
        return None
    tensor, lead = _tensor(g).to(p.device), value.shape
    if len(lead) == 0 and tensor.numel() == p.numel():
        return tensor.reshape(p.shape)
    if tensor.shape == (*lead, *p.shape):
        contracted: Tensor = torch.tensordot(value.cotangent(lead).to(tensor), tensor, len(lead))
        return contracted
    if tensor.shape == p.shape == lead:
        return value.cotangent(lead).to(tensor) * tensor
    raise DldwError(
        f"gradient returned an array of shape {list(tensor.shape)} for an argument of shape {list(p.shape)} and a value of "
        f"shape {list(lead)}. Return a derivative for each entry of the argument; where the value has a shape S, the "
        "Jacobian [*S, *N], or for a function of each entry alone its derivatives."
    )
