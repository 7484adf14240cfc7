"""Models of other libraries run as they are on perturbed weights, and give what the perturbed weights, made in full, give."""

from __future__ import annotations

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import dldw
from dldw import noise, perturbed
from dldw.evaluate import Evaluator
from dldw.low_rank import LowRank
from dldw.objective import Objective
from dldw.perturbed import StandIn
from dldw.slopes import Probes
from dldw.streamed import Streamed
from dldw.weights import Weights
from tests.contract.checks import seeded

TOKENS = torch.randint(50, (2, 9), generator=seeded(0))
IMAGES = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=seeded(0))
LABELS = torch.tensor([0, 1])


def of_its_own(model, batch):
    return model(**batch).loss


def token_losses(model, batch):
    """One value per example."""
    logits = model(**batch).logits[:, :-1]
    return nn.functional.cross_entropy(logits.mT, batch["input_ids"][:, 1:], reduction="none").mean(1)


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
LANGUAGE = {"vocab_size": 50, "max_position_embeddings": 16}


def gpt2():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2))
    return model, token_losses, {"input_ids": TOKENS}  # its own loss is taken in float32


def llama():
    model = LlamaForCausalLM(LlamaConfig(**SMALL, **LANGUAGE, num_key_value_heads=1))
    return model, token_losses, {"input_ids": TOKENS}


def opt():
    config = OPTConfig(vocab_size=50, max_position_embeddings=16, hidden_size=16, num_hidden_layers=2, ffn_dim=24,
                       num_attention_heads=2, word_embed_proj_dim=16, pad_token_id=1)  # fmt: skip
    return OPTForCausalLM(config), token_losses, {"input_ids": TOKENS.clamp(min=2)}


def bert():
    return (
        BertForSequenceClassification(BertConfig(**SMALL, **LANGUAGE)),
        of_its_own,
        {"input_ids": TOKENS, "labels": LABELS},
    )


def t5():
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config), of_its_own, {"input_ids": TOKENS, "labels": TOKENS}


def vit():
    model = ViTForImageClassification(ViTConfig(**SMALL, image_size=16, patch_size=4, num_labels=2))
    return model, of_its_own, {"pixel_values": IMAGES, "labels": LABELS}


def lora():
    model, loss, batch = gpt2()
    config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    return get_peft_model(model, config), loss, batch


class Residual(nn.Module):
    def __init__(self, channels, groups):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, groups=groups)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="circular")

    def forward(self, x):
        return x + self.second(self.norm(self.first(x)).relu())


def classified(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def resnet():
    layers = [nn.Conv2d(3, 8, 3, stride=2), Residual(8, 1), Residual(8, 4), nn.GroupNorm(2, 8)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    return model, classified, (IMAGES, LABELS)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(50, 8), nn.LSTM(8, 6, 2, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.lstm(self.embedding(x))[0][:, -1])


def lstm():
    return Recurrent(), classified, (TOKENS, LABELS)


def attention():
    """PyTorch's own layers, whose three projections are one packed weight."""

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(50, 8)
            layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True)
            self.layers, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.layers(self.embedding(x)).mean(1))

    return Pooled(), classified, (TOKENS, LABELS)


def translation():
    """PyTorch's own encoder and decoder, which attends to another sequence."""

    class Translated(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.positions = nn.Embedding(50, 8), nn.Parameter(torch.randn(9, 8))
            self.layers, self.head = nn.Transformer(8, 2, 1, 1, 12, batch_first=True), nn.Linear(8, 2)

        def forward(self, x):
            x = self.embedding(x) + self.positions[: x.shape[1]]
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
            return self.head(self.layers(x, x.flip(1), tgt_mask=mask, tgt_is_causal=True).mean(1))

    return Translated(), classified, (TOKENS, LABELS)


MODELS = [gpt2, llama, opt, bert, t5, vit, lora, resnet, lstm, attention, translation]
DIRECTIONS = {
    "rank 1": LowRank(2, noise="gaussian"),
    "rank 3": LowRank(2, rank=3),
    "streamed": Streamed(2, "gaussian"),
}


@pytest.fixture(params=MODELS, ids=lambda make: make.__name__)
def problem(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, loss, batch = request.param()
    return model.double().eval(), loss, batch


@pytest.mark.parametrize("name", DIRECTIONS)
def test_perturbed_at_use_equals_perturbed_in_full(problem, name, monkeypatch):
    monkeypatch.setattr(noise, "TILE", 100)
    monkeypatch.setattr(perturbed, "SMALL", 0)
    model, loss, batch = problem
    weights = Weights.of(model)
    drawn = DIRECTIONS[name].draw(weights, seeded(1), 0, 2)
    before = {key: t.clone() for key, t in model.state_dict().items()}
    objective = Objective(model, loss, batch, weights)
    with torch.no_grad():
        plain = objective.plain()
        for row in range(2):
            moved = drawn.perturbed(weights, row, 0.1)
            assert any(isinstance(t, StandIn) for t in moved)
            full = [p + 0.1 * z for p, z in zip(weights.tensors, drawn.tangents(weights, row), strict=True)]
            wanted = objective.at(full)
            torch.testing.assert_close(objective.at(moved), wanted, rtol=1e-10, atol=1e-10)
            assert abs(float(wanted.mean()) - plain) > 1e-6
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())


@pytest.mark.parametrize("name", DIRECTIONS)
def test_many_directions_in_one_pass_give_what_each_gives_alone(problem, name):
    model, loss, batch = problem
    mode = "auto" if isinstance(model, Recurrent) else "batched"  # the fused LSTM has no batching rule
    weights = Weights.of(model)
    drawn = DIRECTIONS[name].draw(weights, seeded(1), 0, 2)
    probes = Probes(drawn, weights, (1.0, -0.5, -1.0), [0.1, 0.2])
    with torch.no_grad():
        alone = Evaluator("sequential")(Objective(model, loss, batch, weights), probes)
        together = Evaluator(mode)(Objective(model, loss, batch, weights), probes)
    torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), rtol=1e-10, atol=1e-10)


def test_weights_of_the_size_of_a_layer_are_not_made(problem, monkeypatch, caplog):
    """What is made in full, one tensor at a time, is known and named in a message."""
    monkeypatch.setattr(perturbed, "_materialised_for", set())
    monkeypatch.setattr(perturbed, "SMALL", 0)
    model, loss, batch = problem
    source = dldw.LowRankEvolution(loss, population=2, evaluate="sequential", generator=seeded(0))
    with caplog.at_level(logging.DEBUG, "dldw"):
        source.estimate(model, batch)
    made = {record.message.split()[0] for record in caplog.records if "no rule" in record.message}
    fused = {"lstm"} if isinstance(model, Recurrent) else set()  # one call takes the weights of all layers and steps
    assert made == fused


@pytest.mark.parametrize("noise", ["sign", "gaussian"])
def test_a_direction_for_each_example_in_one_pass_gives_what_each_example_gives_alone(problem, noise):
    model, loss, batch = problem
    if loss is of_its_own:  # which is a scalar
        loss, batch = token_losses, {"input_ids": TOKENS}
        if not hasattr(model, "lm_head") or isinstance(model, T5ForConditionalGeneration):
            return
    weights = Weights.of(model)
    drawn = LowRank(2, noise=noise).draw(weights, seeded(1), 0, 2)
    with torch.no_grad():
        alone = Evaluator("sequential").each(Objective(model, loss, batch, weights), drawn, [0.1, -0.2])
        together = Evaluator("batched").each(Objective(model, loss, batch, weights), drawn, [0.1, -0.2])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)
