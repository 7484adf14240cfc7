"""Several processes that train one model: they exchange losses, a few numbers a step, and never weights."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.distributed as dist

from dldw.errors import DldwError

Share = Literal["directions", "examples"]


class Ranks:
    """How the processes of ``torch.distributed`` (``torchrun``) share the evaluations of a step.

    Every process draws the same directions, so that all can make the same update from the losses alone: a step exchanges 8
    bytes for each loss, whatever the size of the model. Give it to the source's evaluator,
    ``dldw.MeZO(loss, evaluate=dldw.Evaluator(ranks=dldw.Ranks()))``, in every process, with equal models.

    With P processes and n directions, each takes n/P of the forwards (``directions``), or all n on its own 1/P of the
    examples (``examples``), and the whole update: docs/ranks.md says what that leaves of a thousand processes.

    Args:
        share: ``directions``: each process evaluates some of the probes, all on the same batch. ``examples``: each evaluates
            all probes on a batch of its own, and losses are averaged over the processes.
        check_every: Steps of ``ForwardOnly`` between comparisons of the weights' fingerprints; 0 never compares.
        group: A process group; all processes by default.

    Raises:
        DldwError: ``torch.distributed`` has not been initialised.
    """

    def __init__(self, share: Share = "directions", *, check_every: int = 100, group: Any = None) -> None:
        if share not in get_args(Share):
            raise DldwError(f"share must be directions or examples, got {share!r}.")
        if not dist.is_available() or not dist.is_initialized():
            raise DldwError(
                "torch.distributed is not initialised, so there are no ranks to share with. Call "
                "torch.distributed.init_process_group('gloo') (or 'nccl') first, in a process that torchrun started."
            )
        self.share, self.check_every, self._group = share, check_every, group
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """The mean over all processes, the same bits in each: summed in the order of the ranks."""
        mean: np.ndarray = np.sum(self._gathered(values), axis=0) / self.world
        return mean

    def complete(self, values: np.ndarray) -> np.ndarray:
        """``values`` [n, k] of which each process has the rows that are ``mine``, in full."""
        gathered = self._gathered(values)
        return np.stack([gathered[row % self.world][row] for row in range(len(values))])

    def mine(self, row: int) -> bool:
        """Whether this process evaluates ``row``."""
        return row % self.world == self.rank

    def first(self, value: Any) -> Any:
        """What the process of rank 0 has."""
        values = [value]
        dist.broadcast_object_list(values, src=self._global(0), group=self._group)
        return values[0]

    def wait(self) -> None:
        """Until all processes have come this far."""
        dist.barrier(group=self._group)

    def require_equal(self, fingerprint: str, step: int) -> None:
        """Raises ``DldwError`` in every process unless all have the same fingerprint; most are taken to be right."""
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, fingerprint, group=self._group)
        usual = max(set(found), key=found.count)
        wrong = [rank for rank, other in enumerate(found) if other != usual]
        if wrong:
            raise DldwError(
                f"after step {step} the weights of rank {', '.join(map(str, wrong))} differ from those of the other ranks: "
                "something else wrote to them, or a process runs on another kind of device or version. Restart that rank "
                "from the log; the others hold the right weights."
            )

    def _gathered(self, values: np.ndarray) -> list[np.ndarray]:
        device = "cuda" if dist.get_backend(self._group) == "nccl" else "cpu"
        own = torch.from_numpy(np.ascontiguousarray(values)).to(device)
        parts = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(parts, own, group=self._group)
        return [part.cpu().numpy() for part in parts]

    def _global(self, rank: int) -> int:
        return rank if self._group is None else dist.get_global_rank(self._group, rank)
