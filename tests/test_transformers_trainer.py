"""Hugging Face's Trainer as users have it, on forward passes."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

import dldw
from dldw.integrations.transformers import LOG, ForwardOnlyTrainer
from dldw.runlog import digest, read
from tests.contract.checks import seeded
from tests.harness import environment

MANY = partial(dldw.MeZO, sigma=1e-3, directions=4)


def network(dtype=torch.float32, dropout=0.1):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
                            resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)  # fmt: skip
        return GPT2LMHeadModel(config).to(dtype)


DATA = [{"input_ids": ids, "labels": ids} for ids in (torch.arange(8).add(i).remainder(20) for i in range(12))]


def arguments(out, **more):
    settings = {
        "max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "report_to": [], "disable_tqdm": True,
        "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "seed": 1,
    }  # fmt: skip
    return TrainingArguments(str(out), **(settings | more))


def trainer(out, model=None, *, source="mezo", callbacks=None, momentum=0.0, **more):
    return ForwardOnlyTrainer(
        model or network(), arguments(out, **more), train_dataset=DATA, eval_dataset=DATA, source=source,
        callbacks=callbacks, momentum=momentum,
    )  # fmt: skip


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in two)


def losses(of):
    return [entry["loss"] for entry in of.state.log_history if "loss" in entry]


def test_one_line_differs_and_the_model_learns(tmp_path):
    one = trainer(tmp_path, network(dropout=0.0), source=MANY, max_steps=60, learning_rate=2e-2)
    one.train()
    assert sum(losses(one)[-5:]) < sum(losses(one)[:5]) - 0.5
    assert all(p.grad is None for p in one.model.parameters())


def test_the_update_is_that_of_the_learner_at_the_rates_of_the_schedule(tmp_path):
    """The oracle: dldw.ForwardOnly on the batches of a plain Trainer, the loss divided by the labels it counts."""
    ours, theirs = network(dropout=0.0), network(dropout=0.0)
    source = partial(dldw.MeZO, generator=seeded(2))
    more = {"lr_scheduler_type": "linear", "weight_decay": 0.1}
    one = ForwardOnlyTrainer(ours, arguments(tmp_path / "one", **more), train_dataset=DATA, source=source)
    one.train()

    seen = []

    class Drawn(Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            seen.append((inputs["input_ids"], num_items_in_batch))
            return super().training_step(model, inputs, num_items_in_batch)

    Drawn(network(dropout=0.0), arguments(tmp_path / "two", **more), train_dataset=DATA).train()

    def loss(model, drawn):
        ids, items = drawn
        return model(ids, labels=ids, num_items_in_batch=items).loss

    learner = dldw.ForwardOnly(
        theirs, dldw.MeZO(loss, generator=seeded(2)), 1e-3, weight_decay=0.1, schedule=lambda step: 1 - step / 6
    )
    for drawn in seen:
        learner.step(drawn)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    rates = [entry["learning_rate"] for entry in one.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([1e-3 * (1 - step / 6) for step in range(6)])
    assert [step.lr for step in read(tmp_path / "one" / LOG)[1]] == pytest.approx(rates)


def test_micro_batches_share_their_directions_and_count_as_one_batch(tmp_path):
    """Of equal length, two batches of two are one of four: the same data in the same order, the same noise."""
    whole, parts = network(dropout=0.0), network(dropout=0.0)
    source = partial(dldw.MeZO, generator=seeded(2))
    for model, size, count in ((whole, 4, 1), (parts, 2, 2)):
        args = arguments(
            tmp_path / str(size), per_device_train_batch_size=size, gradient_accumulation_steps=count, max_steps=3
        )
        ForwardOnlyTrainer(model, args, train_dataset=DATA, source=partial(source, generator=seeded(2))).train()
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    assert len(read(tmp_path / "2" / LOG)[1]) == 3
    assert not same(weights(parts), weights(network()))


@pytest.mark.parametrize(
    ("dtype", "momentum", "more"),
    [
        (torch.float32, 0.0, {}),
        (torch.float32, 0.9, {"gradient_accumulation_steps": 2}),
        (torch.bfloat16, dldw.RecentMomentum(0.9, 2), {}),
        (torch.float32, 0.0, {"bf16": True}),
    ],
    ids=["plain", "momentum, micro-batches", "bfloat16 weights", "autocast"],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, dtype, momentum, more):
    """Dropout, the schedule, the order of the data and the log included."""
    whole = trainer(tmp_path / "whole", network(dtype), momentum=momentum, **more)
    whole.train()
    saving = {"save_strategy": "steps", "save_steps": 2, **more}
    trainer(tmp_path / "cut", network(dtype), momentum=momentum, **saving).train()  # beyond the checkpoint, and its log
    again = trainer(tmp_path / "cut", network(dtype), momentum=momentum, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-4"))
    assert same(weights(again.model), weights(whole.model))
    assert not same(weights(whole.model), weights(network(dtype)))
    assert (tmp_path / "cut" / LOG).read_bytes() == (tmp_path / "whole" / LOG).read_bytes()
    assert same(dldw.replay(network(dtype), tmp_path / "cut" / LOG), weights(whole.model))


def test_the_log_of_an_earlier_run_is_kept(tmp_path):
    trainer(tmp_path, max_steps=1).train()
    first = (tmp_path / LOG).read_bytes()
    trainer(tmp_path, max_steps=2).train()
    assert (tmp_path / "forward_only-1.jsonl").read_bytes() == first
    assert len(read(tmp_path / LOG)[1]) == 2


class Watch(TrainerCallback):
    def __init__(self):
        self.steps, self.evaluations, self.digests = [], [], []

    def on_step_end(self, args, state, control, **named):
        self.steps.append(state.global_step)
        self.digests.append(digest(dict(named["model"].named_parameters())))

    def on_evaluate(self, args, state, control, metrics=None, **named):
        self.evaluations.append((digest(dict(named["model"].named_parameters())), metrics["eval_loss"]))


def test_callbacks_run_and_evaluation_sees_the_weights_as_they_are(tmp_path):
    watch = Watch()
    one = trainer(tmp_path, callbacks=[watch], max_steps=4, eval_strategy="steps", eval_steps=2)
    one.train()
    assert watch.steps == [1, 2, 3, 4]
    assert [seen for seen, _ in watch.evaluations] == [watch.digests[1], watch.digests[3]]
    plain = Trainer(one.model, arguments(tmp_path / "plain"), eval_dataset=DATA).evaluate()["eval_loss"]
    assert watch.evaluations[-1][1] == plain
    one.model.eval()
    ids = torch.tensor([[1, 2]])
    assert torch.equal(one.model.generate(ids, max_length=6, do_sample=False, pad_token_id=0)[:, :2], ids)


def test_only_adapters_are_trained(tmp_path):
    config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = get_peft_model(network(), config)
    before = weights(model)
    one = trainer(tmp_path, model, source="low-rank-evolution", learning_rate=0.1)
    one.train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert set(read(tmp_path / LOG)[0]["weights"]) == {n for n, p in model.named_parameters() if p.requires_grad}


def test_a_checkpoint_holds_nothing_of_the_size_of_the_model(tmp_path):
    trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    checkpoint = tmp_path / "checkpoint-2"
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    assert (state["state"], state["run"]["update"], state["run"]["steps"]) == ({}, {"moments": [], "lost": []}, 2)
    assert (checkpoint / "optimizer.pt").stat().st_size < 8192  # the state of a generator is 5,056 bytes


def test_a_source_with_a_loss_of_its_own_gets_each_micro_batch(tmp_path):
    def loss(model, inputs):
        shapes.append(inputs["input_ids"].shape)
        return model(**inputs).loss

    shapes = []
    source = dldw.LowRankEvolution(loss, population=2)
    trainer(tmp_path, source=source, max_steps=1, gradient_accumulation_steps=2).train()
    assert shapes == [(2, 8)] * 4
    assert source.loss is loss


def test_gradient_checkpointing_is_turned_off_with_a_warning(tmp_path, caplog):
    one = trainer(tmp_path, max_steps=1, activation_checkpointing=True)
    assert "activation_checkpointing is turned off" in caplog.text
    one.train()
    assert not one.model.is_activation_checkpointing


# --- bad input -----------------------------------------------------------------------------------------------------


class Several(TrainingArguments):
    @property
    def n_gpu(self):
        return 2


class Many(TrainingArguments):
    @property
    def world_size(self):
        return 3


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda out: trainer(out, network().requires_grad_(False)), r"GPT2LMHeadModel has no trainable parameter: all its"),
        (lambda out: trainer(out, fp16=True), r"fp16=True was asked for: a GradScaler multiplies .*there is no \.grad"),
        (lambda out: ForwardOnlyTrainer(network(), Several(str(out), use_cpu=True)),
         r"n_gpu > 1 was asked for, .*Run on one device \(CUDA_VISIBLE_DEVICES=0\)"),
        (lambda out: ForwardOnlyTrainer(network(), Many(str(out), use_cpu=True)).create_optimizer(),
         r"3 processes would each train a model of their own.*dldw.Ranks\('examples'\)"),
        (lambda out: trainer(out, source="backprop").train(), r"estimates along directions, .*got 'backprop'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_reason(tmp_path, make, text):
    with pytest.raises(dldw.DldwError, match=text):
        make(tmp_path)


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path):
    saving = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    Trainer(network(), arguments(tmp_path, **saving), train_dataset=DATA).train()
    with pytest.raises(dldw.DldwError, match=r"the saved state is not that of ForwardOnly"):
        trainer(tmp_path, max_steps=4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_checkpoint_without_its_log_is_refused(tmp_path):
    trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    (tmp_path / LOG).unlink()
    with pytest.raises(dldw.DldwError, match=r"goes on after 2 steps, but its log .*is not there.*Put it back"):
        trainer(tmp_path, max_steps=4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_missing_extra_is_named_with_the_command_that_installs_it():
    code = "import sys\nsys.modules['transformers'] = None\nimport dldw.integrations.transformers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert (
        'ForwardOnlyTrainer needs transformers, which is not installed. Install it with: pip install "dldw['
        in done.stderr
    )
