"""Learners of forward passes where an optimizer is expected: schedulers, trainers and checkpoints work with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from dldw.directional import Directional
from dldw.errors import DldwError
from dldw.learners import forward_only
from dldw.learners.forward_only import RecentMomentum
from dldw.registry import method
from dldw.source import Batch, Loss
from dldw.update import Rounding

Given = str | Callable[[Loss], Directional]
"""A source to be made from a loss: a method's name, its class, or ``functools.partial(dldw.MeZO, sigma=1e-4)``."""


def low_rank(loss: Loss) -> Directional:
    """What fine-tuning takes where nothing else is said: two forwards a step, each moving weights by 0.001."""
    from dldw.sources.low_rank_evolution import LowRankEvolution

    return LowRankEvolution(loss, sigma=1e-3, population=2)


def made(source: Given, loss: Loss) -> Directional:
    """The source, from its name or from what makes it.

    Raises:
        DldwError: It is none that estimates along directions.
    """
    factory: Any = method(source).factory if isinstance(source, str) else source
    found = factory(loss) if callable(factory) and not isinstance(factory, Directional) else factory
    if isinstance(found, Directional) and found is not factory:
        return found
    raise DldwError(
        f"source must be the name of a method that estimates along directions, its class or a function of the loss, got "
        f"{source!r}. Give 'mezo' or 'low-rank-evolution', or functools.partial(dldw.MeZO, sigma=1e-4)."
    )


class Learning(torch.optim.Optimizer):
    """A learner that looks like an optimizer: ``lr`` in ``param_groups``, key, counter and buffers in ``state_dict``.

    Args:
        learner: What makes the steps.
        params: The trainable weights, or groups of them.

    Raises:
        DldwError: There are several groups.
    """

    def __init__(self, learner: forward_only.ForwardOnly, params: Iterable[Any]) -> None:
        super().__init__(params, {"lr": learner.lr})
        if len(self.param_groups) > 1:
            raise DldwError(
                f"ForwardOnly got {len(self.param_groups)} groups of parameters, and a step is decided by one learning rate "
                "for all. Pass all parameters as one group."
            )
        self.learner = learner
        self.loss: Tensor | None = None
        """The loss before the last step, for trainers whose ``step`` returns nothing (accelerate's)."""

    def take(self, batch: Batch) -> Tensor:
        """A step at the learning rate that the group has now; returns the loss before it, shape []."""
        self.learner.lr = float(self.param_groups[0]["lr"])
        self.loss = self.learner.step(batch)
        return self.loss

    def step(self, closure: Any = None) -> Any:
        """What a trainer calls after a step; it has been made already, by ``take``."""
        return None if closure is None else closure()

    def state_dict(self) -> dict[str, Any]:
        """The groups, and the learner's state without the weights."""
        return {**super().state_dict(), "run": self.learner.run_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave.

        Raises:
            DldwError: The state is that of another optimizer.
        """
        if "run" not in state_dict:
            raise DldwError(
                "the saved state is not that of ForwardOnly: it has no key and no counter. Give the state of the run that "
                "goes on, or begin with the weights alone."
            )
        super().load_state_dict(state_dict)
        self.learner.load_run_state(state_dict["run"])

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """What a GradScaler asks for first, and nothing else does."""
        raise DldwError(NO_SCALER)


NO_SCALER = (
    "a GradScaler multiplies the loss so that small gradients do not vanish in fp16, and skips steps by what it finds in "
    ".grad. Here the slopes are differences of unscaled losses and there is no .grad. Train without it: use weights or "
    "autocast of bf16, or autocast of fp16 inside the loss and no scaler."
)


class ForwardOnly(Learning):
    """Forward passes in place of gradients, for loops that call ``optimizer.step(closure)``.

        w ← w - lr (λ w + m),    m ← μ m + ghat

    ``closure()`` runs the model and returns the loss; it calls no ``backward``. It is run at every perturbed point, where
    each torch function that is handed one of ``params`` gets W + σ z in its place: the weights are not written, and nothing
    of their size is allocated. Everything that torch dispatches from Python is reached so, tied weights included. A model
    in TorchScript, or code that reads a weight's memory itself, is not; where no weight is reached at all, the first step
    says so. Each run of the closure must do the same: it takes its batch from outside, and dropout sees the same mask, but
    batch norm in training mode moves its statistics at each.

    Cost: the forwards of the source and one pass over the weights. ``state_dict`` has key and counter, so that a run
    resumes bit for bit. See ``dldw.ForwardOnly`` for a learner that is given the model, and a log.

    Args:
        params: The trainable weights, in one group.
        lr: Read from ``param_groups`` at every step, so schedulers work.
        source: A method's name, its class, or a function that makes it from a loss. Rank-1 signs by default.
        momentum: μ, or a ``RecentMomentum``.
        weight_decay: λ, decoupled from the momentum, for all weights.
        rounding: ``stochastic``, ``nearest`` or ``compensated``, for weights of 16 bits.

    Raises:
        DldwError: Nothing can be trained; a setting is out of range; from ``step``, a GradScaler or ``backward`` was used.

    Example:
        >>> import torch, dldw
        >>> model, x = torch.nn.Linear(2, 1), torch.ones(4, 2)
        >>> optimizer = dldw.optim.ForwardOnly(model.parameters(), lr=0.05, source="mezo")
        >>> losses = [float(optimizer.step(lambda: model(x).square().mean())) for _ in range(20)]
        >>> losses[-1] < losses[0], model.weight.grad is None
        (True, True)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-6,
        *,
        source: Given = low_rank,
        momentum: float | RecentMomentum = 0.0,
        weight_decay: float = 0.0,
        rounding: Rounding = "stochastic",
    ) -> None:
        given = list(params)
        self._own = [p for group in given for p in (group["params"] if isinstance(group, dict) else [group])]
        self._own = [p[1] if isinstance(p, tuple) else p for p in self._own]
        holder = nn.ParameterList(self._own)
        learner = forward_only.ForwardOnly(
            holder, made(source, self._loss), lr, momentum=momentum, weight_decay=weight_decay, rounding=rounding
        )
        super().__init__(learner, given)

    def step(self, closure: Any = None) -> Any:
        """One estimate and one update; returns the loss before it, shape [].

        Args:
            closure: Runs the model on the batch and returns the loss, a scalar or one value per example [B].
        """
        if closure is None:
            raise DldwError(
                "ForwardOnly.step needs a closure: the loss is taken at several points, so the model must be run from here. "
                "Call optimizer.step(lambda: loss(model(inputs), labels)), and no backward()."
            )
        return self.take(closure)

    def _loss(self, holder: nn.Module, closure: Callable[[], Tensor]) -> Tensor:
        now = holder._parameters.values()
        with _InPlaceOf({id(p): t for p, t in zip(self._own, now, strict=True) if t is not None and t is not p}):
            return closure()


class _InPlaceOf(TorchFunctionMode):
    """Inside, every torch function gets other tensors in place of some.

    Args:
        others: By the ``id`` of what they stand for.
    """

    def __init__(self, others: dict[int, Tensor]) -> None:
        super().__init__()
        self._others = others

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.backward:
            raise DldwError(
                "the closure of ForwardOnly called backward(), and there is no graph: forward passes are all it needs. Let "
                "the closure return the loss and leave out backward() and zero_grad()."
            )
        args, kwargs = tree_map_only(Tensor, self._other, (args, kwargs or {}))
        return func(*args, **cast(dict[str, Any], kwargs))

    def _other(self, t: Tensor) -> Tensor:
        return self._others.get(id(t), t)
