"""Pendulum: swing a pendulum up and hold it there, with a torque too weak to lift it at once."""

from __future__ import annotations

import numpy as np

from dldw.rollout import Array
from dldw.tasks.control import Control


class Pendulum(Control):
    """gymnasium's Pendulum-v1: the cost of angle, speed and torque over 200 steps. It names no threshold; solved at -200."""

    name = "pendulum"
    summary = "Pendulum-v1 (gymnasium), policy 3-16-1 with tanh, 4 episodes a batch; the loss is minus the return."
    target = -200.0
    environment = "Pendulum-v1"
    sizes = (1.0, 1.0, 8.0)
    outputs = 1
    batch_size = 4

    @staticmethod
    def start(generator: np.random.Generator) -> Array:
        return generator.uniform((-np.pi, -1.0), (np.pi, 1.0))

    @staticmethod
    def observe(state: Array) -> Array:
        return np.stack((np.cos(state[0]), np.sin(state[0]), state[1]))

    @staticmethod
    def advance(state: Array, action: Array) -> tuple[Array, Array, Array]:
        theta, speed = state
        torque = action[:, 0]
        off = (theta + np.pi) % (2 * np.pi) - np.pi
        cost = off**2 + 0.1 * speed**2 + 0.001 * torque**2
        speed = (speed + (15.0 * np.sin(theta) + 3.0 * torque) * 0.05).clip(-8.0, 8.0)
        return np.stack((theta + speed * 0.05, speed)), -cost, np.zeros(len(theta), dtype=bool)
