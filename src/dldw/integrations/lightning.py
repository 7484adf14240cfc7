"""A LightningModule that is trained by forward passes: manual optimisation, written once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from dldw.directional import Directional
from dldw.errors import DldwError
from dldw.learners.forward_only import ForwardOnly, RecentMomentum
from dldw.optim import NO_SCALER, Given, Learning, low_rank, made
from dldw.update import Rounding
from dldw.weights import Weights

try:
    from lightning import pytorch as _lightning  # noqa: F401
except ModuleNotFoundError as error:
    raise DldwError(
        f'ForwardOnlyModule needs {error.name}, which is not installed. Install it with: pip install "dldw[lightning]"'
    ) from error

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule
else:
    LightningModule = object


class ForwardOnlyModule(LightningModule):
    """A mix-in, before ``LightningModule``: the module gives its ``loss``, and forward passes train it.

    ``training_step`` is the mix-in's: it makes the step, logs ``train_loss`` and moves the schedulers. What
    ``configure_optimizers`` returns is ``self.forward_only(lr)``, alone or with schedulers. Checkpoints have key and
    counter, so that a run resumes bit for bit; validation and everything else see the weights as they are, since probing
    never writes them. Neither gradients nor an optimizer's state are made.

    Raises:
        DldwError: Nothing can be trained; precision is ``16-mixed``, whose GradScaler has nothing to scale.

    Example:
        >>> import torch, dldw
        >>> from lightning.pytorch import LightningModule, Trainer
        >>> from dldw.integrations.lightning import ForwardOnlyModule
        >>> class Net(ForwardOnlyModule, LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(2, 1)
        ...
        ...     def loss(self, batch):                          # was: training_step
        ...         return self.layer(batch).square().mean()
        ...
        ...     def configure_optimizers(self):
        ...         return self.forward_only(lr=0.01)           # was: torch.optim.Adam(self.parameters(), lr=0.01)
        >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = Trainer(max_steps=3, accelerator="cpu", enable_checkpointing=False, **quiet)
        >>> trainer.fit(Net(), torch.ones(4, 1, 2))
        >>> trainer.global_step
        3
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.automatic_optimization = False

    def loss(self, batch: Any) -> Tensor:
        """The loss of a batch, a scalar or one value per example [B]; the module has to give it."""
        raise DldwError(
            f"{type(self).__name__} has no loss(batch): forward passes take it at several points, so it cannot be left to "
            "training_step. Rename training_step to loss, without the index, and let it return the loss."
        )

    def forward_only(
        self,
        lr: float,
        *,
        source: Given = low_rank,
        momentum: float | RecentMomentum = 0.0,
        weight_decay: float = 0.0,
        rounding: Rounding = "stochastic",
        log: str | Path | None = None,
    ) -> torch.optim.Optimizer:
        """What ``configure_optimizers`` returns in place of an optimizer.

        Args:
            lr: Read from ``param_groups`` at every step, so schedulers work.
            source: A method's name, its class, or a function that makes it from a loss. Rank-1 signs by default.
            momentum: See ``dldw.ForwardOnly``.
            weight_decay: Likewise.
            rounding: Of sums in weights of 16 bits; ``stochastic`` loses no small update.
            log: The run's log, a new file, or with a checkpoint the one that was written along with it.
        """
        if self.trainer.precision == "16-mixed":
            raise DldwError(f"precision 16-mixed was asked for: {NO_SCALER}")
        made_source: Directional = made(source, self._loss)
        if self.trainer.world_size > 1 and made_source._evaluator.ranks is None:
            raise DldwError(
                f"{self.trainer.world_size} processes would each train a model of their own, as the source shares nothing. "
                "Give source=functools.partial(dldw.MeZO, evaluate=dldw.Evaluator(ranks=dldw.Ranks('examples')))."
            )
        learner = ForwardOnly(
            cast(nn.Module, self), made_source, lr, momentum=momentum, weight_decay=weight_decay, rounding=rounding
        )
        self._unlogged = None if log is None else partial(learner.log_to, log)
        return Learning(learner, Weights.of(self).tensors)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One step."""
        optimizer = cast(Any, self.optimizers())
        if self._unlogged is not None:  # not before a checkpoint had its chance to say how far the run is
            self._unlogged()
            self._unlogged = None
        with torch.autocast(self.device.type, enabled=False):  # which the loss takes up where it is run
            value = optimizer.take(batch)
        optimizer.step()  # counts
        self.log("train_loss", value, prog_bar=True)
        self._schedule("step", batch_idx + 1)

    def on_train_epoch_end(self) -> None:
        """Moves the schedulers of epochs."""
        super().on_train_epoch_end()
        self._schedule("epoch", self.current_epoch + 1)

    def _loss(self, module: nn.Module, batch: Any) -> Tensor:
        with self.trainer.precision_plugin.forward_context():
            return self.loss(batch)

    def _schedule(self, interval: str, count: int) -> None:
        for config in self.trainer.lr_scheduler_configs:
            if config.interval == interval and count % config.frequency == 0:
                cast(Any, config.scheduler).step()
