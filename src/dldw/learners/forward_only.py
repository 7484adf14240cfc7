"""Training at the memory of inference: estimate and update in one pass, and a log from which the weights come back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dldw.directional import Directional, paired
from dldw.directions import Drawn
from dldw.errors import DldwError
from dldw.noise import draw_keys, wind
from dldw.runlog import RunLog, Step, describe, digest, read
from dldw.source import Batch
from dldw.update import Rounding, Update
from dldw.weights import Weights


@dataclass(frozen=True)
class RecentMomentum:
    """Momentum over the last few steps, made again from their logged slopes: no buffer, one more pass for each step.

    Args:
        momentum: What a step counts for one step later.
        steps: How many steps back.
    """

    momentum: float
    steps: int

    def __post_init__(self) -> None:
        if not 0 < self.momentum < 1 or self.steps < 1:
            raise DldwError(
                f"RecentMomentum needs a momentum between 0 and 1 and at least one step, got {self.momentum} and "
                f"{self.steps}. The usual choice is RecentMomentum(0.9, steps=20)."
            )


class ForwardOnly:
    """Trains with a directional source and never makes a gradient: the memory of inference and one tile of noise.

        w ← w - lr (λ w + m),    m ← μ m + ghat

    ``.grad`` would be as large as the model. Here each direction is made again from its counter while the weights are
    updated, a tile at a time. A step is decided by a few numbers, its counter, its slopes and its learning rate, and with
    ``log`` they are on the disk before the step is reported done: tens of bytes. ``dldw.replay`` makes the trained weights
    from the first ones and the log, bit for bit, and the same learner goes on from a log that it is given.

    Cost: the forwards of the source and one pass over the weights.

    Args:
        model: The model to train.
        source: A directional one (``MeZO``, ``LowRankEvolution``, ``SPSA``). The run's key is drawn from its generator.
        lr: Learning rate.
        momentum: μ, with a buffer of the size of the weights; or ``RecentMomentum``, which needs none.
        weight_decay: λ, decoupled from the momentum.
        schedule: What ``lr`` is multiplied with, a function of the number of the step, from 0.
        rounding: ``nearest``, ``stochastic`` or ``compensated``, for weights of 16 bits; see ``dldw.update.Update``.
        log: A file to write the run to, or to go on from: the model must hold the weights that the run began with.

    Raises:
        DldwError: The source is not directional; a setting is out of range; the log belongs to another run.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Linear(2, 1)
        >>> source = dldw.MeZO(lambda m, x: m(x).square().sum(1))
        >>> learner = dldw.ForwardOnly(model, source, lr=0.05)
        >>> losses = [float(learner.step(torch.ones(4, 2))) for _ in range(20)]
        >>> losses[-1] < losses[0], model.weight.grad is None
        (True, True)
    """

    def __init__(
        self,
        model: nn.Module,
        source: Directional,
        lr: float,
        *,
        momentum: float | RecentMomentum = 0.0,
        weight_decay: float = 0.0,
        schedule: Callable[[int], float] | None = None,
        rounding: Rounding = "nearest",
        log: str | Path | None = None,
    ) -> None:
        if not isinstance(source, Directional):
            raise DldwError(
                f"ForwardOnly needs a source that estimates along directions, as those can be made again; "
                f"{type(source).__name__} fills .grad by other means. Use dldw.Descent with it."
            )
        if not (math.isfinite(lr) and lr >= 0):
            raise DldwError(f"lr must be finite and not negative, got {lr}.")
        self.model, self.source, self.lr, self.schedule = model, source, lr, schedule
        weights = Weights.of(model)
        weights.require_trainable()
        self._generator = source._generator_on(weights.device)
        self._ranks = source._evaluator.ranks
        self.key = draw_keys(self._generator, 1)[0]
        if self._ranks is not None:
            self.key = self._ranks.first(self.key)
        self._recent = momentum if isinstance(momentum, RecentMomentum) else None
        self._described = describe(source, momentum, weight_decay, rounding)
        self._log = None if log is None else RunLog(Path(log), self._described, self.key, model, self._ranks)
        if self._log is not None:
            self.key = self._log.key
        kept = 0.0 if isinstance(momentum, RecentMomentum) else momentum
        self._update = Update(weights, kept, weight_decay, rounding, self.key)
        self._last: list[Step] = []
        self.steps = 0
        for step in () if self._log is None else self._log.steps:
            self.repeat(step)

    def step(self, batch: Batch) -> Tensor:
        """One estimate and one update; returns the detached loss at the weights before it, shape [].

        Raises:
            NonFiniteLossError: The loss was NaN or infinite; the weights and the log are as they were.
        """
        wind(self._generator, self.key, self.steps)
        estimate = self.source.estimate(self.model, batch)
        lr = self.lr * (1.0 if self.schedule is None else self.schedule(self.steps))
        step = Step(self.steps, lr, estimate.coefficients, float(estimate.loss))
        if self._log is not None:
            self._log.append(step)
        self._take(step, estimate.parts())
        return estimate.loss

    def repeat(self, step: Step) -> None:
        """Takes a step that was taken before, from its record."""
        self._take(step, self._again(step, 1.0))

    def log_to(self, path: str | Path) -> None:
        """Writes the run to a file from here on, after ``load_run_state`` and with the weights that belong to it.

        Args:
            path: A new file, if no step has been taken; else the log of this run, which is cut where the run now is.

        Raises:
            DldwError: The log is missing or belongs to another run.
        """
        if self.steps and not Path(path).exists():
            raise DldwError(
                f"the run goes on after {self.steps} steps, but its log {path} is not there, and without its beginning the "
                "weights could not be replayed. Put it back, or write no log."
            )
        self._log = RunLog(Path(path), self._described, self.key, self.model, self._ranks, taken=self.steps)
        self._log.cut(self.key, self.steps)

    def _take(self, step: Step, parts: Iterator[tuple[Drawn, list[float]]]) -> None:
        recent, last = self._recent, self._last
        if recent is not None:
            faded = (self._again(earlier, recent.momentum**back) for back, earlier in enumerate(reversed(last), 1))
            parts = chain(parts, *faded)
            self._last = [*last, step][-recent.steps :]
        self._update.apply(step.number, step.lr, parts)
        self.steps = step.number + 1
        every = 0 if self._ranks is None else self._ranks.check_every
        if self._ranks is not None and every and self.steps % every == 0:
            self._ranks.require_equal(digest(dict(self.model.named_parameters())), step.number)

    def _again(self, step: Step, factor: float) -> Iterator[tuple[Drawn, list[float]]]:
        """The directions of a step and its slopes times ``factor``."""
        wind(self._generator, self.key, step.number)
        drawn = self.source.redraw(self._update.weights, self._generator, len(step.slopes))
        yield from paired(drawn, [factor * slope for slope in step.slopes])

    def state_dict(self) -> dict[str, Any]:
        """The states of model, source and update, the key, and the number of steps."""
        return {"model": self.model.state_dict(), **self.run_state()}

    def run_state(self) -> dict[str, Any]:
        """The state without the model, for trainers that save that themselves: numbers, and the buffers of the update."""
        return {
            "source": self.source.state_dict(),
            "update": self._update.state_dict(),
            "key": list(self.key),
            "steps": self.steps,
            "last": [step.record() for step in self._last],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave; a log is cut where the state was saved."""
        if self._log is not None:
            self._log.cut(tuple(state["key"]), state["steps"])
        self.model.load_state_dict(state["model"])
        self.load_run_state(state)

    def load_run_state(self, state: dict[str, Any]) -> None:
        """Restores what ``run_state`` gave; a log is then to be given anew, see ``log_to``."""
        key: tuple[int, int] = tuple(state["key"])
        self.source.load_state_dict(state["source"])
        self._update.load_state_dict(state["update"])
        self._update.key = self.key = key
        self.steps, self._last = state["steps"], [Step.of(record) for record in state["last"]]


def replay(
    base: nn.Module | Mapping[str, Tensor] | str | Path, log: str | Path, *, source: Directional | None = None
) -> dict[str, Tensor]:
    """The weights that a run of ``ForwardOnly`` ended with, from those that it began with and its log, bit for bit.

    No batch is needed and no loss is taken. Buffers (batch-norm statistics) are not in the log.

    Args:
        base: What the run began with: a model, its weights by name, or a safetensors file of them. It is not changed.
        log: The file; a torn last line is left out.
        source: What the run was made with, where it is none of dldw's own; built from the same settings.

    Returns:
        All tensors of ``base`` by name, the trained ones replaced.

    Raises:
        DldwError: The log cannot be read, is of another device kind, or belongs to other weights.
    """
    head, steps = read(log)
    known = dict(base.state_dict()) if isinstance(base, nn.Module) else _loaded(base)
    missing = [name for name in head["weights"] if name not in known]
    trained = {name: known[name].detach().clone() for name in head["weights"] if name in known}
    if missing or digest(trained) != head["digest"]:
        why = f"it has no {missing[0]}" if missing else "they are not bit for bit those that the run began with"
        raise DldwError(f"{log} belongs to other weights: {why}. Give the model as it was before the first step.")
    model = nn.ParameterList(trained.values())
    if next(model.parameters()).device.type != head["device"]:
        raise DldwError(
            f"{log} was written on {head['device']}, whose noise is its own, and the weights are on "
            f"{next(model.parameters()).device.type}. Move them to {head['device']} first."
        )
    learner = ForwardOnly(
        model,
        source or _rebuilt(head, log),
        0.0,
        momentum=RecentMomentum(*head["momentum"]) if isinstance(head["momentum"], list) else head["momentum"],
        weight_decay=head["weight_decay"],
        rounding=head["rounding"],
    )
    learner.load_state_dict({**learner.state_dict(), "key": head["key"]})
    for step in steps:
        learner.repeat(step)
    ended = {_place(known[name]): p.detach() for name, p in zip(trained, model.parameters(), strict=True)}
    return {name: ended.get(_place(t), t) for name, t in known.items()}


def _place(t: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies: the names of a tied weight lie in one place."""
    return t.data_ptr(), t.dtype, t.shape, t.stride()


def _loaded(base: Mapping[str, Tensor] | str | Path) -> dict[str, Tensor]:
    if isinstance(base, Mapping):
        return dict(base)
    from safetensors.torch import load_file

    try:
        return load_file(base)
    except Exception as error:  # safetensors raises an exception of its own for a file that is none
        raise DldwError(f"the weights {base} cannot be read: {error}. Give a safetensors file.") from error


def _rebuilt(head: Mapping[str, Any], log: str | Path) -> Directional:
    from dldw.registry import METHODS, method

    if head["source"] not in METHODS:
        raise DldwError(f"{log} was made with {head['source']}, which is none of dldw's methods. Pass it as source=.")
    made: Directional = method(head["source"]).factory(lambda model, batch: None, **head["settings"])
    return made
