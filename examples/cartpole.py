"""A policy for CartPole without a gradient: a progress bar while it learns, an animation of one episode at the end.

    pip install 'dldw[rl]'
    python examples/cartpole.py [--generations 60] [--seed 0] [--out cartpole.gif]

The loss is minus the return of each episode, the seeds of episodes are the batch, and all 32 members of a generation play in
lockstep. Training ends when a hundred episodes that it has not seen last 475 steps on average, which counts as solved.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import gymnasium
import torch
from PIL import Image
from rich.progress import Progress
from torch import nn

import dldw
from dldw.tasks.cartpole import CartPole


def train(generations: int, seed: int) -> tuple[nn.Module, float]:
    """A policy after so many generations or as soon as it is good enough, and its mean return over unseen episodes."""
    task = CartPole()
    policy = task.model(seed)
    source = dldw.LowRankEvolution(task.loss, sigma=0.1, population=32, generator=torch.Generator().manual_seed(seed))
    learner = dldw.Descent(policy, source, torch.optim.Adam(policy.parameters(), lr=0.03))
    batches = task.batches(seed)
    unseen = task.evaluate(policy)["return"]
    with Progress() as progress:
        bar = progress.add_task(f"return {unseen:5.1f}", total=generations)
        for _ in range(generations):
            learner.step(next(batches))
            unseen = task.evaluate(policy)["return"]
            progress.update(bar, advance=1, description=f"return {unseen:5.1f}")
            if unseen >= task.target:
                break
    return policy, unseen


@torch.no_grad()
def animate(policy: nn.Module, seed: int, out: Path, every: int = 2) -> int:
    """Plays one episode in gymnasium's own environment, writes every other frame, and returns how long it lasted."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pictures need no screen
    environment = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    observation, _ = environment.reset(seed=seed)
    frames, steps, ended = [], 0, False
    while not ended:
        if steps % every == 0:
            frames.append(Image.fromarray(environment.render()).resize((300, 200)).quantize(16))
        action = int(policy(torch.from_numpy(observation).unsqueeze(0)).argmax())
        observation, _, terminated, truncated, _ = environment.step(action)
        steps, ended = steps + 1, terminated or truncated
    environment.close()
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=20 * every, loop=0)
    return steps


def main() -> None:
    """Trains, animates, says what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("cartpole.gif"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the policy is too small to share
    policy, unseen = train(arguments.generations, arguments.seed)
    print(f"mean return over 100 unseen episodes: {unseen:.1f} (solved: 475)")
    steps = animate(policy, seed=12_345, out=arguments.out)
    print(f"{arguments.out}: an episode of {steps} steps")


if __name__ == "__main__":
    main()
