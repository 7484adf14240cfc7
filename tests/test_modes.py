"""A model that is compiled, checkpointed, offloaded, or run inside a mode of torch gives what the plain model gives."""

from __future__ import annotations

import sys
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import remove_hook_from_submodules
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, GPT2LMHeadModel

import dldw
from dldw import noise
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
        config = GPT2Config(
            vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
        )
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
        torch.testing.assert_close(
            torch.tensor(mine.coefficients), torch.tensor(other.coefficients), rtol=1e-8, atol=1e-8
        )


# --- torch.compile -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "name"),
    [*(("attending", name) for name in SOURCES), ("language model", "spsa"), ("language model", "low rank")],
)
@pytest.mark.filterwarnings("ignore:.*was compiled, and runs uncompiled")
def test_a_compiled_model_gives_the_same_slopes_and_is_compiled_once(problem, name):
    make, loss, batch = PROBLEMS[problem]
    wanted = steps(SOURCES[name](loss), make(), batch)
    torch._dynamo.reset()
    model, source = torch.compile(make(), backend="aot_eager"), SOURCES[name](loss)
    with torch.no_grad():
        loss(model, batch)
    found, counts = [], []
    for _ in wanted:
        found += steps(source, model, batch, 1)
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert_same(found, wanted)
    assert counts[-1] == counts[0] > 0


@pytest.mark.filterwarnings("ignore:.*was compiled, and runs uncompiled")
@pytest.mark.parametrize("how", ["in place", "a part"])
def test_a_model_compiled_in_place_or_in_part_gives_the_same_slopes(how, monkeypatch):
    monkeypatch.setattr(noise, "TILE", 8)  # weights of several tiles, which are never made in full
    source = SOURCES["mezo"]
    wanted = steps(source(squares), attending(), VECTORS)
    torch._dynamo.reset()
    model = attending()
    if how == "in place":
        model.compile(backend="eager")
    else:
        model.head = torch.compile(model.head, backend="eager")
    model(VECTORS)
    assert_same(steps(source(squares), model, VECTORS), wanted)


@pytest.mark.filterwarnings("ignore:.*was compiled, and runs uncompiled")
def test_node_perturbation_of_a_compiled_model_is_that_of_the_plain_one():
    def gradients(model):
        source = dldw.NodePerturbation(squares, generator=seeded(2))
        for _ in range(2):
            source(model, VECTORS)
        return [p.grad for p in model.parameters()]

    def model():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()

    torch._dynamo.reset()
    found = gradients(torch.compile(model(), backend="eager"))
    torch.testing.assert_close(found, gradients(model()), rtol=1e-10, atol=1e-10)


def test_what_runs_uncompiled_is_said_once():
    torch._dynamo.reset()
    model = torch.compile(attending(), backend="eager")
    source = dldw.LowRankEvolution(squares, population=2)
    with pytest.warns(
        UserWarning, match="OptimizedModule was compiled, and runs uncompiled while its weights are"
    ) as said:
        steps(source, model, VECTORS)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dldw.SPSA(squares)(torch.compile(attending(), backend="eager"), VECTORS)


# --- modes of torch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "forward gradient"])
def test_inference_mode_inside_the_loss_changes_nothing(problem, name):
    make, loss, batch = problem

    def without_autograd(model, batch):
        with torch.inference_mode():
            return loss(model, batch)

    assert_same(steps(SOURCES[name](without_autograd), make(), batch), steps(SOURCES[name](loss), make(), batch))


@pytest.mark.parametrize("name", SOURCES)
def test_a_gradient_made_in_inference_mode_is_an_ordinary_one(name):
    def gradients(mode):
        model, source = attending(), SOURCES[name](squares)
        with mode():
            source(model, VECTORS)
        source(model, VECTORS)  # adds to what is there
        return [p.grad for p in model.parameters()]

    found, wanted = gradients(torch.inference_mode), gradients(torch.no_grad)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert not any(grad.is_inference() for grad in found)


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "forward gradient"])
def test_autocast_inside_the_loss_rounds_what_it_rounds_in_a_plain_forward(name):
    def in_bfloat16(model, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return squares(model, batch).float()

    model = attending().float()
    exact, rounded = (SOURCES[name](loss).estimate(model, VECTORS.float()).loss for loss in (squares, in_bfloat16))
    assert 0 < abs(float(exact - rounded)) < 0.05 * float(exact)


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "low rank, together"])
def test_gradient_checkpointing_is_off_while_forwards_alone_are_taken_and_a_warning_says_so_once(name):
    torch.manual_seed(0)  # of dropout
    wanted = steps(SOURCES[name](token_losses), language_model().train(), TOKENS, 2)
    model = language_model().train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    torch.manual_seed(0)
    with pytest.warns(
        UserWarning, match="GPT2LMHeadModel has gradient checkpointing enabled, and it is off while"
    ) as said:
        found = steps(SOURCES[name](token_losses), model, TOKENS, 2)
    assert len([w for w in said if "checkpointing" in str(w.message)]) == 1
    assert_same(found, wanted)
    assert model.transformer.gradient_checkpointing


class Checkpointed(Attending):
    reentrant = False

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=self.reentrant)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    ("name", "reentrant"),
    [("spsa", False), ("spsa", True), ("low rank", False), ("low rank", True), ("low rank, together", False)],
)
def test_torch_checkpoints_give_the_same_slopes(name, reentrant):
    model = attending()
    wanted = steps(SOURCES[name](squares), model, VECTORS)
    model.__class__, model.reentrant = Checkpointed, reentrant
    assert_same(steps(SOURCES[name](squares), model, VECTORS), wanted)


# --- accelerate ----------------------------------------------------------------------------------------------------


def offloaded_to_memory(model, directory):
    return cpu_offload(model, "cpu")


def dispatched(model, directory):
    return dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)


def dispatched_in_part(model, directory):
    """What is trained in memory, the rest on a disk."""
    for p in model.transformer.h[1].parameters():
        p.requires_grad_(False)
    places = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.h.0": "cpu", "transformer.h.1": "disk",
              "transformer.ln_f": "cpu", "lm_head": "cpu"}  # fmt: skip
    return dispatch_model(model, places, main_device="cpu", offload_dir=directory, force_hooks=True)


@pytest.mark.parametrize("place", [offloaded_to_memory, dispatched, dispatched_in_part])
@pytest.mark.parametrize("name", [name for name in SOURCES if name != "forward gradient"])
def test_weights_that_move_give_the_same_slopes(place, name, tmp_path):
    plain = language_model()
    if place is dispatched_in_part:
        for p in plain.transformer.h[1].parameters():
            p.requires_grad_(False)
    model = place(language_model(), tmp_path)
    assert_same(steps(SOURCES[name](token_losses), model, TOKENS), steps(SOURCES[name](token_losses), plain, TOKENS))


@pytest.mark.parametrize("name", ["mezo", "low rank"])
def test_offloaded_weights_are_trained_where_they_are_kept(name, tmp_path):
    def trained(model, log):
        learner = dldw.ForwardOnly(model, SOURCES[name](token_losses), lr=0.01, log=log)
        losses = torch.stack([learner.step(TOKENS) for _ in range(3)])
        with torch.no_grad():
            return losses, token_losses(model, TOKENS)

    plain = language_model()
    base = {key: p.detach().clone() for key, p in plain.named_parameters()}
    wanted = trained(plain, tmp_path / "plain.jsonl")
    offloaded = cpu_offload(language_model(), "cpu")
    found = trained(offloaded, tmp_path / "offloaded.jsonl")
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    again = dldw.replay(base, tmp_path / "offloaded.jsonl")
    remove_hook_from_submodules(offloaded)
    offloaded.tie_weights()
    assert all(torch.equal(again[key], p) for key, p in offloaded.named_parameters())
    torch.testing.assert_close(
        again, dict(plain.named_parameters()), rtol=1e-10, atol=1e-10
    )  # moved as sums: other rounding


def test_a_model_that_is_offloaded_and_brought_back_is_seen_as_it_is():
    model, source = language_model(), SOURCES["low rank"]
    wanted = steps(source(token_losses), model, TOKENS)
    assert_same(steps(source(token_losses), cpu_offload(model, "cpu"), TOKENS), wanted)
    remove_hook_from_submodules(model)
    model.tie_weights()
    assert_same(steps(source(token_losses), model, TOKENS), wanted)
    source(token_losses)(model, TOKENS)
    assert all(p.grad is not None for p in model.parameters())


def test_offloaded_weights_that_an_optimizer_would_not_find_are_refused_with_the_reason():
    model = cpu_offload(language_model(), "cpu")
    for source in (dldw.SPSA(token_losses), dldw.Backprop(token_losses)):
        with pytest.raises(dldw.DldwError, match=r"fills \.grad, and GPT2LMHeadModel has 28 trainable weights that accele.*"
                           r"Train with dldw\.ForwardOnly"):  # fmt: skip
            source(model, TOKENS)


def test_trainable_weights_on_a_disk_are_refused_with_the_reason(tmp_path):
    model = disk_offload(language_model(), tmp_path, "cpu")
    with pytest.raises(
        dldw.DldwError, match=r"is on the meta device, and not in memory anywhere.* freeze it and train an adap"
    ):
        dldw.ForwardOnly(model, dldw.MeZO(token_losses), lr=0.1)


# --- threads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_another_thread_sees_the_weights_bit_for_bit_at_any_moment_of_a_probe(name):
    model, source = attending(), SOURCES[name](squares)
    own, first = list(model.parameters()), [p.detach().clone() for p in model.parameters()]
    begin, done, looks, wrong = threading.Event(), threading.Event(), [0], []

    def look():
        begin.set()
        while not done.is_set() or not looks[0]:
            wrong.extend(i for i, (p, q) in enumerate(zip(own, first, strict=True)) if not torch.equal(p, q))
            looks[0] += 1

    thread = threading.Thread(target=look)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        thread.start()
        begin.wait()
        seen = looks[0]
        while looks[0] < seen + 20:
            source.estimate(model, VECTORS)
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert looks[0] >= 20
    assert not wrong
