"""CartPole: keep a pole upright on a cart that is pushed left or right."""

from __future__ import annotations

import numpy as np

from dldw.rollout import Array
from dldw.tasks.control import Control


class CartPole(Control):
    """Barto, Sutton & Anderson 1983, as gymnasium's CartPole-v1: one for each step up to 500; solved at 475."""

    name = "cartpole"
    summary = "CartPole-v1 (gymnasium), policy 4-16-2 with tanh, 8 episodes a batch; the loss is minus the return."
    target = 475.0
    lowest = -500.0
    environment = "CartPole-v1"
    sizes = (2.4, 2.0, 0.2, 2.0)
    outputs = 2

    @staticmethod
    def start(generator: np.random.Generator) -> Array:
        return generator.uniform(-0.05, 0.05, 4)

    @staticmethod
    def advance(state: Array, action: Array) -> tuple[Array, Array, Array]:
        x, x_dot, theta, theta_dot = state
        cos, sin = np.cos(theta), np.sin(theta)
        pole = 0.1 * 0.5  # mass times half the length
        push = (np.where(action == 1, 10.0, -10.0) + pole * np.square(theta_dot) * sin) / 1.1
        theta_ddot = (9.8 * sin - cos * push) / (0.5 * (4.0 / 3.0 - 0.1 * np.square(cos) / 1.1))
        x_ddot = push - pole * theta_ddot * cos / 1.1
        moved = state + 0.02 * np.stack((x_dot, x_ddot, theta_dot, theta_ddot))
        fallen = (np.abs(moved[0]) > 2.4) | (np.abs(moved[2]) > 12 * 2 * np.pi / 360)
        return moved, np.ones(len(x)), fallen
