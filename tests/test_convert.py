"""Converted transformers: the recursion of the paper, its exact gradient, the usual layouts, reasons for a refusal."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dldw.compare.meter import peak_bytes
from dldw.errors import DldwError
from dldw.nn import convert
from dldw.nn.conversion import ReversibleLayers

WIDTH = 8


class Layer(nn.Module):
    """A pre-norm residual layer."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(drop))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return x + scale * self.inner(x)


class Model(nn.Module):
    """Layers in a loop, as models of transformers have them."""

    def __init__(self, layers: int = 4, drop: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Linear(3, WIDTH)
        self.layers = nn.ModuleList(Layer(drop) for _ in range(layers))
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x)
        for layer in self.layers:
            hidden = layer(hidden, scale=0.5)
        return self.head(hidden)


def made(layers: int = 4, drop: float = 0.0) -> Model:
    torch.manual_seed(0)
    return Model(layers, drop).double()


def sample(rows: int = 5) -> Tensor:
    return torch.randn(rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_hand(model: Model, layers: list[nn.Module], x: Tensor, method: str, gamma: float) -> Tensor:
    """The recursions of the papers, written out; an odd last layer is as it was."""
    hidden = model.stem(x)
    pairs, last = layers[: len(layers) // 2 * 2], layers[len(layers) // 2 * 2 :]
    before = hidden if method == "bdia" else torch.zeros_like(hidden)
    for layer in pairs:
        after = layer(hidden, scale=0.5)
        if method == "bdia":
            after = gamma * before + (1 - gamma) * hidden + (1 + gamma) * (after - hidden)
        else:
            after = gamma * before + after
        before, hidden = hidden, after
    if method == "bdia":
        hidden = hidden - gamma / (1 + gamma) * (hidden - before)
    for layer in last:
        hidden = layer(hidden, scale=0.5)
    return model.head(hidden)


def gradients(model: nn.Module, run: Callable[[], Tensor]) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(3)
    run().square().sum().backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("method", ["bdia", "dr2net"])
@pytest.mark.parametrize("layers", [2, 5, 6])
def test_outputs_and_gradients_are_those_of_the_recursion(method, layers):
    model = made(layers)
    own = list(model.layers)
    convert(model, sample(), method=method, gamma=0.5)
    hand = lambda: by_hand(model, own, sample(), method, 0.5)  # noqa: E731
    assert torch.allclose(model(sample()), hand(), rtol=0, atol=2e-5)
    found, expected = gradients(model, lambda: model(sample())), gradients(model, hand)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("layers", [6, 24])
def test_the_inverse_is_exact_to_the_last_bit(layers):
    model = made(layers, drop=0.2).float()
    convert(model, sample().float())
    model.layers.chain.drift_check = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = gradients(model, lambda: model(sample().float()))
    model.layers.chain.backward = "plain"
    expected = gradients(model, lambda: model(sample().float()))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(found, expected, strict=True))


def test_the_report_says_how_far_the_outputs_moved_and_a_smaller_gamma_moves_them_less():
    before = made()(sample()).detach()
    moved = []
    for gamma in (0.5, 0.125):
        model = made()
        report = convert(model, sample(), gamma=gamma)
        assert report.moved == pytest.approx(
            float((model(sample()).detach() - before).norm() / before.norm()), rel=1e-6
        )
        moved.append(report.moved)
    assert moved[1] < 0.5 * moved[0]
    assert str(report).startswith(
        "4 layers at layers are reversible (bdia, gamma 0.125, nothing stored between); on the sample"
    )


def test_of_the_two_methods_the_default_starts_nearer_to_the_pretrained_function():
    reports = {method: convert(made(12), sample(), method=method) for method in ("bdia", "dr2net")}
    assert reports["bdia"].moved < 0.5 * reports["dr2net"].moved


def test_deep_models_store_the_streams_so_often_that_the_inverse_stays_exact():
    report = convert(made(60), sample())
    assert report.anchor_every == 10
    assert "one of 20 stored" in str(report)


def test_memory_does_not_grow_with_the_layers():
    def peak(layers: int, converted: bool) -> int:
        model = made(layers).float()
        x = torch.randn(4096, 3)
        if converted:
            convert(model, x[:2])
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        return peak_bytes(lambda: model(x).sum().backward(), model)

    assert peak(16, True) < 1.02 * peak(4, True)
    assert peak(16, False) > 2 * peak(4, False)


def test_weights_keep_their_names_and_modes_and_the_random_state_come_back():
    model = made()
    model.layers[1].eval()
    names, modes, state = list(model.state_dict()), [m.training for m in model.modules()], torch.get_rng_state()
    convert(model, sample())
    assert list(model.state_dict()) == names
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(model.layers, ReversibleLayers)
    assert isinstance(model.layers[0], Layer)
    assert "(3): Layer(" in repr(model)
    made().load_state_dict(model.state_dict())


# The layouts of transformers


def gpt2() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 16, "vocab_size": 20}
    return GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **shape)), {"input_ids": tokens()}


def bert() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import BertConfig, BertModel

    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[0, 4:] = 0
    return BertModel(BertConfig(**SMALL, vocab_size=20)), {"input_ids": tokens(), "attention_mask": mask}


def vit() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import ViTConfig, ViTModel

    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return ViTModel(ViTConfig(**SMALL, image_size=8, patch_size=4)), {"pixel_values": images}


def llama() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=20, **ends)), {"input_ids": tokens()}


SMALL = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}


def tokens() -> Tensor:
    return torch.randint(20, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("build", "path"), [(gpt2, "transformer.h"), (bert, "encoder.layer"), (vit, "layers"), (llama, "model.layers")]
)
def test_layers_of_transformers_are_found_and_trained_exactly(build, path):
    torch.manual_seed(0)
    model, inputs = build()
    before = model.eval()(**inputs)[0].detach()
    report = convert(model, inputs)
    assert report.path == path
    assert report.layers == 4
    after = model(**inputs)[0].detach()
    assert report.moved == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-3)
    assert report.moved < 0.15
    chain = model.get_submodule(path).chain
    found = []
    for mode in ("reversible", "plain"):
        chain.backward = mode
        torch.manual_seed(5)
        model.train().zero_grad()
        model(**inputs)[0].square().mean().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(*found, strict=True))


def test_a_converted_language_model_generates_with_its_cache_as_without():
    torch.manual_seed(0)
    model, inputs = gpt2()
    convert(model.eval(), inputs)
    ask = {
        "max_new_tokens": 5,
        "do_sample": False,
        "attention_mask": torch.ones(2, 7, dtype=torch.int64),
        "pad_token_id": 0,
    }
    with_cache = model.generate(**inputs, **ask)
    assert with_cache.shape == (2, 12)
    assert torch.equal(with_cache, model.generate(**inputs, **ask, use_cache=False))


def test_a_cache_that_holds_something_is_refused_in_training():
    model, inputs = gpt2()
    convert(model, inputs)
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).cache
    with pytest.raises(DldwError, match=r"cache that holds keys and values already.*use_cache=False"):
        model(**inputs, cache=cache)


def test_the_example_fine_tunes_and_prints_the_memory_saved():
    root = Path(__file__).parents[1]
    few = ["--pretrain", "1", "--steps", "1", "--length", "64", "--batch", "4", "--layers", "6"]
    done = subprocess.run(
        [sys.executable, root / "examples" / "finetune_reversible.py", *few],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(root / "src")},
    )  # fmt: skip
    assert "6 layers at transformer.h are reversible (bdia, gamma 0.25" in done.stdout
    saved = re.search(r"peaks at (\d+) MiB; with plain autograd at (\d+) MiB: (\d+)% saved", done.stdout)
    lean, before, share = map(int, saved.groups())
    assert lean < before
    assert abs(share - 100 * (1 - lean / before)) < 5
    assert re.search(r"before the conversion, \d\.\d+ after it, \d\.\d+ after fine-tuning", done.stdout)


# Refusals


class Skips(Model):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x)
        for layer in self.layers:
            hidden = layer(hidden) + hidden
        return hidden


class Backwards(Model):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x)
        for layer in reversed(list(self.layers)):
            hidden = layer(hidden)
        return hidden


class Scaled(Model):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x)
        for at, layer in enumerate(self.layers):
            hidden = layer(hidden, scale=1.0 / (1 + at))
        return hidden


class Keyword(Model):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x)
        for layer in self.layers:
            hidden = layer(x=hidden)
        return hidden


class Chain(nn.Module):
    """Layers of one kind, given as a function."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        of = type("Odd", (nn.Linear,), {"forward": forward})
        self.body = nn.Sequential(of(4, 4), of(4, 4))

    def forward(self, x: Tensor) -> object:
        return self.body(x)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (nn.Linear(3, 3), "Linear has no repeated layers: nowhere do two or more modules of one class"),
        (Skips(), "layers: layer 1 does not get the very output of layer 0"),
        (Backwards(), "layers: its 4 layers are not called once each, one after the other"),
        (Scaled(), "layers: layer 1 gets other arguments than layer 0"),
        (Keyword(), "layers: layer 0 does not take its hidden state as its first positional argument"),
        (Chain(lambda m, x: x[:, :-1]), r"body: layer 0 changes \[5, 3\] to \[5, 2\]. A layer must map one tensor"),
        (Chain(lambda m, x: (x,) if isinstance(x, Tensor) else x), "body: layer 0 returns tuple, not one tensor"),
    ],
)
def test_layers_that_do_not_fit_are_refused_with_the_reason(model, text):
    with pytest.raises(DldwError, match=text):
        convert(model, sample().float())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"method": "meft"}, "method must be one of bdia, dr2net, got 'meft'"),
        ({"gamma": 0.3}, "gamma must be 1/2, 1/4, 1/8, ... so that the inverse is exact, got 0.3"),
        ({"gamma": 1.0}, "gamma must be 1/2"),
        ({"gamma": -0.5}, "gamma must be 1/2"),
        ({"sample": None}, "convert needs a sample to see how the layers are called"),
    ],
)
def test_mistakes_are_answered_with_what_why_and_what_to_do(options, text):
    with pytest.raises(DldwError, match=text):
        convert(made(), **({"sample": sample()} | options))


def test_a_model_that_returns_no_tensor_is_refused():
    class Silent(Model):
        def forward(self, x: Tensor) -> None:
            super().forward(x)

    with pytest.raises(DldwError, match="returned NoneType without a floating-point tensor"):
        convert(Silent(), sample().float())
