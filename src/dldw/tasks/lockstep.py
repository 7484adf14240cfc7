"""Environments of one kind stepped together in NumPy, on gymnasium's vector interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space

from dldw.rollout import Array

if TYPE_CHECKING:
    from dldw.tasks.control import Control


class Lockstep(gymnasium.vector.VectorEnv[Array, Array, Array]):
    """n copies of a gymnasium environment from its equations: the same seeds and actions give the same episodes.

    An episode that has ended stays as it is and earns nothing more, until ``reset`` starts all anew.

    Args:
        task: Its equations, and the name under which gymnasium has the environment.
        num_envs: n.
    """

    metadata: dict[str, Any] = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, task: Control, num_envs: int) -> None:
        single = gymnasium.make(task.environment)
        self.task, self.num_envs, self.spec = task, num_envs, single.spec
        self.single_action_space, self.single_observation_space = single.action_space, single.observation_space
        self.action_space = batch_space(single.action_space, num_envs)
        self.observation_space = batch_space(single.observation_space, num_envs)
        self._limit = gymnasium.spec(task.environment).max_episode_steps
        self._state = np.empty((0, num_envs))
        self._ended = np.ones(num_envs, dtype=bool)
        self._age = 0

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Starts one episode for each of n seeds, or from consecutive seeds, each as gymnasium's own environment would."""
        if seed is None:
            seed = int(self.np_random.integers(1 << 31))
        seeds = np.arange(seed, seed + self.num_envs) if np.ndim(seed) == 0 else np.asarray(seed)
        distinct, which = np.unique(seeds, return_inverse=True)
        starts = np.stack([self.task.start(np.random.default_rng(s)) for s in distinct.tolist()], axis=1)
        self._state = starts[:, which]
        self._ended = np.zeros(self.num_envs, dtype=bool)
        self._age = 0
        return self._observation(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """One time step of all episodes."""
        state, reward, terminated = self.task.advance(self._state, actions)
        np.copyto(state, self._state, where=self._ended, casting="same_kind")
        running = ~self._ended
        self._state, self._age = state, self._age + 1
        terminated = terminated & running
        truncated = running & (self._age == self._limit)
        self._ended = self._ended | terminated | truncated
        return self._observation(), np.where(running, reward, 0.0), terminated, truncated, {}

    def _observation(self) -> Array:
        return np.ascontiguousarray(self.task.observe(self._state).T, dtype=np.float32)
