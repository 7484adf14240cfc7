"""Mountain car with continuous force: rock out of a valley with an engine too weak to climb out of it."""

from __future__ import annotations

import numpy as np

from dldw.rollout import Array
from dldw.tasks.control import Control


class MountainCarContinuous(Control):
    """Moore 1990, as gymnasium's MountainCarContinuous-v0: 100 at the top, less what force costs; solved at 90."""

    name = "mountain-car-continuous"
    summary = "MountainCarContinuous-v0 (gymnasium), policy 2-16-1, 8 episodes a batch; the loss is minus the return."
    target = 90.0
    lowest = -100.0
    environment = "MountainCarContinuous-v0"
    sizes = (0.5, 0.05)
    outputs = 1

    @staticmethod
    def start(generator: np.random.Generator) -> Array:
        return np.array([generator.uniform(-0.6, -0.4), 0.0])

    @staticmethod
    def advance(state: Array, action: Array) -> tuple[Array, Array, Array]:
        """In single precision after the first step, as gymnasium keeps its state."""
        position, speed = state
        force = action[:, 0]
        slope = 0.0025 * np.cos((3 * position).astype(np.float64))
        speed = (speed + (force * np.float32(0.0015) - slope.astype(np.float32))).clip(-0.07, 0.07)
        position = (position + speed).clip(-1.2, 0.6)
        speed = np.where((position == position.dtype.type(-1.2)) & (speed < 0), 0, speed)
        there = (position >= 0.45) & (speed >= 0)
        cost = 0.1 * force.astype(np.float64) ** 2
        return np.stack((position, speed)).astype(np.float32), np.where(there, 100.0, 0.0) - cost, there
