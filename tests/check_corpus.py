"""Gradients that are wrong and gradients that are right, for any tool that checks gradients.

Each case makes a model, a loss and a batch. A wrong one also has a reference: the same model with the backward pass that
autograd derives, from which follows which tensors are wrong, and by how much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.contract import problems

Made = tuple[nn.Module, Callable[[nn.Module, Any], Tensor], Any]
Function = Callable[..., Tensor]
Backward = Callable[..., Sequence[Tensor | None]]


@dataclass(frozen=True)
class Case:
    """A gradient to check; ``reference`` makes the same with autograd's own backward pass, for one that is wrong."""

    name: str
    make: Callable[[], Made]
    reference: Callable[[], Made] | None = None

    @property
    def wrong(self) -> bool:
        return self.reference is not None

    def truth(self) -> dict[str, float]:
        """How far off each tensor is, |wrong - right| over the length of the whole right gradient; zeros are left out."""
        assert self.reference is not None
        wrong, right = gradients(*self.make()), gradients(*self.reference())
        length = math.sqrt(sum(float(g.square().sum()) for g in right.values()))
        off = {name: float((wrong[name] - g).norm()) / length for name, g in right.items()}
        return {name: size for name, size in off.items() if size > 1e-9}


def gradients(model: nn.Module, loss: Callable[[nn.Module, Any], Tensor], batch: Any) -> dict[str, Tensor]:
    """What the backward pass leaves, zeros where it leaves nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        value = loss(model, batch).mean()
        if value.requires_grad:
            value.backward()
    named = model.named_parameters()
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in named if p.requires_grad}
    model.zero_grad()
    return {name: g.double() for name, g in found.items()}


class Written(torch.autograd.Function):
    """A function with a backward pass written by hand."""

    @staticmethod
    def forward(ctx: Any, function: Function, backward: Backward, *tensors: Tensor) -> Tensor:
        ctx.function, ctx.written = function, backward
        out = function(*tensors)
        ctx.save_for_backward(out, *tensors)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        out, *tensors = ctx.saved_tensors
        return None, None, *ctx.written(g, out, *tensors)


def derived(function: Function) -> Backward:
    """The backward pass of ``function`` as autograd has it."""

    def backward(g: Tensor, out: Tensor, *tensors: Tensor) -> Sequence[Tensor | None]:
        with torch.enable_grad():
            own = [t.detach().requires_grad_() for t in tensors]
            return torch.autograd.grad(function(*own), own, g, allow_unused=True)

    return backward


# --- operations -----------------------------------------------------------------------------------------------------------


def linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x @ w.T + b


def conv(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.conv2d(x, w, b, padding=1)


def attention(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (x @ q) @ (x @ k).mT / math.sqrt(q.shape[1])
    mask = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool).tril()
    return scores.masked_fill(~mask, -math.inf).softmax(-1) @ (x @ v)


def norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], gain, bias)


def batch_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() * gain + bias


def entropy(x: Tensor) -> Tensor:
    """Softmax cross-entropy of each row, whose label is its number."""
    return -x.log_softmax(-1)[torch.arange(len(x)), torch.arange(len(x)) % x.shape[-1]]


def lstm(x: Tensor, wi: Tensor, wh: Tensor, b: Tensor) -> Tensor:
    h = c = x.new_zeros(len(x), wh.shape[1])
    for t in range(x.shape[1]):
        i, f, g, o = (x[:, t] @ wi.T + h @ wh.T + b).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return h


def swish(x: Tensor, beta: Tensor) -> Tensor:
    return x * (beta * x).sigmoid()


def scale(x: Tensor, gain: Tensor) -> Tensor:
    """A gain for each column, broadcast over rows."""
    return x * gain


def embed(x: Tensor, table: Tensor) -> Tensor:
    """Rows of a table, some of them several times, mixed into x."""
    return x * table[torch.arange(len(x)) % 3]


SHAPES: dict[Function, tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]] = {
    linear: ((6, 4), ((4, 4), (4,))),
    conv: ((4, 2, 5, 5), ((3, 2, 3, 3), (3,))),
    attention: ((3, 5, 4), ((4, 4), (4, 4), (4, 4))),
    norm: ((6, 4), ((4,), (4,))),
    batch_norm: ((6, 4), ((4,), (4,))),
    entropy: ((6, 4), ()),
    lstm: ((5, 3, 3), ((16, 3), (16, 4), (16,))),
    swish: ((6, 4), ((4,),)),
    scale: ((6, 4), ((4,),)),
    embed: ((6, 4), ((3, 4),)),
}
"""The shapes of the input and of the parameters of each operation."""


class Net(nn.Module):
    """A linear layer, the operation, and a linear layer that reads it."""

    def __init__(self, function: Function, backward: Backward | None) -> None:
        super().__init__()
        self.function, self.backward = function, backward
        shape, own = SHAPES[function]
        self.before = nn.Linear(shape[-1], shape[-1])
        self.own = nn.ParameterList([torch.randn(s) / 2 for s in own])
        with torch.no_grad():
            out = function(torch.randn(shape), *self.own)
        self.after = nn.Linear(out[0].numel(), 3) if out.ndim > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        if self.backward is None:
            y = self.function(x, *self.own)
        else:
            y = Written.apply(self.function, self.backward, x, *self.own)
        return y if self.after is None else self.after(y.tanh().flatten(1))


def classify(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    out = model(batch[0])
    return out if out.ndim == 1 else F.cross_entropy(out, batch[1], reduction="none")


def network(function: Function, backward: Backward | None = None, dtype: torch.dtype = torch.float64) -> Made:
    def make() -> Made:
        shape = SHAPES[function][0]
        model, x = Net(function, backward).to(dtype), torch.randn(shape).to(dtype)
        return model, classify, (x, torch.arange(len(x)) % 3)

    return seeded(make)


def seeded(make: Callable[[], Any], seed: int = 3) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


# --- faults ---------------------------------------------------------------------------------------------------------------

Change = Callable[[Tensor], Tensor | None]


def zeroed(at: Callable[[Tensor], Any]) -> Change:
    def change(g: Tensor) -> Tensor:
        g = g.clone()
        g[at(g)] = 0
        return g

    return change


def largest(g: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(g.abs().argmax(), g.shape))


def entry_times(factor: float) -> Change:
    def change(g: Tensor) -> Tensor:
        g = g.clone()
        g[largest(g)] *= factor
        return g

    return change


def swapped_rows(g: Tensor) -> Tensor:
    return g[[1, 0, *range(2, len(g))]]


def shifted(g: Tensor) -> Tensor:
    """Off by one without wrapping around."""
    return torch.cat([torch.zeros_like(g[:1]), g[:-1]])


CHANGES: dict[str, Change] = {
    "zeroed entry": zeroed(largest),
    "zeroed row": zeroed(lambda g: 1),
    "zeroed column": zeroed(lambda g: (..., 1)),
    "factor 1.001": lambda g: 1.001 * g,
    "factor 1.1": lambda g: 1.1 * g,
    "factor 2": lambda g: 2 * g,
    "factor 1.01 in an entry": entry_times(1.01),
    "sign": torch.neg,
    "detached": lambda g: None,
    "zero": torch.zeros_like,
    "off by one": lambda g: g.roll(1, 0),
    "off by one at the end": shifted,
    "two rows exchanged": swapped_rows,
    "transposed": lambda g: g.mT,
    "reversed": lambda g: g.flip(0),
    "mean in place of sum": lambda g: g / 6,
}


def changed(function: Function, which: int, change: Change) -> Backward:
    def backward(g: Tensor, out: Tensor, *tensors: Tensor) -> Sequence[Tensor | None]:
        grads = list(derived(function)(g, out, *tensors))
        found = grads[which]
        grads[which] = None if found is None else change(found)
        return grads

    return backward


def _mutations() -> list[Case]:
    every = list(CHANGES)
    square = [c for c in every if c != "transposed"]
    vector = [c for c in square if c not in ("zeroed column",)]
    plan: list[tuple[Function, int, Sequence[str]]] = [
        (linear, 1, every),
        (linear, 2, ("zeroed entry", "mean in place of sum", "factor 1.1")),
        (linear, 0, ("zeroed row", "factor 1.001", "sign")),
        (conv, 1, ("zeroed entry", "zeroed row", "factor 1.001", "off by one", "sign", "reversed")),
        (conv, 2, ("zeroed entry", "factor 2")),
        (conv, 0, ("zeroed column",)),
        (attention, 1, ("zeroed entry", "transposed", "factor 1.1", "detached")),
        (attention, 2, ("zeroed column", "sign", "off by one")),
        (attention, 3, ("zeroed row", "factor 1.01 in an entry")),
        (norm, 1, [c for c in vector if c in ("zeroed entry", "factor 1.001", "off by one", "detached")]),
        (norm, 2, ("sign", "two rows exchanged")),
        (entropy, 0, ("zeroed entry", "factor 1.001", "sign", "zeroed column")),
        (lstm, 1, ("zeroed entry", "zeroed row", "factor 1.001", "off by one")),
        (lstm, 2, ("zeroed column", "sign", "off by one at the end")),
        (lstm, 3, ("zeroed entry", "factor 2")),
        (swish, 1, ("zero", "factor 1.001")),
    ]
    return [
        Case(
            f"{function.__name__}, argument {which}: {name}",
            partial(network, function, changed(function, which, CHANGES[name])),
            partial(network, function),
        )
        for function, which, names in plan
        for name in names
    ]


# --- backward passes as they are got wrong by hand ------------------------------------------------------------------------


def swish_without_product_rule(g, out, x, beta):
    s = (beta * x).sigmoid()
    return g * s, (g * x * x * s * (1 - s)).sum(0)


def swish_beta_of_first_example(g, out, x, beta):
    s = (beta * x).sigmoid()
    return g * (s + beta * x * s * (1 - s)), (g * x * x * s * (1 - s))[0]


def swish_beta_averaged(g, out, x, beta):
    s = (beta * x).sigmoid()
    return g * (s + beta * x * s * (1 - s)), (g * x * x * s * (1 - s)).mean(0)


def swish_beta_squared(g, out, x, beta):
    s = (beta * x).sigmoid()
    return g * (s + beta * x * s * (1 - s)), (g * x * x * s * s).sum(0)


def norm_without_mean(g, out, x, gain, bias):
    sigma, z = _standard(x)
    u = g * gain
    return (u - z * (u * z).mean(-1, keepdim=True)) / sigma, (g * z).sum(0), g.sum(0)


def norm_without_variance(g, out, x, gain, bias):
    sigma, z = _standard(x)
    u = g * gain
    return (u - u.mean(-1, keepdim=True)) / sigma, (g * z).sum(0), g.sum(0)


def norm_gain_from_output(g, out, x, gain, bias):
    return derived(norm)(g, out, x, gain, bias)[0], (g * out).sum(0), g.sum(0)


def batch_norm_as_in_evaluation(g, out, x, gain, bias):
    sigma = (x.var(0, unbiased=False) + 1e-5).sqrt()
    return g * gain / sigma, (g * (x - x.mean(0)) / sigma).sum(0), g.sum(0)


def batch_norm_unbiased(g, out, x, gain, bias):
    sigma = (x.var(0) + 1e-5).sqrt()
    z, u = (x - x.mean(0)) / sigma, g * gain
    return (u - u.mean(0) - z * (u * z).mean(0)) / sigma, (g * z).sum(0), g.sum(0)


def _standard(x):
    sigma = (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return sigma, (x - x.mean(-1, keepdim=True)) / sigma


def entropy_without_label(g, out, x):
    return (g[:, None] * x.softmax(-1),)


def entropy_divided_by_batch(g, out, x):
    return (g[:, None] * (x.softmax(-1) - _labels(x)) / len(x),)


def entropy_label_off_by_one(g, out, x):
    return (g[:, None] * (x.softmax(-1) - _labels(x).roll(1, 1)),)


def _labels(x):
    return F.one_hot(torch.arange(len(x)) % x.shape[-1], x.shape[-1]).to(x)


def attention_without_scale(g, out, x, q, k, v):
    own = list(derived(attention)(g, out, x, q, k, v))
    return own[0], own[1] * math.sqrt(q.shape[1]), own[2] * math.sqrt(q.shape[1]), own[3]


def attention_without_mask(g, out, x, q, k, v):
    def bare(x, q, k, v):
        return ((x @ q) @ (x @ k).mT / math.sqrt(q.shape[1])).softmax(-1) @ (x @ v)

    return derived(bare)(g, out, x, q, k, v)


def attention_softmax_without_coupling(g, out, x, q, k, v):
    def diagonal(scores):
        return Written.apply(lambda s: s.softmax(-1), lambda g, p, s: (g * p * (1 - p),), scores)

    def inner(x, q, k, v):
        scores = (x @ q) @ (x @ k).mT / math.sqrt(q.shape[1])
        mask = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool).tril()
        return diagonal(scores.masked_fill(~mask, -math.inf)) @ (x @ v)

    return derived(inner)(g, out, x, q, k, v)


def conv_kernel_flipped(g, out, x, w, b):
    _, gw, gb = derived(conv)(g, out, x, w, b)
    return F.conv_transpose2d(g, w.flip(-1, -2), padding=1), gw, gb


def conv_bias_of_first_example(g, out, x, w, b):
    gx, gw, _ = derived(conv)(g, out, x, w, b)
    return gx, gw, g[0].sum((1, 2))


def conv_padding_off_by_one(g, out, x, w, b):
    gx, gw, gb = derived(conv)(g, out, x, w, b)
    return gx.roll(1, -1), gw, gb


def lstm_without_last_step(g, out, x, wi, wh, b):
    grads = list(derived(lstm)(g, out, x, wi, wh, b))
    grads[1] = derived(lambda x, wi, wh, b: lstm(torch.cat([x[:, :-1], x[:, -1:].detach() * 0], 1), wi, wh, b))(
        g, out, x, wi, wh, b
    )[1]
    return grads


def lstm_gates_exchanged(g, out, x, wi, wh, b):
    grads = list(derived(lstm)(g, out, x, wi, wh, b))
    i, f, c, o = grads[1].chunk(4)
    grads[1] = torch.cat([f, i, c, o])
    return grads


def scale_not_reduced(g, out, x, gain):
    return g * gain, (g * x)[0]


def scale_reduced_by_mean(g, out, x, gain):
    return g * gain, (g * x).mean(0)


def embed_overwriting(g, out, x, table):
    rows = torch.arange(len(x)) % 3
    grad = torch.zeros_like(table)
    grad[rows] = g * x
    return g * table[rows], grad


def embed_off_by_one(g, out, x, table):
    rows = torch.arange(len(x)) % 3
    return g * table[rows], torch.zeros_like(table).index_add(0, (rows + 1) % 3, g * x)


def linear_with_output_of_relu(g, out, x, w, b):
    return g @ w, (g * (out > 0)).T @ x, g.sum(0)


def linear_input_transposed(g, out, x, w, b):
    return g @ w.T, g.T @ x, g.sum(0)


BY_HAND: dict[Callable[..., Any], Function] = {
    swish_without_product_rule: swish,
    swish_beta_of_first_example: swish,
    swish_beta_averaged: swish,
    swish_beta_squared: swish,
    norm_without_mean: norm,
    norm_without_variance: norm,
    norm_gain_from_output: norm,
    batch_norm_as_in_evaluation: batch_norm,
    batch_norm_unbiased: batch_norm,
    entropy_without_label: entropy,
    entropy_divided_by_batch: entropy,
    entropy_label_off_by_one: entropy,
    attention_without_scale: attention,
    attention_without_mask: attention,
    attention_softmax_without_coupling: attention,
    conv_kernel_flipped: conv,
    conv_bias_of_first_example: conv,
    conv_padding_off_by_one: conv,
    lstm_without_last_step: lstm,
    lstm_gates_exchanged: lstm,
    scale_not_reduced: scale,
    scale_reduced_by_mean: scale,
    embed_overwriting: embed,
    embed_off_by_one: embed,
    linear_with_output_of_relu: linear,
    linear_input_transposed: linear,
}


# --- faults of whole models -----------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Two blocks with a residual connection; ``cut`` takes the place of the branch."""

    def __init__(self, cut: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.head, self.cut = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3), cut

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).tanh()
        return self.head(x + self.cut(self.b(x).tanh()))


class Language(nn.Module):
    """An embedding that is also the output layer; ``cut`` is applied to the weight there."""

    def __init__(self, cut: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7)
        self.head.weight, self.cut = self.embedding.weight, cut

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(self.body(self.embedding(tokens)).tanh(), self.cut(self.head.weight), self.head.bias)


class Remembering(nn.Module):
    """A linear layer whose gradient has that of an earlier step in it, which was never cleared."""

    def __init__(self, stale: bool) -> None:
        super().__init__()
        self.before, self.weight, self.stale = nn.Linear(4, 4), nn.Parameter(torch.randn(3, 4)), stale
        self.register_buffer("last", torch.randn(3, 4) / 10)

    def forward(self, x: Tensor) -> Tensor:
        def backward(g: Tensor, out: Tensor, x: Tensor, w: Tensor) -> Sequence[Tensor]:
            if self.stale:
                self.last += g.T @ x
                return g @ w, self.last.clone()
            return g @ w, g.T @ x

        return Written.apply(lambda x, w: x @ w.T, backward, self.before(x).tanh(), self.weight)


def without_graph(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x * 1


def twice(x: Tensor) -> Tensor:
    return Written.apply(lambda x: x * 1, lambda g, out, x: (2 * g,), x)


def made(make: Callable[[], nn.Module], batch: Callable[[], Any], loss: Any = classify, dtype=torch.float64) -> Made:
    return seeded(lambda: (make().to(dtype), loss, batch()))


def rows(*shape: int, dtype: torch.dtype = torch.float64) -> Any:
    return torch.randn(*shape).to(dtype), torch.arange(shape[0]) % 3


def _whole_models() -> list[Case]:
    def pair(name: str, make: Callable[[Any], nn.Module], wrong: Any, right: Any, batch: Callable[[], Any]) -> Case:
        return Case(name, partial(made, partial(make, wrong), batch), partial(made, partial(make, right), batch))

    def tokens() -> Any:
        return torch.arange(6), torch.arange(6).roll(1)

    batch = partial(rows, 6, 4)
    same: Callable[[Tensor], Tensor] = lambda x: x  # noqa: E731
    return [
        pair("residual branch detached", Residual, Tensor.detach, same, batch),
        pair("residual branch by .data", Residual, lambda x: x.data, same, batch),
        pair("residual branch without a graph", Residual, without_graph, same, batch),
        pair(
            "residual branch through NumPy", Residual, lambda x: torch.from_numpy(x.detach().numpy() * 1), same, batch
        ),
        pair("residual branch accumulated twice", Residual, twice, same, batch),
        pair("shared weight counted once", Language, Tensor.detach, same, tokens),
        pair("stale gradient added", Remembering, True, False, batch),
    ]


WRONG = [
    *_mutations(),
    *[
        Case(backward.__name__.replace("_", " "), partial(network, function, backward), partial(network, function))
        for backward, function in BY_HAND.items()
    ],
    *_whole_models(),
]


# --- right ones -----------------------------------------------------------------------------------------------------------


def problem(make: Callable[..., problems.Problem], dtype: torch.dtype) -> Made:
    found = make(dtype)
    return found.model, found.loss, found.batch


def squares(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0]).square().flatten(1).mean(1)


def hinge(model: nn.Module, batch: Any) -> Tensor:
    return F.multi_margin_loss(model(batch[0]), batch[1], reduction="none")


class WithPadding(nn.Module):
    """Rows of zeros meet a ReLU whose bias is zero: exactly on its kink."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        nn.init.zeros_(self.a.bias)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.arange(len(x)).view(-1, 1) % 2
        return self.b(self.a(x * mask.to(x)).relu())


class Two(nn.Module):
    """Two outputs, of which one is read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        values, _ = (self.a(x), self.b(x))
        best, _ = values.max(1)
        return torch.cat([values, best[:, None]], 1)[:, :3]


class Counted(nn.Module):
    """Integer parameters and frozen ones beside those to train."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)
        self.a.weight.requires_grad_(False)
        self.steps = nn.Parameter(torch.tensor(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh() * self.steps)


class Recomputed(nn.Module):
    """A block whose activations are computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.GELU()), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.block, x, use_reentrant=False))


class Stable(nn.Module):
    """Subtracts a detached maximum, as every softmax written by hand does, and rightly so."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        e = (y - y.max(1, keepdim=True).values.detach()).exp()
        return (e / e.sum(1, keepdim=True)).log()


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0][:, -1])


def mlp(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), *middle, nn.Linear(8, 3))


def image(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), *layers, nn.Flatten(), nn.LazyLinear(3))


def ready(model: nn.Module, *shape: int) -> nn.Module:
    model(torch.randn(*shape))
    return model


def deep() -> nn.Module:
    return nn.Sequential(*[layer for _ in range(20) for layer in (nn.Linear(4, 4), nn.Tanh())], nn.Linear(4, 3))


def confident() -> nn.Module:
    """Nearly no loss is left, so that its gradient in low precision is mostly rounding."""
    model = nn.Linear(3, 3)
    with torch.no_grad():
        model.weight.copy_(8 * torch.eye(3) + torch.randn(3, 3) / 4)
    return model


def certain(dtype: torch.dtype) -> Any:
    return (torch.eye(3).repeat(4, 1) + torch.randn(12, 3) / 8).to(dtype), torch.arange(12) % 3


def _right() -> list[Case]:
    short = {torch.float64: "float64", torch.float32: "float32", torch.bfloat16: "bfloat16"}
    cases = [
        Case(f"{f.__name__} as autograd has it, {short[d]}", partial(network, f, derived(f), d))
        for f in SHAPES
        for d in (torch.float64, torch.float32)
    ]
    cases += [
        Case(f"{make.__name__}, {name}", partial(problem, make, dtype))
        for make in problems.ALL
        for dtype, name in short.items()
        if dtype != torch.float32 or make in (problems.dropout, problems.tied, problems.lstm, problems.batch_norm)
    ]
    flat, wide, pixels = partial(rows, 6, 4), partial(rows, 200, 4), partial(rows, 4, 1, 6, 6)
    single = partial(rows, 6, 4, dtype=torch.float32)
    plain: list[tuple[str, Any, Any, Any, torch.dtype]] = [
        ("ReLU", lambda: mlp(nn.ReLU()), wide, classify, torch.float64),
        ("ReLU, float32", lambda: mlp(nn.ReLU()), single, classify, torch.float32),
        ("ReLU on its kink", WithPadding, flat, classify, torch.float64),
        ("ReLU on its kink, float32", WithPadding, single, classify, torch.float32),
        ("hinge loss", lambda: mlp(nn.Tanh()), wide, hinge, torch.float64),
        ("leaky ReLU", lambda: mlp(nn.LeakyReLU()), wide, classify, torch.float64),
        ("hard swish", lambda: mlp(nn.Hardswish()), wide, classify, torch.float64),
        ("dropout before ReLU", lambda: mlp(nn.Dropout(), nn.ReLU()), flat, classify, torch.float64),
        ("feature dropout", lambda: mlp(nn.AlphaDropout()), flat, classify, torch.float64),
        ("randomised leaky ReLU", lambda: mlp(nn.RReLU()), flat, classify, torch.float64),
        ("max-pooling", lambda: ready(image(nn.MaxPool2d(2)), 4, 1, 6, 6), pixels, classify, torch.float64),
        ("average pooling", lambda: ready(image(nn.AvgPool2d(2)), 4, 1, 6, 6), pixels, classify, torch.float64),
        ("group norm", lambda: ready(image(nn.GroupNorm(1, 2)), 4, 1, 6, 6), pixels, classify, torch.float64),
        ("instance norm", lambda: ready(image(nn.InstanceNorm2d(2)), 4, 1, 6, 6), pixels, classify, torch.float64),
        ("batch norm before ReLU", lambda: mlp(nn.BatchNorm1d(8), nn.ReLU()), wide, classify, torch.float64),
        ("spectral norm", lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), flat, classify, torch.float64),
        ("weight norm", lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), flat, classify, torch.float64),
        ("two outputs, one read", Two, flat, classify, torch.float64),
        ("integer and frozen tensors", Counted, flat, classify, torch.float64),
        ("checkpointed, with batch norm", Recomputed, flat, classify, torch.float64),
        ("detached maximum in a softmax", Stable, flat, classify, torch.float64),
        ("GRU", Gru, partial(rows, 5, 4, 3), classify, torch.float64),
        ("forty layers", deep, flat, classify, torch.float64),
        ("tiny loss", lambda: mlp(nn.Tanh()), flat, lambda m, b: 1e-12 * classify(m, b), torch.float64),
        ("huge loss", lambda: mlp(nn.Tanh()), flat, lambda m, b: 1e12 * classify(m, b), torch.float64),
        ("loss beside a large constant", lambda: mlp(nn.Tanh()), flat, lambda m, b: 1e3 + classify(m, b), torch.float64),
        ("scalar loss", lambda: mlp(nn.SiLU()), flat, lambda m, b: classify(m, b).mean(), torch.float64),
        ("squares", lambda: mlp(nn.Softplus()), flat, squares, torch.float64),
        ("almost no loss, float32", confident, partial(certain, torch.float32), classify, torch.float32),
        ("almost no loss, bfloat16", confident, partial(certain, torch.bfloat16), classify, torch.bfloat16),
        ("float32, softmax", lambda: mlp(nn.Softmax(1)), single, classify, torch.float32),
        ("float32, forty layers", deep, single, classify, torch.float32),
    ]  # fmt: skip
    return cases + [Case(name, partial(made, make, batch, loss, dtype)) for name, make, batch, loss, dtype in plain]


RIGHT = _right()
