"""Hugging Face's Trainer with forward passes in place of gradients."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dldw.directional import Directional
from dldw.errors import DldwError
from dldw.learners.forward_only import ForwardOnly, RecentMomentum
from dldw.optim import NO_SCALER, Given, Learning, low_rank, made
from dldw.runlog import LOG
from dldw.source import Loss
from dldw.update import Rounding
from dldw.weights import Weights

try:
    from transformers import Trainer, TrainingArguments
except ModuleNotFoundError as error:
    raise DldwError(
        f'ForwardOnlyTrainer needs {error.name}, which is not installed. Install it with: pip install "dldw[transformers]"'
    ) from error

_log = logging.getLogger("dldw")


class ForwardOnlyTrainer(Trainer):
    """``transformers.Trainer`` that trains at the memory of inference: neither gradients nor an optimizer's state are made.

    One line of a script differs, the class. Learning rate, its schedule and weight decay (here of all weights) are those of
    ``TrainingArguments``; callbacks, logging, saving, ``resume_from_checkpoint`` (bit for bit), PEFT, evaluation and
    generation are the Trainer's own, and see the weights as they are, since probing never writes them. All micro-batches of
    ``gradient_accumulation_steps`` are evaluated along the same directions. ``optim`` and ``max_grad_norm`` have no say, as
    there is no gradient. A learning rate for forward passes is about a thousandth of one for Adam: begin at 1e-6.

    ``output_dir/forward_only.jsonl`` is the run's log; that of an earlier run there is renamed and kept.

    Args:
        model: As the Trainer has it, like all arguments that are not named here.
        args: Those of the Trainer.
        source: A method's name, its class, a function that makes it from a loss, or a source with a loss of its own, which
            takes a micro-batch. ``dldw.LowRankEvolution`` with two forwards a step by default.
        momentum: See ``dldw.ForwardOnly``.
        rounding: Of sums in weights of 16 bits; ``stochastic`` loses no small update.

    Raises:
        DldwError: fp16 with its GradScaler, DeepSpeed, FSDP or several devices were asked for, with the reason; nothing can
            be trained.

    Example:
        >>> import torch, dldw, tempfile
        >>> from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments
        >>> from dldw.integrations.transformers import ForwardOnlyTrainer
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=1))
        >>> data = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 4
        >>> with tempfile.TemporaryDirectory() as out:
        ...     args = TrainingArguments(out, max_steps=2, learning_rate=1e-4, report_to=[], disable_tqdm=True)
        ...     trainer = ForwardOnlyTrainer(model, args, train_dataset=data)    # was: Trainer(...)
        ...     result = trainer.train()
        {...}
        >>> result.global_step
        2
    """

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *rest: Any,
        source: Given | Directional = low_rank,
        momentum: float | RecentMomentum = 0.0,
        rounding: Rounding = "stochastic",
        **named: Any,
    ) -> None:
        if args is not None:
            _require_one_device(args)
        self._settings = {"momentum": momentum, "rounding": rounding}
        self._source = source
        self._waiting: list[tuple[Any, Any]] = []
        self._learning: Learning | None = None
        self._logged = False
        super().__init__(model, args, *rest, **named)
        Weights.of(cast(nn.Module, self.model)).require_trainable()
        for name in ("gradient_checkpointing", "activation_checkpointing"):  # of older and of newer versions
            if getattr(self.args, name, False):
                _log.warning("%s is turned off: there is no backward pass to save memory for", name)
                setattr(self.args, name, False)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """What the scheduler and the checkpoints take for an optimizer."""
        if self.optimizer is None:
            trained = cast(nn.Module, self.model if model is None else model)
            learner = ForwardOnly(
                trained,
                self._shared(self._made()),
                self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                **cast(dict[str, Any], self._settings),
            )
            self._learning = self.optimizer = Learning(learner, Weights.of(trained).tensors)
            self._logged = False
        return self.optimizer

    def train(self, resume_from_checkpoint: Any = None, *rest: Any, **named: Any) -> Any:
        """See ``Trainer.train``."""
        self._waiting, self._logged = [], self._logged and not resume_from_checkpoint
        return super().train(resume_from_checkpoint, *rest, **named)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Keeps a micro-batch; with the last one, makes the step. Returns the loss of all there, and 0 before."""
        model.train()
        self._waiting.append((self._prepare_inputs(inputs), num_items_in_batch))
        if not self.accelerator.sync_gradients or self._learning is None:
            return torch.zeros((), device=self.args.device)
        batch, self._waiting = self._waiting, []
        if not self._logged:  # not before a checkpoint had its chance to say how far the run is
            self._begin_log(self._learning.learner)
        return self._learning.take(batch).to(self.args.device)

    def _made(self) -> Directional:
        if isinstance(self._source, Directional):
            source = copy.copy(self._source)
            source.loss = partial(_mean, self._source.loss)
            return source
        return made(self._source, self._loss)

    def _shared(self, source: Directional) -> Directional:
        if self.args.world_size > 1 and source._evaluator.ranks is None:
            raise DldwError(
                f"{self.args.world_size} processes would each train a model of their own, as the source shares nothing. Give "
                "source=functools.partial(dldw.MeZO, evaluate=dldw.Evaluator(ranks=dldw.Ranks('examples')))."
            )
        return source

    def _loss(self, model: nn.Module, batch: list[tuple[Any, Any]]) -> Tensor:
        """The Trainer's loss of all micro-batches, as their gradients would add up."""
        total: Tensor | float = 0.0
        for inputs, items in batch:
            with self.compute_loss_context_manager():
                copied = dict(inputs) if isinstance(inputs, Mapping) else inputs  # compute_loss takes the labels out
                loss: Tensor = cast(Any, self).compute_loss(model, copied, num_items_in_batch=items)
            total = total + (loss if self._is_part(items) else loss / len(batch))
        return cast(Tensor, total)

    def _is_part(self, items: Any) -> bool:
        """Whether the loss of a micro-batch is its part of the whole already, as the Trainer decides it."""
        told: bool | None = getattr(self, "loss_is_scaled_for_ga", None)
        if told is not None:
            return told
        return (self.model_accepts_loss_kwargs and items is not None) or self.compute_loss_func is not None

    def _begin_log(self, learner: ForwardOnly) -> None:
        path = Path(cast(str, self.args.output_dir)) / LOG
        if not learner.steps and path.exists() and self.is_world_process_zero():
            number = 1
            while (kept := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
                number += 1
            path.rename(kept)
        path.parent.mkdir(parents=True, exist_ok=True)
        learner.log_to(path)
        self._logged = True

    def _clip_grad_norm(self, model: nn.Module) -> None:
        """Nothing: there is no gradient whose norm could be clipped or shown."""

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> None:
        """Nothing, likewise."""


def _mean(loss: Loss, model: nn.Module, batch: list[tuple[Any, Any]]) -> Tensor:
    return torch.stack([loss(model, inputs).mean() for inputs, _ in batch]).mean()


def _require_one_device(args: Any) -> None:
    if args.fp16:
        raise DldwError(f"fp16=True was asked for: {NO_SCALER}")
    for name, asked in (("deepspeed", args.deepspeed), ("fsdp", args.fsdp), ("n_gpu > 1", args.n_gpu > 1)):
        if asked:
            raise DldwError(
                f"{name} was asked for, which spreads the model over devices, and a step needs all of it in one. Run on "
                "one device (CUDA_VISIBLE_DEVICES=0), or several processes with a whole model in each (torchrun)."
            )
