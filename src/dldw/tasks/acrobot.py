"""Acrobot: swing the free end of a double pendulum up, by a torque on the joint between its links."""

from __future__ import annotations

import numpy as np

from dldw.rollout import Array
from dldw.tasks.control import Control

PI = np.pi


class Acrobot(Control):
    """Sutton 1996, as gymnasium's Acrobot-v1: minus one for each step up to 500; solved at -100."""

    name = "acrobot"
    summary = "Acrobot-v1 (gymnasium), policy 6-16-3 with tanh, 8 episodes a batch; the loss is minus the return."
    target = -100.0
    environment = "Acrobot-v1"
    sizes = (1.0, 1.0, 1.0, 1.0, 3.0, 5.0)
    outputs = 3

    @staticmethod
    def start(generator: np.random.Generator) -> Array:
        return generator.uniform(-0.1, 0.1, 4).astype(np.float32)

    @staticmethod
    def observe(state: Array) -> Array:
        return np.stack((np.cos(state[0]), np.sin(state[0]), np.cos(state[1]), np.sin(state[1]), *state[2:]))

    @staticmethod
    def advance(state: Array, action: Array) -> tuple[Array, Array, Array]:
        y, torque, dt = state.astype(np.float64), action - 1.0, 0.2
        k1 = _slope(y, torque)
        k2 = _slope(y + dt / 2 * k1, torque)
        k3 = _slope(y + dt / 2 * k2, torque)
        k4 = _slope(y + dt * k3, torque)
        y = y + dt / 6.0 * (k1 + 2 * k2 + 2 * k3 + k4)
        y[:2] = (y[:2] + PI) % (2 * PI) - PI
        y[2] = y[2].clip(-4 * PI, 4 * PI)
        y[3] = y[3].clip(-9 * PI, 9 * PI)
        high = -np.cos(y[0]) - np.cos(y[1] + y[0]) > 1.0
        return y, np.where(high, 0.0, -1.0), high


def _slope(state: Array, torque: Array) -> Array:
    """Time derivatives of both angles and their speeds: links of length, mass and inertia 1, centres of mass at 1/2."""
    theta1, theta2, speed1, speed2 = state
    cos2, sin2 = np.cos(theta2), np.sin(theta2)
    d1 = 0.25 + (1.25 + cos2) + 2.0
    d2 = (0.25 + 0.5 * cos2) + 1.0
    phi2 = 0.5 * 9.8 * np.cos(theta1 + theta2 - PI / 2)
    phi1 = -0.5 * speed2**2 * sin2 - speed2 * speed1 * sin2 + 1.5 * 9.8 * np.cos(theta1 - PI / 2) + phi2
    turn2 = (torque + d2 / d1 * phi1 - 0.5 * speed1**2 * sin2 - phi2) / (1.25 - d2**2 / d1)
    return np.stack((speed1, speed2, -(d2 * turn2 + phi1) / d1, turn2))
