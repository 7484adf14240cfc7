"""A loss that is played: a policy in a simulator, a whole population in lockstep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._C import _functorch as functorch

from dldw.errors import DldwError

Array = NDArray[Any]


class VectorEnvironment(Protocol):
    """What a rollout needs of ``gymnasium.vector.VectorEnv``, whichever way it resets finished episodes."""

    @property
    def single_action_space(self) -> Any:
        """``Discrete``, with ``n`` and ``start``, or ``Box``, with ``low`` and ``high``."""
        ...

    def reset(self, *, seed: Any = None) -> tuple[Any, dict[str, Any]]:
        """Starts one episode for each seed; returns their observations [n, ..]."""
        ...

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Observations [n, ..], rewards, terminated and truncated [n] each, and what else there is to say."""
        ...


@dataclass(frozen=True)
class Sample:
    """Episodes whose actions were drawn; T time steps of B episodes.

    Attributes:
        log_probabilities: Of the actions, up to a constant, with the graph back to the policy [T, B].
        rewards: What came of them [T, B].
        running: Whether the episode had not ended before [T, B]; where it had, the other two are zero.
    """

    log_probabilities: Tensor
    rewards: Tensor
    running: Tensor


class Rollout:
    """The loss of a policy in a simulator: minus the return of each episode, ``rollout(policy, seeds [B]) -> [B]``.

    The episodes' seeds are the batch. A time step is one forward of the policy over all episodes at once; where a population
    is evaluated under vmap, one forward of all members over all their episodes, and one step of n B environments. The
    policy's outputs are scores of discrete actions, of which the highest is played, or continuous actions in half-ranges
    from the middle of their range, to which they are clipped (as they are where the range is not finite).

    No gradient goes through a simulator. Methods that need loss values alone train the policy as it is; ``dldw.Reinforce``
    draws the actions.

    Args:
        make: ``make(n)`` gives n environments on gymnasium's vector interface whose ``reset`` takes a list of n seeds. Every
            episode has to end.

    Example:
        >>> import gymnasium, torch, dldw
        >>> rollout = dldw.Rollout(lambda n: gymnasium.make_vec("CartPole-v1", n, vectorization_mode="sync"))
        >>> rollout(torch.nn.Linear(4, 2), torch.arange(3)).shape
        torch.Size([3])
    """

    def __init__(self, make: Callable[[int], VectorEnvironment]) -> None:
        self._make = make
        self._made: dict[int, VectorEnvironment] = {}
        self.steps = 0
        """Environment steps taken so far, over all episodes."""
        self.time_steps = 1
        """Of the last rollout, a forward of the policy each: what one makes is gone at the next."""

    def __call__(self, policy: nn.Module, seeds: Tensor) -> Tensor:
        """Minus the return of each episode [B], in the dtype of the policy.

        Raises:
            DldwError: The environments have another kind of action, or the policy's output is not of its shape.
        """
        episodes = _Episodes(self, policy, seeds)
        observation, self.time_steps = episodes.observation, 0
        while episodes.running.any():
            observation = folded(episodes.step, policy(observation))
            self.time_steps += 1
        return folded(episodes.losses, observation)

    def sample(self, policy: nn.Module, seeds: Tensor, std: float, generator: torch.Generator) -> Sample:
        """Plays with actions drawn from softmax of the scores, or from a normal distribution around the output.

        Args:
            policy: The policy.
            seeds: One for each episode [B].
            std: Standard deviation of continuous actions, in half-ranges.
            generator: Where they are drawn from.
        """
        episodes = _Episodes(self, policy, seeds)
        observation, rows = episodes.observation, []
        while episodes.running.any():
            output = policy(observation)
            if episodes.space.discrete:
                scores = output.log_softmax(-1)
                played = torch.multinomial(scores.detach().exp(), 1, generator=generator)
                drawn = scores.gather(-1, played).squeeze(-1)
                played = torch.zeros_like(scores).scatter_(-1, played, 1.0)
            else:
                noise = torch.empty_like(output).normal_(generator=generator)
                played = output.detach() + std * noise
                drawn = -((played - output) / std).square().flatten(1).sum(1) / 2
            running = torch.from_numpy(episodes.running.copy()).to(observation.device)
            observation = episodes.step(played)
            rows.append((drawn.where(running, 0.0), episodes.rewarded(), running))
        return Sample(*(torch.stack(column) for column in zip(*rows, strict=True)))

    def environments(self, count: int) -> VectorEnvironment:
        """So many environments, kept for the next time."""
        if count not in self._made:
            while len(self._made) >= 4:
                self._made.pop(next(iter(self._made)))
            self._made[count] = self._make(count)
        return self._made[count]


class _Space:
    """Turns a policy's outputs [n, ..] into actions."""

    def __init__(self, space: Any) -> None:
        self.discrete = hasattr(space, "n") and hasattr(space, "start")
        if not self.discrete and not (hasattr(space, "low") and hasattr(space, "high")):
            raise DldwError(
                f"a rollout plays discrete actions (Discrete) or continuous ones (Box), and these environments take {space}. "
                "Wrap them so that they take one of the two."
            )
        if self.discrete:
            self.shape, self._start = (int(space.n),), int(space.start)
            return
        self.shape, self._low, self._high = space.shape, space.low, space.high
        bounded = np.isfinite(space.high - space.low)
        self._middle = np.where(bounded, (space.high + space.low) / 2, 0).astype(space.dtype)
        self._half = np.where(bounded, (space.high - space.low) / 2, 1).astype(space.dtype)

    def actions(self, output: Tensor) -> Array:
        if self.discrete:
            best: Array = output.detach().argmax(-1).cpu().numpy()
            return best + self._start
        wanted = output.detach().cpu().numpy().astype(self._half.dtype) * self._half + self._middle
        clipped: Array = np.clip(wanted, self._low, self._high)
        return clipped


class _Episodes:
    """One rollout on its way: B episodes, or n times B where the policy's outputs turn out to be those of a population."""

    def __init__(self, rollout: Rollout, policy: nn.Module, seeds: Tensor) -> None:
        self._rollout, self._seeds = rollout, seeds.tolist()
        self._like = next(policy.parameters())
        self._environments = rollout.environments(len(self._seeds))
        self.space = _Space(self._environments.single_action_space)
        self.observation = self._tensor(self._environments.reset(seed=self._seeds)[0])
        self.running = np.ones(len(self._seeds), dtype=bool)
        self.returns = np.zeros(len(self._seeds))
        self._reward: Array | None = None

    def step(self, output: Tensor) -> Tensor:
        """Plays the outputs [n B, ..]; returns the observations."""
        if output.shape != (len(self.running), *self.space.shape):
            self._grow(output)
        observation, reward, terminated, truncated, _ = self._environments.step(self.space.actions(output))
        self._rollout.steps += int(np.count_nonzero(self.running))
        self._reward = np.where(self.running, reward, 0.0)
        self.returns += self._reward
        self.running &= ~(np.asarray(terminated) | np.asarray(truncated))
        return self._tensor(observation)

    def rewarded(self) -> Tensor:
        """What the last step brought to each episode that was running [n B]."""
        return self._tensor(self._reward)

    def losses(self, observation: Tensor) -> Tensor:
        """Minus the returns [n B], whatever was observed last."""
        return self._tensor(-self.returns)

    def _grow(self, output: Tensor) -> None:
        """The first outputs may be those of n members: each plays all episodes."""
        episodes = len(self._seeds)
        if output.shape[1:] != self.space.shape or len(output) % episodes or self._reward is not None:
            raise DldwError(
                f"the policy must give one output of shape {list(self.space.shape)} for each of {len(self.running)} "
                f"observations, got shape {list(output.shape)}."
            )
        members = len(output) // episodes
        self._environments = self._rollout.environments(len(output))
        self._environments.reset(seed=self._seeds * members)
        self.running, self.returns = np.tile(self.running, members), np.tile(self.returns, members)

    def _tensor(self, array: Any) -> Tensor:
        return torch.from_numpy(np.asarray(array)).to(self._like.device, self._like.dtype)


def folded(function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """``function(batch)``, [B, ..] -> [B, ..], for one that vmap cannot go through, such as a step of a simulator.

    Outside a population this is a plain call. Under vmap the function is called once for all members: what it is given is
    their batches one after another, [n B, ..].
    """
    if not functorch.is_batchedtensor(batch):
        return function(batch)
    level, at = functorch.maybe_get_level(batch), functorch.maybe_get_bdim(batch)
    members = functorch.get_unwrapped(batch).movedim(at, 0)
    out = folded(function, members.flatten(0, 1))
    stacked: Tensor = functorch._add_batch_dim(out.unflatten(0, (len(members), -1)), 0, level)
    return stacked
