"""Reversible layers beside plain autograd, torch's checkpoint and four packages: right in ordinary use? time, memory, drift.

Every package gets the same branches f and g (LayerNorm, Linear, GELU, Linear) and its own options for exactness. Times
alternate and are divided by those of plain autograd step by step; memory is the allocator's peak of a step above weights and
their gradients.

    pip install --no-deps memcnn revlib revtorch reformer-pytorch && pip install einops axial-positional-embedding \
        product-key-memory local-attention colt5-attention hyper-connections torch-einops-utils   # missing ones are left out
    python benchmarks/reversible.py [--threads 1] [--repeats 15] [--depths 8 16 32 64] [--out FILE]
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from raw import machine, save
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from dldw.compare.meter import peak_bytes
from dldw.nn import ReversibleBlock, ReversibleSequential

Pairs = list[tuple[nn.Module, nn.Module]]
Run = Callable[[Tensor], Tensor]


class Plain(nn.Module):
    """The residual sums for autograd, the reference of all; with ``again`` each block under torch's checkpoint."""

    def __init__(self, pairs: Pairs, again: bool = False) -> None:
        super().__init__()
        self.pairs, self.again = nn.ModuleList(nn.ModuleList(p) for p in pairs), again

    def forward(self, x: Tensor) -> Tensor:
        streams = x.chunk(2, -1)
        for f, g in self.pairs:
            streams = checkpoint(sums, f, g, *streams, use_reentrant=False) if self.again else sums(f, g, *streams)
        return torch.cat(streams, -1)


def sums(f: nn.Module, g: nn.Module, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    y1 = x1 + f(x2)
    return y1, x2 + g(y1)


def dldw(pairs: Pairs, **options) -> nn.Module:
    return ReversibleSequential(*(ReversibleBlock(f, g) for f, g in pairs), dim=-1, **options)


def memcnn(pairs: Pairs) -> nn.Module:
    from memcnn import AdditiveCoupling, InvertibleModuleWrapper

    return nn.Sequential(
        *(InvertibleModuleWrapper(AdditiveCoupling(f, g, split_dim=2), preserve_rng_state=True) for f, g in pairs)
    )


def revlib(pairs: Pairs) -> nn.Module:
    import revlib

    return revlib.ReversibleSequential(*(branch for pair in pairs for branch in pair), split_dim=2)


def revtorch(pairs: Pairs) -> nn.Module:
    from revtorch import ReversibleBlock, ReversibleSequence

    blocks = (ReversibleBlock(f, g, split_along_dim=2, fix_random_seed=True) for f, g in pairs)
    return ReversibleSequence(nn.ModuleList(blocks))


def reformer(pairs: Pairs) -> nn.Module:
    from reformer_pytorch.reversible import ReversibleSequence

    chain = ReversibleSequence(nn.ModuleList(nn.ModuleList(pair) for pair in pairs))
    chain.register_forward_pre_hook(lambda m, args, kwargs: (args, {"arg_route": (False, False)}), with_kwargs=True)
    return chain


PLAIN: dict[str, Callable[[Pairs], nn.Module]] = {"plain": Plain, "torch checkpoint": lambda p: Plain(p, True)}
REVERSIBLE: dict[str, Callable[[Pairs], nn.Module]] = {
    "dldw": dldw, "memcnn": memcnn, "revlib": revlib, "RevTorch": revtorch, "reformer-pytorch": reformer,
}  # fmt: skip


# Right in ordinary use


class Branch(nn.Module):
    def __init__(self, width: int = 4, drop: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(width, width), nn.Dropout(drop)
        self.norm = nn.BatchNorm1d(width) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        if self.norm is not None:
            x = self.norm(x.flatten(0, -2)).view_as(x)
        return torch.tanh(self.drop(x))


class Ordinary:
    """One package under test, beside the sums by hand on copies of the same branches."""

    def __init__(self, make: Callable[[Pairs], nn.Module]) -> None:
        self.make = make

    def both(self, *, dtype: torch.dtype = torch.float64, shared: bool = False, frozen: bool = False, **branch):
        torch.manual_seed(0)
        pairs = [(Branch(**branch).to(dtype), Branch(**branch).to(dtype)) for _ in range(3)]
        if shared:
            pairs[2][0].linear.weight = pairs[0][0].linear.weight
        if frozen:
            pairs[1][0].requires_grad_(False)
        other = copy.deepcopy(pairs)
        return (self.make(pairs), pairs), (Plain(other), other)

    @staticmethod
    def input(dtype: torch.dtype = torch.float64, grad: bool = True) -> Tensor:
        return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_(grad)

    def error(self, run: Callable[[nn.Module, Pairs, Tensor], None], *, grad: bool = True, **options) -> float:
        """The relative error of all gradients together, after ``run`` left them in ``.grad``."""
        found = []
        for module, pairs in self.both(**options):
            x = self.input(options.get("dtype", torch.float64), grad)
            torch.manual_seed(2)
            run(module, pairs, x)
            weights = [p for pair in pairs for branch in pair for p in branch.parameters() if p.requires_grad]
            found.append(
                torch.cat([(torch.zeros_like(t) if t.grad is None else t.grad).flatten() for t in (x, *weights)])
            )
        return float((found[0] - found[1]).norm() / found[1].norm())


def backward(forward: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[nn.Module, Pairs, Tensor], None]:
    return lambda module, pairs, x: forward(module, x * 1).square().mean().backward()


def through_grad(module: nn.Module, pairs: Pairs, x: Tensor) -> None:
    weights = [p for pair in pairs for branch in pair for p in branch.parameters()]
    found = torch.autograd.grad(module(x * 1).square().mean(), [x, *weights])
    for t, g in zip([x, *weights], found, strict=True):
        t.grad = g


def hooked(module: nn.Module, pairs: Pairs, x: Tensor) -> None:
    for pair in pairs:
        for branch in pair:
            branch.linear.weight.register_hook(lambda g: 2 * g)
    module(x * 1).square().mean().backward()


def autocast_replayed(ordinary: Ordinary) -> float:
    """Whether the second computation of a branch runs in the precision of the first."""
    (module, pairs), _ = ordinary.both(dtype=torch.float32)
    seen = []
    pairs[0][0].linear.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(ordinary.input(torch.float32) * 1).float().square().mean()
    loss.backward()
    return 0.0 if set(seen) == {torch.bfloat16} else 1.0


def statistics_once(ordinary: Ordinary) -> float:
    buffers = []
    for module, pairs in ordinary.both(norm=True):
        module(ordinary.input() * 1).sum().backward()
        buffers.append(torch.cat([b.double().flatten() for pair in pairs for branch in pair for b in branch.buffers()]))
    return float((buffers[0] - buffers[1]).norm() / buffers[1].norm())


def random_state(ordinary: Ordinary) -> float:
    states = []
    for module, _ in ordinary.both(drop=0.5):
        torch.manual_seed(3)
        module(ordinary.input() * 1).sum().backward()
        states.append(torch.get_rng_state())
    return 0.0 if torch.equal(*states) else 1.0


def no_graph(ordinary: Ordinary) -> float:
    (module, _), (plain, _) = ordinary.both()
    with torch.no_grad():
        found, expected = module(ordinary.input() * 1), plain(ordinary.input() * 1)
    return 1.0 if found.requires_grad else float((found - expected).norm() / expected.norm())


def in_place(ordinary: Ordinary) -> float:
    (module, _), _ = ordinary.both()
    y = module(ordinary.input() * 1)
    loss = y.sum()
    with torch.no_grad():
        y.mul_(2)
    return must_raise(loss.backward)


def second_derivative(ordinary: Ordinary) -> float:
    def penalty(module: nn.Module, pairs: Pairs, x: Tensor) -> None:
        (g,) = torch.autograd.grad(module(x * 1).square().mean(), [x], create_graph=True)
        g.square().sum().backward()

    try:
        return ordinary.error(penalty)
    except (RuntimeError, ValueError, AssertionError):
        return 0.0


def two_losses(module: nn.Module, pairs: Pairs, x: Tensor) -> None:
    loss = module(x * 1).square().mean()
    loss.backward(retain_graph=True)
    loss.backward()


def distributed(ordinary: Ordinary, **options) -> float:
    def run(module: nn.Module, pairs: Pairs, x: Tensor) -> None:
        parallel = DistributedDataParallel(module, **options)
        parallel(x * 1).square().mean().backward()

    with tempfile.TemporaryDirectory() as directory:
        dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=0, world_size=1)
        return ordinary.error(run)


def must_raise(action: Callable[[], object]) -> float:
    try:
        action()
    except RuntimeError:
        return 0.0
    return 1.0


CHECKS: dict[str, Callable[[Ordinary], float]] = {
    "gradients": lambda o: o.error(backward(lambda m, x: m(x))),
    "dropout": lambda o: o.error(backward(lambda m, x: m(x)), drop=0.5),
    "the random state after dropout": random_state,
    "batch norm, gradients": lambda o: o.error(backward(lambda m, x: m(x)), norm=True),
    "batch norm, statistics once": statistics_once,
    "autocast": autocast_replayed,
    "two forwards before one backward": lambda o: o.error(backward(lambda m, x: m(x) * m(2 * x))),
    "the same with dropout": lambda o: o.error(backward(lambda m, x: m(x) * m(2 * x)), drop=0.5),
    "used twice": lambda o: o.error(backward(lambda m, x: m(torch.sin(m(x))))),
    "autograd.grad of parameters": lambda o: o.error(through_grad),
    "two backwards, retained graph": lambda o: o.error(two_losses),
    "frozen parameters": lambda o: o.error(backward(lambda m, x: m(x)), frozen=True),
    "shared parameters": lambda o: o.error(backward(lambda m, x: m(x)), shared=True),
    "input without gradient": lambda o: o.error(backward(lambda m, x: m(x)), grad=False),
    "rev(x) + x": lambda o: o.error(backward(lambda m, x: m(x) + x)),
    "no_grad": no_graph,
    "hooks of parameters": lambda o: o.error(hooked),
    "DDP": distributed,
    "DDP, find_unused_parameters": lambda o: distributed(o, find_unused_parameters=True),
    "a change of the output in place is caught": in_place,
    "second derivative refused or right": second_derivative,
}


def verdict(check: Callable[[Ordinary], float], make: Callable[[Pairs], nn.Module]) -> str:
    """What came of a check, in a process of its own, as some packages bring theirs down."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, outcome(check, make).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    return text or f"ended by signal {os.WTERMSIG(status)}"


def outcome(check: Callable[[Ordinary], float], make: Callable[[Pairs], nn.Module]) -> str:
    try:
        error = check(Ordinary(make))
    except Exception as problem:
        return f"{type(problem).__name__}: {str(problem).splitlines()[0][:60] if str(problem) else ''}"
    return "ok" if error < 1e-6 else "no" if error == 1.0 else f"{error:.0%} wrong" if error < 10 else "wrong"


# Time and memory, and drift


def branch(width: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def step(module: nn.Module, x: Tensor) -> Callable[[], None]:
    def run() -> None:
        module.zero_grad(set_to_none=False)
        x.grad = None
        module(x * 1).square().mean().backward()

    return run


def table(
    makers: dict[str, Callable[[Pairs], nn.Module]], depth: int, rows: int, width: int, repeats: int
) -> list[dict]:
    x = torch.randn(1, rows, 2 * width, requires_grad=True)
    torch.manual_seed(0)
    pairs = [(branch(width, 4 * width), branch(width, 4 * width)) for _ in range(depth)]
    modules = {name: make(copy.deepcopy(pairs)) for name, make in makers.items()}
    steps = {name: step(module, x) for name, module in modules.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, run in steps.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    out = []
    for name, run in steps.items():
        ratios = [a / b for a, b in zip(times[name][1:], times["plain"][1:], strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        out.append(
            {"depth": depth, "name": name, "ratio": ratio, "low": low, "high": high,
             "milliseconds": 1e3 * statistics.median(times[name][1:]), "peak_bytes": peak_bytes(run, modules[name])}
        )  # fmt: skip
    return out


def drift(makers: dict[str, Callable[[Pairs], nn.Module]], depth: int, rows: int, width: int) -> list[dict]:
    """Relative error of the gradient in float32 against plain autograd in float64."""
    torch.manual_seed(0)
    pairs = [(branch(width, 4 * width), branch(width, 4 * width)) for _ in range(depth)]
    x = torch.randn(1, rows, 2 * width)
    exact = gradient(Plain, copy.deepcopy(pairs), x, torch.float64)
    return [
        {"depth": depth, "name": name, "error": float((found - exact).norm() / exact.norm())}
        for name, make in makers.items()
        for found in [gradient(make, copy.deepcopy(pairs), x, torch.float32)]
    ]


def gradient(make: Callable[[Pairs], nn.Module], pairs: Pairs, x: Tensor, dtype: torch.dtype) -> Tensor:
    branches = [branch.to(dtype) for pair in pairs for branch in pair]
    x = x.to(dtype, copy=True).requires_grad_()
    make(pairs)(x * 1).square().mean().backward()
    return torch.cat(
        [x.grad.flatten(), *(p.grad.flatten() for branch in branches for p in branch.parameters())]
    ).double()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--depths", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--only-ordinary", action="store_true", help="leave time, memory and drift out")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    installed = {}
    for name, make in REVERSIBLE.items():
        try:
            make([(Branch(), Branch())])
            installed[name] = make
        except ImportError as missing:
            print(f"{name} is left out: {missing}")
    ordinary = {
        what: {name: verdict(check, make) for name, make in installed.items()} for what, check in CHECKS.items()
    }
    for what, row in ordinary.items():
        print(f"{what:42s}" + "  ".join(f"{name}: {text}" for name, text in row.items()))
    results: dict[str, object] = {"ordinary use": ordinary}
    if not arguments.only_ordinary:
        makers = PLAIN | installed | {"dldw, keep_last": lambda p: dldw(p, keep_last=True)}
        rows = [
            r for d in arguments.depths for r in table(makers, d, arguments.rows, arguments.width, arguments.repeats)
        ]
        for r in rows:
            print(
                f"{r['depth']:3d} {r['name']:18s} {r['ratio']:5.2f} [{r['low']:.2f}, {r['high']:.2f}] × plain "
                f"{r['milliseconds']:8.1f} ms {r['peak_bytes'] / 2**20:8.2f} MiB"
            )
        drifts = drift(PLAIN | installed, 64, 64, arguments.width)
        for d in drifts:
            print(f"{d['depth']:3d} {d['name']:18s} gradient off by {d['error']:.1e} in float32")
        results |= {"time and memory": rows, "drift": drifts}
    save(arguments.out, {"machine": machine(arguments.threads, torch=torch.__version__), "results": results})


if __name__ == "__main__":
    main()
