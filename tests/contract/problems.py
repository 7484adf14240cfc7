"""Small models of every kind that has broken a training method, each with a loss and a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dldw.nn import ReversibleBlock, ReversibleSequential
from dldw.nn.likelihood import exact_log_partition
from dldw.nn.rbm import RBM

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass
class Problem:
    """A model, a loss and a batch; unpacks to the three."""

    model: nn.Module
    loss: Loss
    batch: Any

    def __iter__(self):
        return iter((self.model, self.loss, self.batch))

    @property
    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def averaged(self) -> Loss:
        """The loss as a scalar, the mean over the batch."""
        loss = self.loss
        return lambda model, batch: loss(model, batch).mean()

    def forward(self) -> Tensor:
        """What counts as one forward pass."""
        return self.loss(self.model, self.batch)

    def autograd(self) -> list[Tensor]:
        """dL/dw by autograd, the oracle; ``.grad`` and the buffers stay as they are."""
        buffers = [b.clone() for b in self.model.buffers()]
        value = self.loss(self.model, self.batch).mean()
        gradient = torch.autograd.grad(value, self.trainable, allow_unused=True, materialize_grads=True)
        for buffer, kept in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(kept)
        return list(gradient)

    def value(self) -> float:
        """The mean loss; the buffers stay as they are."""
        buffers = [b.clone() for b in self.model.buffers()]
        with torch.no_grad():
            value = float(self.loss(self.model, self.batch).double().mean())
        for buffer, kept in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(kept)
        return value


Build = Callable[..., Problem]
"""Makes a problem of weights of a type, float64 by default."""


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """One value per example [B]."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def mean_cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A scalar."""
    return F.cross_entropy(model(batch[0]), batch[1])


class Tempered(nn.Module):
    """Divides by a learned temperature: a parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return x / self.temperature


class Tied(nn.Module):
    """A tiny language model whose output layer is its embedding."""

    def __init__(self, tokens: int = 7, width: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.body = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.head = nn.Linear(width, tokens)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        assert self.head.weight is self.embedding.weight
        return self.head(self.body(self.embedding(tokens)))


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Sequential(nn.Linear(width, width), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.norm(x))


class Recurrent(nn.Module):
    """An LSTM and a head that reads its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 3, batch_first=True)
        self.head = nn.Sequential(nn.Tanh(), nn.Linear(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    """``nn.MultiheadAttention`` over a short sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Sequential(nn.Tanh(), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class CausalAttention(nn.Module):
    """``scaled_dot_product_attention`` as it is called in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.head = nn.Sequential(nn.Tanh(), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4)
        return self.head(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2).mean(1))


class Counting(nn.Module):
    """Buffers of its own: one written in place and one replaced in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(()))
        self.inner = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * x.mean()
        return self.inner(x)


class Transformer(nn.Module):
    """``nn.TransformerEncoderLayer``, which takes a fused path in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.head = nn.Sequential(nn.Tanh(), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


def _classification(make: Callable[[], nn.Module], *shape: int, dtype: torch.dtype, tokens: int = 0) -> Problem:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = make().to(dtype)
        x = torch.randint(tokens, shape) if tokens else torch.randn(*shape).to(dtype)
        y = torch.randint(tokens or 3, (shape[0],))
    return Problem(model, cross_entropy, (x, y))


def mlp(dtype: torch.dtype = torch.float64) -> Problem:
    return _classification(
        lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), Tempered()), 6, 5, dtype=dtype
    )


def perceptron_criterion(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """What a perceptron without a margin minimises, as its definition has it, [B]."""
    scores, y = model(batch[0]), batch[1]
    lead = torch.stack([s[k] - torch.cat([s[:k], s[k + 1 :]]).max() for s, k in zip(scores, y, strict=True)])
    return torch.where(lead <= 0, -lead, 0 * lead)


def linear_layer(dtype: torch.dtype = torch.float64) -> Problem:
    problem = _classification(lambda: nn.Linear(5, 3), 6, 5, dtype=dtype)
    problem.loss = perceptron_criterion
    return problem


def linear_layer_on_noisy_features(dtype: torch.dtype = torch.float64) -> Problem:
    """What is fixed counts, normalises by the batch and drops out."""

    def make() -> nn.Module:
        fixed = [Counting(), nn.Linear(3, 16).requires_grad_(False), nn.BatchNorm1d(16, affine=False), nn.Dropout(0.5)]
        return nn.Sequential(fixed[0].requires_grad_(False), *fixed[1:], nn.Linear(16, 3))

    problem = _classification(make, 6, 5, dtype=dtype)
    problem.loss = perceptron_criterion
    return problem


class Machine(Problem):
    """A restricted Boltzmann machine, whose ``loss`` is what contrastive divergence approximates the gradient of."""

    def value(self) -> float:
        """What contrastive divergence returns, the error of a reconstruction, with the hidden units averaged."""
        with torch.no_grad():
            return float((self.batch - self.model.visible_mean(self.model(self.batch))).square().mean())

    def forward(self) -> Tensor:
        """One product with the weights; the likelihood is a sum over all hidden states."""
        return self.model(self.batch)


def _machine(dtype: torch.dtype, **settings: Any) -> Machine:
    def likelihood(model: nn.Module, batch: Tensor) -> Tensor:
        return model.free_energy(batch) + exact_log_partition(model)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = RBM(5, 4, **settings)
        nn.init.normal_(model.weight, std=0.3)
        return Machine(model.to(dtype), likelihood, torch.rand(6, 5).round().to(dtype))


def machine(dtype: torch.dtype = torch.float64) -> Machine:
    return _machine(dtype)


def gaussian_machine(dtype: torch.dtype = torch.float64) -> Machine:
    return _machine(dtype, visible_units="gaussian", learn_variance=True)


LOSS_FREE: dict[str, tuple[Build, ...]] = {
    "contrastive-divergence": (machine, gaussian_machine),
    "perceptron": (linear_layer, linear_layer_on_noisy_features),
}
"""What a method that needs no loss is at home on. ``Problem.loss`` is the objective it claims to descend: an oracle."""


def homes(method: str) -> tuple[Build, ...]:
    """The problems that a registered method is at home on; the first is where it keeps the contract."""
    return LOSS_FREE.get(method, (mlp,))


def dropout(dtype: torch.dtype = torch.float64) -> Problem:
    return _classification(
        lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)), 6, 5, dtype=dtype
    )


def tied(dtype: torch.dtype = torch.float64) -> Problem:
    return _classification(Tied, 6, dtype=dtype, tokens=7)


def conv(dtype: torch.dtype = torch.float64) -> Problem:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3))

    return _classification(make, 4, 1, 6, 6, dtype=dtype)


def residual(dtype: torch.dtype = torch.float64) -> Problem:
    return _classification(
        lambda: nn.Sequential(nn.Linear(5, 3), Block(3), Block(3), Block(3), nn.Linear(3, 3)), 6, 5, dtype=dtype
    )


def batch_norm(dtype: torch.dtype = torch.float64) -> Problem:
    return _classification(
        lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)), 6, 5, dtype=dtype
    )


def counting(dtype: torch.dtype = torch.float64) -> Problem:
    return _classification(Counting, 6, 5, dtype=dtype)


def reversible(dtype: torch.dtype = torch.float64) -> Problem:
    def make() -> nn.Module:
        branches = [nn.Sequential(nn.Linear(2, 2), nn.Tanh()) for _ in range(4)]
        blocks = [ReversibleBlock(branches[0], branches[1]), ReversibleBlock(branches[2], branches[3])]
        return nn.Sequential(nn.Linear(5, 4), ReversibleSequential(*blocks), nn.Linear(4, 3))

    return _classification(make, 6, 5, dtype=dtype)


def lstm(dtype: torch.dtype = torch.float64) -> Problem:
    return _classification(Recurrent, 3, 4, 2, dtype=dtype)


def attention(dtype: torch.dtype = torch.float64) -> Problem:
    return _classification(Attention, 3, 4, 4, dtype=dtype)


def attention_in_eval_mode(dtype: torch.dtype = torch.float64) -> Problem:
    return _classification(lambda: Attention().eval(), 3, 4, 4, dtype=dtype)


def causal_attention(dtype: torch.dtype = torch.float64) -> Problem:
    return _classification(CausalAttention, 3, 4, 4, dtype=dtype)


def transformer_in_eval_mode(dtype: torch.dtype = torch.float64) -> Problem:
    return _classification(lambda: Transformer().eval(), 3, 4, 4, dtype=dtype)


ALL = [
    mlp,
    dropout,
    tied,
    conv,
    residual,
    batch_norm,
    counting,
    reversible,
    lstm,
    attention,
    attention_in_eval_mode,
    causal_attention,
    transformer_in_eval_mode,
]
"""Every kind of model."""

BYPASSED = {"residual", "reversible", "transformer_in_eval_mode"}
"""Which are no chain of layers: something goes around one."""

MIXED = {"batch_norm"}
"""Where the loss of one example depends on the others."""

NOT_BATCHED = {"batch_norm", "lstm"}
"""Where ``torch.func.vmap`` cannot go."""


class LinearProblem(Problem):
    """L_i = c_i · (W x_i + b), linear in the weights and in what the layer puts out, with 3 nodes and 8 examples."""

    nodes = 3

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(6)
        x, c = (torch.randn(8, n, dtype=torch.float64, generator=generator) for n in (4, self.nodes))

        def loss(model: nn.Module, batch: Any) -> Tensor:
            return (model(batch[0]) * batch[1]).sum(1)

        super().__init__(nn.Linear(4, self.nodes).double(), loss, (x, c))

    @property
    def each(self) -> Tensor:
        """The gradient of every example's loss [8, 15]."""
        x, c = self.batch
        return torch.cat([torch.einsum("ni,nj->nij", c, x).flatten(1), c], 1)

    @property
    def gradient(self) -> Tensor:
        """Their mean [15]."""
        return self.each.mean(0)


class Quadratic(nn.Module):
    """Six weights in two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = nn.Sequential(nn.Identity(), nn.Identity())
        self.a = nn.Parameter(torch.tensor([[0.4, -1.1], [0.8, 0.3]], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([-0.6, 0.9], dtype=torch.float64))

    def forward(self, _: Any = None) -> Tensor:
        return self.chain(torch.cat([self.a.reshape(-1), self.b]))


class QuadraticProblem(Problem):
    """L(w) = ½ wᵀHw + bᵀw + c, so that dL/dw = Hw + b, with everything known in closed form."""

    def __init__(self) -> None:
        root = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) / 3
        self.hessian = root @ root.T
        self.slope = torch.tensor([0.7, -0.9, 0.5, 1.1, -0.4, 0.8], dtype=torch.float64)

        def loss(model: nn.Module, batch: Any) -> Tensor:
            w = model(batch)
            return 0.5 * (w @ (self.hessian @ w)) + self.slope @ w + 0.3

        super().__init__(Quadratic(), loss, None)

    @property
    def gradient(self) -> Tensor:
        """Hw + b, [6]."""
        with torch.no_grad():
            return self.hessian @ self.model() + self.slope
