"""The Reformer: three ways back through the same weights, Hugging Face's outputs, generation token by token."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import dldw
import dldw.nn
from dldw.errors import DldwError
from dldw.nn.lsh_attention import LSHAttention
from dldw.tasks import load_task
from dldw.tasks.duplication import Duplication
from dldw.tasks.text import documentation

SMALL = dldw.nn.ReformerConfig(
    vocabulary=50, width=32, layers=("local", "lsh", "lsh"), positions=(8, 16), hidden=64, hashes=3, chunk=8,
    tokens_at_once=32,
)  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(**changes: object) -> dldw.nn.Reformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dldw.nn.Reformer(replace(SMALL, **changes)).double()


def tokens(batch: int = 2, length: int = 77) -> Tensor:
    return torch.randint(50, (batch, length), generator=seeded())


@pytest.mark.parametrize("tied", [False, True])
def test_reversible_and_checkpointed_gradients_are_those_of_plain_autograd(tied: bool) -> None:
    reformer, x = model(tied=tied, dropout=0.1), tokens()
    padding = torch.zeros(2, 77, dtype=torch.bool)
    padding[0, -9:] = True
    found = {}
    with torch.random.fork_rng(devices=[]):
        for backward in ("plain", "reversible", "checkpoint"):
            reformer.blocks.backward = backward
            torch.manual_seed(3)  # dropout and rotations
            loss = reformer.loss(x, padding=padding)
            found[backward] = loss, torch.autograd.grad(loss.mean(), list(reformer.parameters()))
    for backward in ("reversible", "checkpoint"):
        assert torch.equal(found[backward][0], found["plain"][0])
        for own, plain in zip(found[backward][1], found["plain"][1], strict=True):
            assert torch.allclose(own, plain, atol=1e-12)


def test_two_passes_before_one_backward_keep_their_own_buckets() -> None:
    reformer, x, y = model(), tokens(), tokens().flip(1)
    with torch.random.fork_rng(devices=[]):
        gradients = []
        for backward in ("plain", "reversible"):
            reformer.blocks.backward = backward
            torch.manual_seed(3)
            both = reformer.loss(x).mean() + reformer.loss(y).mean()
            gradients.append(torch.autograd.grad(both, list(reformer.parameters())))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*gradients, strict=True))


def test_buckets_are_found_once_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    find = dldw.nn.lsh_attention.hash_buckets
    monkeypatch.setattr(dldw.nn.lsh_attention, "hash_buckets", lambda *a: calls.append(1) or find(*a))
    model().loss(tokens()).mean().backward()
    assert len(calls) == 2  # one for each hashed layer, none in the backward pass


@pytest.mark.parametrize("hashes", [3, None])
def test_under_autocast_the_gradients_are_those_of_plain_autograd_under_autocast(hashes: int | None) -> None:
    reformer, x = model(hashes=hashes).float(), tokens()
    exact, found = reformer.loss(x, generator=seeded(1)).mean(), {}
    for backward in ("plain", "reversible"):
        reformer.blocks.backward = backward
        with torch.autocast("cpu", torch.bfloat16):
            loss = reformer.loss(x, generator=seeded(1)).mean()
        assert abs(float((loss - exact).detach())) < 0.05
        found[backward] = torch.autograd.grad(loss, list(reformer.parameters()))
    for own, plain in zip(found["reversible"], found["plain"], strict=True):
        assert (own - plain).norm() <= 0.02 * plain.norm()


def test_no_later_token_changes_a_logit() -> None:
    reformer, x = model().eval(), tokens(1, 100)
    other = x.clone()
    other[:, 60:] = torch.randint(50, (1, 40), generator=seeded(9))
    one, two = (reformer(t, generator=seeded(1)) for t in (x, other))
    assert torch.allclose(one[:, :60], two[:, :60], atol=1e-12)
    assert (one - two)[:, 60:].abs().max() > 0.1


def test_a_generator_decides_the_rotations_and_the_global_random_state_is_left() -> None:
    reformer, x = model().eval(), tokens()
    before = torch.get_rng_state()
    one, again, other = (reformer(x, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


def test_the_loss_is_the_cross_entropy_of_the_logits_and_skips_padding() -> None:
    reformer, x = model().eval(), tokens()
    padding = torch.zeros(2, 77, dtype=torch.bool)
    padding[1, 50:] = True
    loss = reformer.loss(x, padding=padding, generator=seeded(1))
    logits = reformer(x, padding=padding, generator=seeded(1))
    for row, end in ((0, 77), (1, 50)):
        assert torch.allclose(loss[row], F.cross_entropy(logits[row, : end - 1], x[row, 1:end]), atol=1e-12)


def test_hashes_can_be_changed_and_full_attention_needs_none() -> None:
    reformer, x = model(layers=("lsh",), chunk=128).eval(), tokens()
    one_bucket = reformer(x)  # all fits a chunk
    assert reformer.hashes == 3
    reformer.hashes = None
    assert torch.allclose(reformer(x), one_bucket, atol=1e-6)
    reformer.hashes = 8
    assert {layer.hashes for layer in reformer.hashed()} == {8}


@pytest.mark.parametrize("hashes", [1, 3, None])
def test_a_cache_of_hashes_gives_the_outputs_of_the_whole_sequence(hashes: int | None) -> None:
    reformer, x = model(hashes=hashes), tokens(2, 37)
    found = reformer.generate(x, 40, temperature=0, generator=seeded(1))
    assert reformer.training
    whole = reformer.eval()(found, generator=seeded(1)).argmax(-1)
    assert torch.equal(found[:, :37], x)
    assert torch.equal(found[:, 37:], whole[:, 36:-1])


def test_generation_without_a_cache_is_taken_where_chunks_move() -> None:
    reformer = model(reach="chunk")
    assert reformer.generate(tokens(1, 20), 3, top=5, generator=seeded()).shape == (1, 23)


def test_only_the_likeliest_tokens_are_drawn() -> None:
    reformer, x = model(), tokens(1, 30)
    greedy = reformer.generate(x, 5, temperature=0, generator=seeded(4))
    assert torch.equal(reformer.generate(x, 5, top=1, generator=seeded(4)), greedy)


def test_a_feed_forward_layer_in_chunks_is_the_layer() -> None:
    layer = dldw.nn.ChunkedFeedForward(8, 16, tokens=7).double()
    x = torch.randn(2, 30, 8, dtype=torch.float64, generator=seeded(), requires_grad=True)
    wanted = layer.layers(x)
    assert torch.allclose(layer(x), wanted, atol=1e-12)
    pairs = zip(
        *(torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]) for y in (layer(x), wanted)), strict=True
    )
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in pairs)


def test_a_loss_in_chunks_is_the_loss() -> None:
    hidden, weight = (
        torch.randn(*s, dtype=torch.float64, generator=seeded(), requires_grad=True) for s in ((2, 30, 8), (50, 8))
    )
    targets = tokens(2, 30).clone()
    targets[0, :4] = -100
    losses = dldw.nn.chunked_cross_entropy(hidden, weight, targets, tokens=7)
    wanted = F.cross_entropy((hidden @ weight.T).transpose(1, 2), targets, reduction="none")
    assert torch.allclose(losses, wanted, atol=1e-12)
    pairs = zip(*(torch.autograd.grad(y.square().sum(), (hidden, weight)) for y in (losses, wanted)), strict=True)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in pairs)


def test_a_position_is_the_embeddings_of_its_coordinates() -> None:
    positions = dldw.nn.AxialPositions((4, 3, 5), (2, 3, 4))
    found, (first, second, third) = positions(60), positions.weights
    for t in (0, 7, 31, 59):
        i, j, k = t // 15, t // 5 % 3, t % 5
        assert torch.equal(found[t], torch.cat((first[i, 0, 0], second[0, j, 0], third[0, 0, k])))
    assert torch.equal(positions(10, start=20), found[20:30])


def test_tied_output_weights_are_those_of_the_embedding() -> None:
    tied, free = model(tied=True), model()
    assert sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in tied.parameters()) == 64 * 50 + 50
    x = tokens()
    hidden = tied.encode(x, generator=seeded())
    both = tied.embedding.weight
    assert torch.allclose(
        tied(x, generator=seeded()), hidden[..., :32] @ both.T + hidden[..., 32:] @ both.T, atol=1e-10
    )


def hugging_face(**changes: object) -> tuple[transformers.ReformerConfig, nn.Module]:
    config = transformers.ReformerConfig(**{
        "vocab_size": 40, "hidden_size": 32, "num_attention_heads": 2, "attention_head_size": 8, "feed_forward_size": 48,
        "axial_pos_shape": (8, 16), "axial_pos_embds_dim": (12, 20), "attn_layers": ["local", "lsh", "lsh"],
        "num_hashes": 3, "num_buckets": 8, "lsh_attn_chunk_length": 16, "local_attn_chunk_length": 8, "is_decoder": True,
        "hash_seed": 5, "max_position_embeddings": 128, "use_cache": False, **changes,
    })  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return config, transformers.ReformerModelWithLMHead(config).double().eval()


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"num_hashes": 1}, {"num_buckets": [4, 4]}, {"axial_pos_embds": False}, {"hidden_act": "gelu"},
        {"attn_layers": ["lsh", "local"]},
    ],
)  # fmt: skip
@pytest.mark.parametrize("length", [64, 50, 12])
def test_hugging_faces_weights_give_hugging_faces_outputs(
    changes: dict, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, theirs = hugging_face(**changes)
    ours = dldw.nn.reformer_from_hugging_face(config.to_dict(), theirs.state_dict()).eval()

    def draw(layer: LSHAttention, *_: object) -> tuple[Tensor, ...]:
        halves = [f // 2 for f in layer.factors]
        shape = layer.heads, layer.head_width, layer.hashes, sum(halves)
        return torch.randn(*shape, dtype=torch.float64, generator=seeded(5)).split(halves, -1)  # hash_seed

    monkeypatch.setattr(LSHAttention, "draw", draw)
    x = torch.randint(40, (2, length), generator=seeded())
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        assert torch.allclose(ours(x), theirs(x).logits, atol=1e-10)


def test_a_model_of_hugging_face_that_does_not_fit_is_refused_with_the_reason() -> None:
    config, theirs = hugging_face()
    given, state = config.to_dict(), theirs.state_dict()
    with pytest.raises(DldwError, match=r"looks at \[1, 1, 1, 0\] chunks .* only decoders that look one chunk back"):
        dldw.nn.reformer_from_hugging_face({**given, "lsh_num_chunks_after": 1}, state)
    with pytest.raises(DldwError, match=r"hidden_act is 'tanh', and there are gelu, relu, silu"):
        dldw.nn.reformer_from_hugging_face({**given, "hidden_act": "tanh"}, state)
    state.pop("lm_head.decoder.weight")
    with pytest.raises(
        DldwError, match=r"missing \['head.weight'\], not known \[\]. Give the state_dict and the config"
    ):
        dldw.nn.reformer_from_hugging_face(given, state)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: model(layers=("dense",)), r"a layer must be lsh or local, got 'dense'"),
        (lambda: model(position_widths=(8, 8)), r"position_widths \(8, 8\) must add up to the width, 32"),
        (lambda: model()(tokens(1, 129)), r"position 128 lies beyond the 128 positions of a grid of 8 x 16"),
        (
            lambda: model(causal=False).generate(tokens(), 3),
            r"causal=False has seen what comes after .* Train one with",
        ),
        (lambda: dldw.nn.ChunkedFeedForward(8, 8, tokens=0), r"tokens must be at least 1, got 0; None takes all"),
        (
            lambda: dldw.nn.ChunkedFeedForward(8, 8, activation="tan"),
            r"activation must be one of gelu, relu, silu, got 'tan'",
        ),
        (lambda: dldw.nn.AxialPositions((4, 4), (3,)), r"shape has 2 axes and widths 1: each axis needs"),
        (lambda: dldw.nn.LocalAttention(10, heads=4), r"width of 10 is not 4 equal heads"),
    ],
)
def test_arguments_that_do_not_fit_are_explained(make: object, text: str) -> None:
    with pytest.raises(DldwError, match=text):
        make()


@pytest.mark.parametrize(
    "method", ["backprop", "spsa", "forward-gradient", "evolution-strategy", "weight-perturbation"]
)
def test_any_source_takes_a_step_on_it_or_says_why_not(method: str) -> None:
    task = Duplication(half=8)
    reformer = task.model(0, 16)
    learner = dldw.methods()[method].build(reformer, task.loss, seeded(), lr=1e-3)
    before = [p.detach().clone() for p in reformer.parameters()]
    assert learner.step(next(task.batches(0))).isfinite()
    assert any(not torch.equal(p, b) for p, b in zip(reformer.parameters(), before, strict=True))


def test_a_little_duplication_is_learned_through_hashes() -> None:
    task = Duplication(half=16)
    task.symbols, task.chunk = 8, 8
    reformer = task.model(0, 32)
    learner = dldw.Descent(reformer, dldw.Backprop(task.loss), torch.optim.Adam(reformer.parameters(), lr=5e-3))
    batches = task.batches(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(100):
            learner.step(next(batches))
    assert task.evaluate(reformer)["accuracy"] > 0.9


def test_duplication_asks_for_the_second_word_only() -> None:
    task = Duplication(half=16)
    x, y = next(task.batches(0))
    assert torch.equal(x[:, :16], x[:, 16:])
    assert (x[:, 0] == 0).all()
    assert (x[:, 1:16] > 0).all()
    assert (y[:, :16] == -100).all()
    assert torch.equal(y[:, 16:-1], x[:, 17:])

    class Oracle(nn.Module):
        def forward(self, tokens: Tensor, generator: object = None) -> Tensor:
            return F.one_hot(tokens.roll(-1, 1), task.symbols).double() * 100

    assert task.evaluate(Oracle()) == {"loss": pytest.approx(0), "accuracy": 1.0}


def test_text_is_split_without_overlap_and_both_models_are_of_one_size() -> None:
    text, plain = load_task("text"), load_task("text-transformer")
    whole = documentation()
    parts = [text.train, text.splits["test"]]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(text.train[-len(text.splits["validation"]) :], text.splits["validation"])
    sizes = [sum(p.numel() for p in task.model(0).parameters()) for task in (text, plain)]
    assert abs(sizes[0] / sizes[1] - 1) < 0.01
    held = len(text.train) - len(text.splits["validation"])
    text.train = torch.cat((text.train[:held], torch.full((len(text.train) - held,), 255, dtype=torch.uint8)))
    assert all(int(next(text.batches(seed, tuning=True)).max()) < 255 for seed in range(20))


def test_the_plain_transformer_sees_nothing_that_comes_later() -> None:
    network, x = load_task("text-transformer").model(0, 16).eval(), torch.randint(256, (1, 40), generator=seeded())
    other = x.clone()
    other[:, 20:] = 0
    assert torch.allclose(network(x)[:, :20], network(other)[:, :20], atol=1e-5)
    assert not torch.allclose(network(x)[:, 20:], network(other)[:, 20:], atol=1e-2)


def test_the_example_reads_and_writes() -> None:
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, root / "examples" / "reformer_text.py", "--length", "128", "--steps", "2", "--sample", "10"],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(root / "src")},
    )  # fmt: skip
    assert "bits a byte after 2 windows of 128 bytes; a sample:" in done.stdout
    assert len(done.stdout.split("The import statement")[1].rstrip("\n")) >= 1
