"""A model that is compiled, checkpointed, offloaded, or run inside a mode of torch gives what the plain model gives."""

from __future__ import annotations

import sys
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, GPT2LMHeadModel

import dldw
from tests.contract.checks import seeded

TOKENS = torch.randint(50, (2, 9), generator=seeded(0))
VECTORS = torch.randn(5, 6, dtype=torch.float64, generator=seeded(1))


def token_losses(model, batch):
    logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.mT, batch[:, 1:], reduction="none").mean(1)


def squares(model, batch):
    return model(batch).square().sum(1)


def language_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
        return GPT2LMHeadModel(config).double().eval()


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.attention = nn.Conv1d(1, 4, 3), nn.MultiheadAttention(4, 2, batch_first=True)
        self.positions, self.head = nn.Parameter(torch.randn(1, 4, 4)), nn.Linear(4, 3)

    def forward(self, x):
        x = self.convolution(x.unsqueeze(1)).mT + self.positions
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def attending():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Attending().double()


PROBLEMS = {"language model": (language_model, token_losses, TOKENS), "attending": (attending, squares, VECTORS)}
SOURCES = {
    "spsa": lambda loss: dldw.SPSA(loss, generator=seeded(2)),
    "mezo": lambda loss: dldw.MeZO(loss, generator=seeded(2)),
    "low rank": lambda loss: dldw.LowRankEvolution(loss, population=2, generator=seeded(2)),
    "low rank, together": lambda loss: dldw.LowRankEvolution(
        loss, population=8, evaluate="batched", generator=seeded(2)
    ),
    "forward gradient": lambda loss: dldw.ForwardGradient(loss, generator=seeded(2)),
}


@pytest.fixture(params=PROBLEMS)
def problem(request):
    make, loss, batch = PROBLEMS[request.param]
    return make, loss, batch


def steps(source, model, batch, count=3):
    return [source.estimate(model, batch) for _ in range(count)]


def assert_same(found, wanted):
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.loss, other.loss, rtol=1e-10, atol=1e-10)
        # a slope is a difference of losses over sigma
        torch.testing.assert_close(torch.tensor(mine.coefficients), torch.tensor(other.coefficients), rtol=1e-8, atol=1e-8)


# --- torch.compile -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.filterwarnings("ignore:.*was compiled, and runs uncompiled")
def test_a_compiled_model_gives_the_same_slopes_and_is_compiled_once(problem, name, backend):
    make, loss, batch = problem
    wanted = steps(SOURCES[name](loss), make(), batch)
    torch._dynamo.reset()
    model, source = torch.compile(make(), backend=backend), SOURCES[name](loss)
    with torch.no_grad():
        loss(model, batch)
    found, counts = [], []
    for _ in wanted:
        found += steps(source, model, batch, 1)
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert_same(found, wanted)
    assert counts[-1] == counts[0] > 0
