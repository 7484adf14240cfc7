"""Lightning's Trainer on forward passes."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

import dldw
from dldw.integrations.lightning import ForwardOnlyModule
from dldw.runlog import read
from tests.contract.checks import seeded
from tests.harness import environment

DATA = torch.randn(16, 5, generator=seeded(0))


class Net(ForwardOnlyModule, LightningModule):
    def __init__(self, interval=None, **settings):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
        self.interval, self.settings = interval, {"source": "mezo", "lr": 0.05, **settings}
        self.seen = []

    def loss(self, batch):
        y = self.layers(batch)
        self.seen.append(y.dtype)
        return (y.squeeze(1) - batch.sum(1)).square()

    def configure_optimizers(self):
        optimizer = self.forward_only(**self.settings)
        if self.interval is None:
            return optimizer
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return [optimizer], [{"scheduler": schedule, "interval": self.interval}]

    def validation_step(self, batch, index):
        self.log("held_out", self.loss(batch).mean())


def fit(module, *, epochs=2, callbacks=(), resume=None, **more):
    torch.manual_seed(1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", callbacks=list(callbacks), **(
        quiet | {"enable_checkpointing": bool(callbacks)} | more))  # fmt: skip
    loader = DataLoader(DATA, batch_size=4)
    trainer.fit(module, loader, DataLoader(DATA, batch_size=16), ckpt_path=resume)
    return trainer


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in two)


def test_the_steps_are_those_of_the_learner():
    module, model = Net(source=partial(dldw.MeZO, generator=seeded(3)), momentum=0.5, weight_decay=0.1), Net().layers
    trainer = fit(module)
    source = dldw.MeZO(lambda m, x: (m(x).squeeze(1) - x.sum(1)).square(), generator=seeded(3))
    learner = dldw.ForwardOnly(model, source, 0.05, momentum=0.5, weight_decay=0.1)
    for batch in (*DATA.split(4), *DATA.split(4)):
        value = learner.step(batch)
    assert trainer.global_step == 8
    torch.testing.assert_close(trainer.callback_metrics["train_loss"], value)
    for p, q in zip(module.layers.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
        assert p.grad is None


@pytest.mark.parametrize(("interval", "rates"), [("step", [0.5**i for i in range(8)]), ("epoch", [1] * 4 + [0.5] * 4)])
def test_schedulers_set_the_rate_of_every_step(interval, rates, tmp_path):
    fit(Net(interval, log=tmp_path / "log"))
    assert [step.lr for step in read(tmp_path / "log")[1]] == pytest.approx([0.05 * rate for rate in rates])


@pytest.mark.parametrize("momentum", [0.0, 0.9], ids=str)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(momentum, tmp_path):
    def make(name):
        return Net("step", momentum=momentum, log=tmp_path / name)

    whole, cut, again = make("whole"), make("cut"), make("cut")
    fit(whole, epochs=3)
    keep = ModelCheckpoint(tmp_path, filename="at-{step}", every_n_epochs=1, save_top_k=-1)
    fit(cut, epochs=2, callbacks=[keep])
    torch.manual_seed(5)
    fit(again, epochs=3, resume=tmp_path / "at-step=4.ckpt", callbacks=[ModelCheckpoint(tmp_path / "new")])
    assert same(weights(again), weights(whole))
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    assert same(dldw.replay(Net(), tmp_path / "cut"), weights(whole))
    state = torch.load(tmp_path / "at-step=4.ckpt", weights_only=True)["optimizer_states"][0]
    assert (state["state"], state["run"]["steps"]) == ({}, 4)


def test_validation_sees_the_weights_as_they_are():
    module = Net()
    trainer = fit(module)
    assert float(trainer.callback_metrics["held_out"]) == pytest.approx(float(module.loss(DATA).mean()))


def test_callbacks_meet_one_optimizer_step_for_each_step():
    class Count(Callback):
        steps = 0

        def on_before_optimizer_step(self, trainer, module, optimizer):
            self.steps += 1

    count = Count()
    fit(Net(), callbacks=[count], enable_checkpointing=False)
    assert count.steps == 8


def test_autocast_of_bfloat16_is_inside_the_loss():
    module = Net()
    fit(module, precision="bf16-mixed")
    assert set(module.seen) == {torch.bfloat16}
    assert not same(weights(module), weights(Net()))


# --- bad input -----------------------------------------------------------------------------------------------------


class NoLoss(ForwardOnlyModule, LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 1)

    def configure_optimizers(self):
        return self.forward_only(0.1)


def attached(**trainer):
    module = Net()
    module._trainer = SimpleNamespace(**{"precision": "32-true", "world_size": 1, **trainer})
    return module


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: fit(Net().requires_grad_(False)), r"Net has no trainable parameter: all its 4 parameters"),
        (lambda: fit(NoLoss()), r"NoLoss has no loss\(batch\): .*Rename training_step to loss"),
        (lambda: fit(Net(source="backprop")), r"estimates along directions, .*got 'backprop'"),
        (lambda: attached(precision="16-mixed").configure_optimizers(), r"16-mixed was asked for: a GradScaler multiplies"),
        (lambda: attached(world_size=2).configure_optimizers(), r"2 processes would each train a model of their own"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_reason(make, text):
    with pytest.raises(dldw.DldwError, match=text):
        make()


def test_a_missing_extra_is_named_with_the_command_that_installs_it():
    code = "import sys\nsys.modules['lightning'] = None\nimport dldw.integrations.lightning"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert (
        'ForwardOnlyModule needs lightning, which is not installed. Install it with: pip install "dldw[' in done.stderr
    )
