"""Forwards to the target over network width, with a learning rate that suits each width."""

from __future__ import annotations

from dataclasses import dataclass

from dldw.compare.item import Identity, MethodItem
from dldw.compare.records import Record
from dldw.compare.train import DEFAULT_LR, Training, forwards_per_step, train
from dldw.compare.tune import SEED
from dldw.weights import Weights

FACTORS = (1.0, 3.0, 1 / 3)
FEWEST_STEPS = 20


@dataclass(frozen=True)
class Widening(MethodItem):
    """All runs of one method at one width.

    The rate tuned at the task's own width does not suit the others: a random direction's noise, and with it the largest
    stable rate, depends on the number of weights. So each width takes the fastest of three rates on the validation split.

    Attributes:
        width: Hidden units.
        seeds: Runs.
        forwards: Budget of each; a rate that is tried gets no more than the best before it took.
        per_decade: Evaluations in each factor of ten.
    """

    width: int
    seeds: int
    forwards: float
    per_decade: int

    @property
    def weight(self) -> float:
        return 0.3 + self.seconds_of(self.forwards) * (0.5 * (self.seeds + len(FACTORS)))

    @property
    def keys(self) -> list[Identity]:
        return [("end", "width", self.task, self.label, seed, self.width, 1.0) for seed in range(self.seeds)]

    @property
    def what(self) -> str:
        return f"width {self.width}: {self.label}"

    def run(self) -> list[Record]:
        lr = dict(self.settings).get("lr", DEFAULT_LR) * self._factor()
        settings = tuple({**dict(self.settings), "lr": lr}.items())
        return [
            record
            for seed in range(self.seeds)
            for record in Training(
                self.task, self.data, self.spec, settings, study="width", seed=seed, width=self.width, factor=1.0,
                forwards=self.forwards, per_decade=self.per_decade, stop_at_target=True,
            ).run()
        ]  # fmt: skip

    def _factor(self) -> float:
        task, settings = self.loaded(), dict(self.settings)
        size = Weights(task.model(0, self.width)).size
        if forwards_per_step(self.spec, settings, size) * FEWEST_STEPS > self.forwards:
            return 1.0
        best, limit = 1.0, self.forwards
        for factor in FACTORS:
            scaled = {**settings, "lr": settings.get("lr", DEFAULT_LR) * factor}
            curve = train(
                task, self.spec, scaled, SEED, forwards=limit, width=self.width, per_decade=self.per_decade,
                stop_at_target=True, tuning=True,
            )  # fmt: skip
            if curve.to_target is not None and curve.to_target["forwards"] < limit:
                best, limit = factor, curve.to_target["forwards"]
        return best
