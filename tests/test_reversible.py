"""Reversible layers are right in ordinary use: every figure is held against the same sums written out for plain autograd."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import dldw
from dldw.compare.budget import parse_budget
from dldw.compare.depth import Deepening
from dldw.compare.meter import peak_bytes
from dldw.compare.plan import make_plan
from dldw.compare.spec import parse
from dldw.errors import DldwError
from dldw.nn import ReversibleBlock, ReversibleSequential
from dldw.tasks import load_task

MODES = ("reversible", "checkpoint", "plain")
WIDTH = 4


class Branch(nn.Module):
    """What a branch may be made of: a norm, a product, something random, a non-linearity."""

    def __init__(self, width: int = WIDTH, drop: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.drop(self.norm(self.linear(x))))


def chain(make: Callable[[], nn.Module] = Branch, depth: int = 3, dtype: torch.dtype = torch.float64, **options):
    torch.manual_seed(0)
    return ReversibleSequential(*(ReversibleBlock(make(), make()) for _ in range(depth)), **options).to(dtype)


def by_hand(blocks: Iterable[ReversibleBlock], x: Tensor, dim: int = 1) -> Tensor:
    """The oracle: the residual sums, with nothing of the code under test but f and g."""
    x1, x2 = x.chunk(2, dim)
    for block in blocks:
        x1 = x1 + block.f(x2)
        x2 = x2 + block.g(x1)
    return torch.cat((x1, x2), dim)


def inputs(rows: int = 6, width: int = 2 * WIDTH, dtype: torch.dtype = torch.float64, grad: bool = True) -> Tensor:
    return torch.randn(rows, width, dtype=dtype, generator=torch.Generator().manual_seed(3)).requires_grad_(grad)


def gradients(module: nn.Module, x: Tensor, run: Callable[[], Tensor]) -> list[Tensor | None]:
    """Of the mean square of what ``run`` gives, in ``x`` and in the parameters, under one random state."""
    module.zero_grad()
    x.grad = None
    torch.manual_seed(7)
    run().square().mean().backward()
    return [None if t.grad is None else t.grad.clone() for t in (x, *module.parameters())]


def same(a: Iterable[Tensor | None], b: Iterable[Tensor | None], atol: float = 1e-10) -> bool:
    return all(
        (p is None) == (q is None) and (p is None or bool(torch.allclose(p, q, rtol=0, atol=atol)))
        for p, q in zip(a, b, strict=True)
    )


def agrees(module: ReversibleSequential, x: Tensor | None = None) -> bool:
    """Whether the reversible gradients are those of the sums by hand."""
    x = inputs() if x is None else x
    return same(gradients(module, x, lambda: module(x)), gradients(module, x, lambda: by_hand(module, x)))


# What it computes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("keep_last", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_outputs_and_gradients_are_those_of_the_sums_by_hand(mode, keep_last, depth):
    module = chain(depth=depth, backward=mode, keep_last=keep_last)
    x = inputs()
    assert torch.equal(module(x), by_hand(module, x))
    assert agrees(module)


def test_at_64_blocks_in_float64_gradients_are_equal_to_1e_10():
    assert agrees(chain(depth=64))


@pytest.mark.parametrize("mode", MODES)
def test_a_block_alone_does_what_a_chain_of_one_does(mode):
    block = ReversibleBlock(Branch(), Branch(), backward=mode).double()
    x = inputs()
    assert torch.equal(block(x), by_hand([block], x))
    assert same(gradients(block, x, lambda: block(x)), gradients(block, x, lambda: by_hand([block], x)))


def test_the_inverse_gives_the_input_back():
    module, x = chain(depth=6), inputs()
    assert torch.allclose(module.inverse(module(x)), x, atol=1e-12)
    first, second = module[0](tuple(x.chunk(2, 1)))
    assert torch.allclose(torch.cat(module[0].inverse((first, second)), 1), x, atol=1e-14)


@pytest.mark.parametrize("dim", [0, 1, -1, 2])
def test_the_input_is_split_along_the_chosen_dimension(dim):
    module = chain(lambda: nn.Sequential(nn.Tanh(), nn.Dropout(0.1)), dim=dim)
    x = torch.randn(4, 2, 6, dtype=torch.float64, requires_grad=True)
    assert same(gradients(module, x, lambda: module(x)), gradients(module, x, lambda: by_hand(module, x, dim)))


def test_streams_may_be_given_as_a_pair_and_differ_in_shape():
    block = ReversibleBlock(nn.Linear(5, 3), nn.Linear(3, 5)).double()
    module = ReversibleSequential(block, backward="reversible")
    x1, x2 = (torch.randn(2, n, dtype=torch.float64, requires_grad=True) for n in (3, 5))
    y1, y2 = module((x1, x2))
    expected = x1 + block.f(x2)
    expected = expected, x2 + block.g(expected)
    found = torch.autograd.grad(y1.sum() + y2.square().sum(), [x1, x2, *block.parameters()])
    assert same(
        found, torch.autograd.grad(expected[0].sum() + expected[1].square().sum(), [x1, x2, *block.parameters()])
    )


def test_a_stream_that_the_loss_does_not_use_has_no_part_in_it():
    module = chain()
    x = inputs()
    first = gradients(module, x, lambda: module(tuple(x.chunk(2, 1)))[0])
    assert same(first, gradients(module, x, lambda: by_hand(module, x).chunk(2, 1)[0]))


@pytest.mark.parametrize("mode", MODES)
def test_momentum_residual_networks_are_blocks_that_keep_a_share(mode):
    gamma = 0.8
    fs = [Branch().double() for _ in range(4)]
    module = ReversibleSequential(*(ReversibleBlock(f, nn.Identity(), keep=(gamma, 1.0)) for f in fs), backward=mode)
    x = inputs()

    def paper() -> Tensor:
        v, state = x.chunk(2, 1)
        for f in fs:
            v = gamma * v + f(state)
            state = state + v
        return torch.cat((v, state), 1)

    assert torch.allclose(module.inverse(module(x)), x, atol=1e-12)
    assert same(gradients(module, x, lambda: module(x)), gradients(module, x, paper))


# Memory and precision


def test_memory_does_not_grow_with_depth():
    def peak(depth: int, mode: str) -> int:
        module = chain(depth=depth, dtype=torch.float32, backward=mode)
        x = inputs(rows=8192, dtype=torch.float32)
        for p in (x, *module.parameters()):
            p.grad = torch.zeros_like(p)
        return peak_bytes(lambda: module(x).sum().backward(), module)

    assert peak(64, "reversible") < 1.02 * peak(8, "reversible")
    assert peak(8, "plain") > 3 * peak(8, "reversible")


def test_at_64_blocks_in_float32_the_gradient_is_at_most_twice_as_far_off_as_that_of_plain_autograd():
    module, x = chain(depth=64), inputs()
    exact = gradients(module, x, lambda: by_hand(module, x))
    module, x = module.float(), inputs().float().detach().requires_grad_()

    def error(run: Callable[[], Tensor]) -> float:
        found = gradients(module, x, run)
        return max(float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))

    assert error(lambda: module(x)) <= 2 * error(lambda: by_hand(module, x))


def test_anchors_bound_the_drift_in_low_precision_and_the_check_tells_of_it():
    x = inputs(rows=64, dtype=torch.bfloat16)

    def drift(**options) -> float:
        module = chain(depth=24, dtype=torch.bfloat16, drift_check=0.0, **options)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            module(x).sum().backward()
        return max(float(str(w.message).partition("relative error of ")[2].partition(",")[0]) for w in caught)

    assert drift(anchor_every=4) < 0.5 * drift()


def test_the_drift_check_is_silent_within_its_bound():
    module = chain(depth=8, drift_check=1e-9, anchor_every=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert agrees(module)


def test_the_drift_check_warns_with_the_figure():
    module = chain(depth=8, dtype=torch.bfloat16, drift_check=1e-6)
    with pytest.warns(RuntimeWarning, match=r"the input of a .* recomputed with a relative error of \d\.\de-0"):
        module(inputs(dtype=torch.bfloat16)).sum().backward()


@pytest.mark.parametrize("options", [{"anchor_every": 1}, {"anchor_every": 2}, {"anchor_every": 2, "keep_last": True}])
def test_anchors_change_no_gradient(options):
    assert agrees(chain(depth=5, **options))


# Layers that are not functions of their input alone


@pytest.mark.parametrize("mode", ["reversible", "checkpoint"])
def test_dropout_has_the_same_mask_in_both_passes_and_the_random_state_ends_as_with_plain_autograd(mode):
    module, x = chain(lambda: Branch(drop=0.5), backward=mode), inputs()
    found = gradients(module, x, lambda: module(x))
    after = torch.get_rng_state()
    assert same(found, gradients(module, x, lambda: by_hand(module, x)))
    assert torch.equal(after, torch.get_rng_state())


@pytest.mark.parametrize("mode", ["reversible", "checkpoint"])
def test_batch_norm_updates_its_statistics_once(mode):
    module, x = chain(lambda: Branch(norm=True), backward=mode), inputs()
    other = copy.deepcopy(module)
    found = gradients(module, x, lambda: module(x))
    assert same(found, gradients(other, x, lambda: by_hand(other, x)))
    assert all(torch.equal(a, b) for a, b in zip(module.buffers(), other.buffers(), strict=True))


def test_a_buffer_that_is_read_and_updated_is_read_as_it_was():
    make = lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))  # noqa: E731
    module, x = chain(make), inputs()
    other = copy.deepcopy(module)
    assert same(gradients(module, x, lambda: module(x)), gradients(other, x, lambda: by_hand(other, x)))


def test_evaluation_mode_set_between_the_passes_changes_nothing():
    module, x = chain(lambda: Branch(drop=0.5)), inputs()

    def run(forward: Callable[[Tensor], Tensor]) -> Tensor:
        module.train()
        y = forward(x)
        module.eval()
        return y

    found = gradients(module, x, lambda: run(module))
    assert same(found, gradients(module, x, lambda: run(lambda x: by_hand(module, x))))
    assert not any(m.training for m in module.modules())


def test_recurrent_branches_keep_their_weights():
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0]

    module = chain(Last, dim=-1)
    x = torch.randn(2, 5, 2 * WIDTH, dtype=torch.float64, requires_grad=True)
    assert same(gradients(module, x, lambda: module(x)), gradients(module, x, lambda: by_hand(module, x, -1)))


@pytest.mark.parametrize("mode", MODES)
def test_autocast_is_replayed_with_streams_in_float32(mode):
    module = chain(dtype=torch.float32, backward=mode)
    x = inputs(dtype=torch.float32)
    seen = []
    module[0].f.linear.register_forward_hook(lambda m, args, out: seen.append(out.dtype))

    def run(forward: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(x)

    found = gradients(module, x, lambda: run(module))
    assert set(seen) == {torch.bfloat16}
    expected = gradients(module, x, lambda: run(lambda x: by_hand(module, x)))
    exact = gradients(module, x, lambda: by_hand(module, x))
    assert same(found, expected, atol=1e-5)
    assert not same(expected, exact, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x.bfloat16()).dtype == torch.float32


def test_autocast_leaves_weights_that_are_used_outside_their_gradient():
    module, x = chain(dtype=torch.float32, depth=1), inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        module(x)
        outside = module[0].f(x[:, :WIDTH])
    assert all(g is not None for g in torch.autograd.grad(outside.float().sum(), module[0].f.parameters()))


# Arguments


class Masked(nn.Module):
    """A branch with an argument of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor, more: dict | None = None) -> Tensor:
        out = torch.tanh(self.linear(x)) * mask
        return out if more is None else more["scale"] * out + (more["bias"][0] if more["name"] == "shifted" else 0)


@pytest.mark.parametrize("mode", MODES)
def test_each_branch_gets_its_own_keyword_arguments_and_tensors_in_them_their_gradient(mode):
    module, x = chain(Masked, backward=mode), inputs()
    mask = (torch.arange(6 * WIDTH) % 2).reshape(6, WIDTH).double()
    bias = torch.full((WIDTH,), 0.3, dtype=torch.float64, requires_grad=True)
    f_kwargs, g_kwargs = {"mask": mask}, {"mask": 1 - mask, "more": {"scale": 0.5, "bias": [bias], "name": "shifted"}}

    def sums() -> Tensor:
        x1, x2 = x.chunk(2, 1)
        for block in module:
            x1 = x1 + block.f(x2, **f_kwargs)
            x2 = x2 + block.g(x1, **g_kwargs)
        return torch.cat((x1, x2), 1)

    def run() -> Tensor:
        return module(x, f_kwargs=f_kwargs, g_kwargs=g_kwargs)

    found = [*gradients(module, x, run), bias.grad]
    bias.grad = None
    assert same(found, [*gradients(module, x, sums), bias.grad])
    assert torch.allclose(module.inverse(run(), f_kwargs=f_kwargs, g_kwargs=g_kwargs), x, atol=1e-12)


# Graphs


def test_two_passes_before_one_backward_know_nothing_of_each_other():
    module, x = chain(lambda: Branch(drop=0.3, norm=True)), inputs()
    other = copy.deepcopy(module)
    found = gradients(module, x, lambda: module(x) * module(2 * x))
    assert same(found, gradients(other, x, lambda: by_hand(other, x) * by_hand(other, 2 * x)))


def test_a_chain_may_be_used_twice_in_one_pass():
    module, x = chain(), inputs()
    found = gradients(module, x, lambda: module(torch.sin(module(x))))
    assert same(found, gradients(module, x, lambda: by_hand(module, torch.sin(by_hand(module, x)))))


def test_a_block_may_stand_in_a_chain_twice():
    block = ReversibleBlock(Branch(), Branch()).double()
    module, x = ReversibleSequential(block, ReversibleBlock(block.g, block.f), block), inputs()
    assert same(gradients(module, x, lambda: module(x)), gradients(module, x, lambda: by_hand(module, x)))


def test_gradients_of_inputs_and_parameters_can_be_asked_for_one_by_one():
    module, x = chain(), inputs()
    for t in (x, *module.parameters()):
        found = torch.autograd.grad(module(x).square().sum(), [t])
        assert same(found, torch.autograd.grad(by_hand(module, x).square().sum(), [t]))


def test_the_same_graph_can_be_run_backward_twice():
    module, x = chain(lambda: Branch(drop=0.5)), inputs()
    loss = module(x).square().sum()
    first = torch.autograd.grad(loss, list(module[2].parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
    third = torch.autograd.grad(loss, list(module.parameters()))
    assert same(second, third, atol=0)
    assert same(first, second[-len(first) :], atol=0)


def test_the_input_may_be_used_beside_the_output():
    module, x = chain(), inputs()
    assert same(gradients(module, x, lambda: module(x) + x), gradients(module, x, lambda: by_hand(module, x) + x))


def test_gradients_accumulate():
    module, x = chain(), inputs()
    module(x).square().mean().backward()
    module(2 * x).square().mean().backward()
    found = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    (by_hand(module, x).square().mean() + by_hand(module, 2 * x).square().mean()).backward()
    assert same(found, [p.grad for p in module.parameters()])


def test_an_input_without_gradient_is_no_obstacle():
    module, x = chain(), inputs(grad=False)
    assert agrees(module, x)
    assert x.grad is None


@pytest.mark.parametrize("frozen", ["0.f", "1.g", "0.", "1.f.linear.bias", ""])
def test_frozen_parameters_get_no_gradient_and_others_theirs(frozen):
    module = chain()
    for name, p in module.named_parameters():
        p.requires_grad_(not name.removeprefix("blocks.").startswith(frozen))
    assert agrees(module)


def test_parameters_shared_between_branches_and_blocks_get_the_sum():
    module = chain()
    module[0].g.linear.weight = module[0].f.linear.weight
    module[2].f.linear.weight = module[0].f.linear.weight
    assert agrees(module)


def test_parameters_used_outside_too_get_the_sum():
    module, x = chain(), inputs()
    weight = module[1].f.linear.weight
    found = gradients(module, x, lambda: module(x) @ weight.repeat(2, 2))
    assert same(found, gradients(module, x, lambda: by_hand(module, x) @ weight.repeat(2, 2)))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_recorded(context):
    module, x = chain(lambda: Branch(norm=True)), inputs()
    with context():
        y = module(x)
    assert not y.requires_grad
    assert torch.equal(module[0].f.norm.num_batches_tracked, torch.tensor(1))


def test_weights_put_in_by_functional_call_are_those_of_the_backward_pass():
    module, x = chain(), inputs()
    others = {name: (p * 1.5).detach().requires_grad_() for name, p in module.named_parameters()}
    found = torch.autograd.grad(functional_call(module, others, (x,)).square().sum(), list(others.values()))
    module.load_state_dict(others)
    assert same(found, torch.autograd.grad(by_hand(module, x).square().sum(), list(module.parameters())))


def test_torch_func_transforms_go_through():
    module, x = chain(), inputs(grad=False)
    weights = {name: p.detach() for name, p in module.named_parameters()}

    def loss(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(module, weights, (row[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    exact = torch.autograd.grad(by_hand(module, x).square().sum(), list(module.parameters()))
    assert same([g.sum(0) for g in each.values()], exact)


# Hooks


def test_gradient_hooks_run_once_with_the_gradient_of_plain_autograd():
    module, x = chain(), inputs()
    expected = gradients(module, x, lambda: by_hand(module, x))
    seen = []
    for p in module.parameters():
        p.register_hook(lambda g: 2 * g)
        p.register_post_accumulate_grad_hook(lambda p: seen.append(p))
    found = gradients(module, x, lambda: module(x))
    assert same(found, [expected[0], *(2 * g for g in expected[1:])])
    assert len(seen) == len(list(module.parameters()))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_module_hooks_see_each_block_once():
    module, x = chain(), inputs()
    forward, backward, inner = [], [], []
    for block in module:
        block.register_forward_hook(lambda m, args, out: forward.append(torch.cat(out, 1).detach()))
        block.register_full_backward_hook(lambda m, grad_in, grad_out: backward.append(torch.cat(grad_out, 1)))
        block.f.register_full_backward_hook(lambda m, grad_in, grad_out: inner.append(grad_out[0]))
    found = gradients(module, x, lambda: module(x))
    assert [len(seen) for seen in (forward, backward, inner)] == [3, 3, 3]
    for at in range(3):
        y = by_hand(list(module)[: at + 1], x)
        assert torch.equal(forward[at], y)
        later = torch.autograd.grad(by_hand(list(module)[at + 1 :], y).square().mean(), [y])[0]
        assert torch.allclose(backward[-1 - at], later, rtol=0, atol=1e-12)
    assert same(found, gradients(module, x, lambda: by_hand(module, x)))


def test_an_inner_output_that_a_hook_keeps_may_be_used_in_the_loss():
    module, x = chain(), inputs()
    kept = []
    module[1].register_forward_hook(lambda m, args, out: kept.append(out[0]))
    found = gradients(module, x, lambda: module(x).sum() + kept[-1].square().sum())
    inner = lambda: by_hand(list(module)[:2], x).chunk(2, 1)[0].square().sum()  # noqa: E731
    assert same(found, gradients(module, x, lambda: by_hand(module, x).sum() + inner()), atol=1e-8)
    with pytest.raises(DldwError, match="an output inside the chain, such as a hook can keep, was used alone"):
        (module(x), kept[-1].sum().backward())


@pytest.mark.parametrize("change", [lambda s: s * 2, lambda s: s.mul_(2)])
def test_a_hook_that_changes_what_a_block_gives_is_an_error(change):
    module = chain()
    module[0].register_forward_hook(lambda m, args, out: (change(out[0].detach()), out[1]))
    with pytest.raises(DldwError, match=r"input of block 1 .* is not the output of block 0: a forward hook changed it"):
        module(inputs())


# Tools


def test_compiled_branches_give_the_same_gradients():
    module, x = chain(depth=2), inputs()
    expected = gradients(module, x, lambda: by_hand(module, x))
    for block in module:
        block.f, block.g = (torch.compile(branch, backend="aot_eager") for branch in (block.f, block.g))
    assert same(gradients(module, x, lambda: module(x)), expected)


def test_a_compiled_model_gives_the_same_gradients():
    module, x = chain(depth=2), inputs()
    compiled = torch.compile(module, backend="aot_eager")
    assert same(gradients(module, x, lambda: compiled(x)), gradients(module, x, lambda: by_hand(module, x)))


def test_checkpoints_around_a_chain_or_its_blocks_go_through():
    module, x = chain(lambda: Branch(drop=0.3)), inputs()
    expected = gradients(module, x, lambda: by_hand(module, x))
    assert same(gradients(module, x, lambda: checkpoint(module, x, use_reentrant=False)), expected)
    for block in module:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    assert same(gradients(module, x, lambda: module(x)), expected)


def test_operations_are_counted_with_the_second_computation_of_the_branches():
    module, x = chain(dtype=torch.float32), inputs(dtype=torch.float32)

    def operations(mode: str) -> int:
        module.backward = mode
        with FlopCounterMode(display=False) as counter:
            module(x).sum().backward()
        return counter.get_total_flops()

    assert operations("reversible") * 3 == operations("plain") * 4


def test_copies_and_state_dicts_are_the_same_module():
    module, x = chain(lambda: Branch(norm=True), backward="reversible", anchor_every=2), inputs()
    module(x).sum().backward()
    twin = copy.deepcopy(module)
    loaded = chain(lambda: Branch(norm=True), depth=3)
    loaded.load_state_dict(module.state_dict())
    expected = gradients(module, x, lambda: module(x))
    assert same(gradients(twin, x, lambda: twin(x)), expected, atol=0)
    assert same(gradients(loaded, x, lambda: loaded(x)), expected)
    assert (twin.backward, twin.anchor_every) == ("reversible", 2)


class WithUnused(nn.Module):
    """A chain beside a module that only rank 0 uses, and a parameter inside a branch that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = chain()
        self.chain[1].f.idle = nn.Linear(2, 2).double()
        self.extra = ReversibleBlock(Branch(), Branch()).double()

    def forward(self, x: Tensor, rank: int) -> Tensor:
        y = self.chain(x)
        return self.extra(y) if rank == 0 else y


def _rank(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    batches = [inputs(grad=False) * (1 + at) for at in range(4)]

    def averaged(oracle: Callable[[int, Tensor], Tensor], module: nn.Module, parts: list[list[Tensor]]) -> list[Tensor]:
        module.zero_grad()
        (sum(oracle(r, x).square().mean() for r in range(2) for x in parts[r]) / 2).backward()
        return [p.grad for p in module.parameters()]

    module = chain()
    twin, ddp = copy.deepcopy(module), DistributedDataParallel(module)
    ddp(batches[rank]).square().mean().backward()
    expected = averaged(lambda r, x: by_hand(twin, x), twin, [[batches[0]], [batches[1]]])
    assert same([p.grad for p in module.parameters()], expected), "plain"

    module.zero_grad()
    with ddp.no_sync():
        ddp(batches[rank]).square().mean().backward()
    ddp(batches[2 + rank]).square().mean().backward()
    expected = averaged(lambda r, x: by_hand(twin, x), twin, [batches[0::2], batches[1::2]])
    assert same([p.grad for p in module.parameters()], expected), "no_sync"

    model = WithUnused()
    twin, ddp = copy.deepcopy(model), DistributedDataParallel(model, find_unused_parameters=True)
    ddp(batches[rank], rank).square().mean().backward()

    def sums(r: int, x: Tensor) -> Tensor:
        y = by_hand(twin.chain, x)
        return by_hand([twin.extra], y) if r == 0 else y

    expected = averaged(sums, twin, [[batches[0]], [batches[1]]])
    zero = [torch.zeros_like(p) for p in model.parameters()]
    found = [z if p.grad is None else p.grad for p, z in zip(model.parameters(), zero, strict=True)]
    assert same(found, [z if g is None else g for g, z in zip(expected, zero, strict=True)]), "find_unused_parameters"
    dist.barrier()
    os._exit(0)  # no teardown of the interpreter, in which torch's gloo threads, still letting go of tensors, may abort


def test_data_parallel_training_averages_the_gradients_also_unused_ones_and_without_sync(tmp_path):
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)


def test_other_modules_sit_between_chains_as_in_any_sequential():
    model = nn.Sequential(
        nn.Linear(3, 8), chain(dtype=torch.float32), nn.Linear(8, 4), chain(lambda: Branch(2)).float()
    )
    x = torch.randn(5, 3, requires_grad=True)

    def sums() -> Tensor:
        return by_hand(model[3], model[2](by_hand(model[1], model[0](x))))

    assert same(gradients(model, x, lambda: model(x)), gradients(model, x, sums), atol=1e-6)


# Errors


def test_a_second_derivative_is_refused_with_the_way_out():
    module, x = chain(), inputs()
    with pytest.raises(DldwError, match=r"a second derivative .*create_graph=True.* Set backward='plain'"):
        torch.autograd.grad(module(x).square().sum(), [x], create_graph=True)
    module.backward = "plain"
    (g,) = torch.autograd.grad(module(x).square().sum(), [x], create_graph=True)
    assert torch.autograd.grad(g.square().sum(), [x])[0].isfinite().all()


@pytest.mark.parametrize("mode", ["reversible", "plain"])
def test_a_change_of_the_output_in_place_is_caught(mode):
    y = chain(backward=mode)(tuple(inputs().chunk(2, 1)))
    loss = y[0].square().sum() + y[1].square().sum()
    with torch.no_grad():
        y[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_change_of_the_joined_output_in_place_is_caught():
    module = chain()
    y = module(inputs())
    loss = y.sum()
    y.detach().mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_change_of_a_parameter_between_the_passes_is_caught():
    module = chain()
    loss = module(inputs()).sum()
    with torch.no_grad():
        module[0].f.linear.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_gradient_that_would_be_lost_is_an_error():
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = [torch.ones(WIDTH, dtype=torch.float64, requires_grad=True)]

        def forward(self, x: Tensor) -> Tensor:
            return x * self.held[0]

    with pytest.raises(DldwError, match=r"Hidden depends on a tensor of shape \[4\] .* Register it as an nn.Parameter"):
        chain(Hidden)(inputs()).sum().backward()


class Returns(nn.Module):
    """Gives what it is told to."""

    def __init__(self, what: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> object:
        return self.what(x)


@pytest.mark.parametrize(
    ("what", "text"),
    [
        (
            lambda x: x[:, :2],
            r"f of a reversible block must give .* shape \[6, 4\], got torch.float64 of shape \[6, 2\]",
        ),
        (lambda x: (x, None), r"got tuple: what it gives is added, and subtracted again. Wrap it"),
        (lambda x: x.long(), r"floating-point tensor .* got torch.int64"),
    ],
)
def test_a_branch_that_does_not_fit_its_stream_is_an_error(what, text):
    with pytest.raises(DldwError, match=text):
        chain(lambda: Returns(what))(inputs())


def test_a_branch_that_widens_its_stream_is_an_error():
    with pytest.raises(DldwError, match=r"would widen its stream of torch.float32 and could not be undone"):
        chain(lambda: Returns(Tensor.double), dtype=torch.float32)(inputs(dtype=torch.float32))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ReversibleBlock(torch.tanh, nn.Tanh()), "f must be an nn.Module, got builtin"),
        (lambda: ReversibleBlock(nn.Tanh(), torch.tanh), "g must be an nn.Module"),
        (lambda: ReversibleBlock(nn.Tanh(), nn.Tanh(), keep=(0.0, 1.0)), "keep must not be zero"),
        (
            lambda: ReversibleBlock(nn.Tanh(), nn.Tanh(), backward="fast"),
            "backward must be one of reversible, checkpoint",
        ),
        (lambda: ReversibleSequential(), "takes ReversibleBlocks, got nothing"),
        (lambda: ReversibleSequential(nn.Linear(2, 2)), "takes ReversibleBlocks, got Linear. Other modules"),
        (lambda: chain(anchor_every=0), "anchor_every must be at least 1, got 0"),
        (lambda: chain()(torch.randn(3, 7)), r"shape \[3, 7\] cannot be split in two equal streams along dimension 1"),
        (lambda: chain(dim=2)(torch.randn(3, 8)), "cannot be split in two equal streams along dimension 2"),
        (lambda: chain()((torch.randn(3, 4),)), "one tensor or a pair of tensors, got tuple"),
    ],
)
def test_mistakes_are_answered_with_what_why_and_what_to_do(make, text):
    with pytest.raises(DldwError, match=text):
        make()


# As a way of back-propagation, and in the comparison


def cross(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize("options", [{"reversible": True}, {"checkpoint": True}])
def test_back_propagation_takes_the_way_it_is_told_and_leaves_the_model_as_it_was(options):
    module = chain(backward="plain")
    batch = inputs(grad=False), torch.arange(6)
    dldw.Backprop(cross)(module, batch)
    expected = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    dldw.Backprop(cross, **options)(module, batch)
    assert same([p.grad for p in module.parameters()], expected)
    assert {m.backward for m in (module, *module)} == {"plain", "reversible"}  # the chain's, and the blocks' own


@pytest.mark.parametrize(
    ("options", "model", "text"),
    [
        ({"reversible": True}, nn.Linear(2, 2), "reversible=True found no reversible blocks in Linear. Build it with"),
        ({"reversible": True, "checkpoint": True}, nn.Linear(2, 2), "two ways to the same memory: choose one"),
    ],
)
def test_back_propagation_in_reverse_needs_reversible_blocks(options, model, text):
    with pytest.raises(DldwError, match=text):
        dldw.Backprop(cross, **options)(model, (torch.randn(3, 2), torch.zeros(3, dtype=torch.int64)))


def test_the_deep_task_compares_the_three_ways_at_every_depth():
    plan = make_plan("deep", [], budget=parse_budget("quick"))
    assert [s.label for s in plan.specs] == [
        "backprop",
        "backprop[checkpoint=true]",
        "backprop[reversible=true]",
        "random-search",
    ]
    measured = [item for item in plan.metering({}) if isinstance(item, Deepening)]
    assert [(m.label, m.depth) for m in measured] == [
        (s.label, depth) for s in plan.specs[:3] for depth in (8, 16, 32, 64, 128)
    ]
    assert not [
        i for i in make_plan("digits", [], budget=parse_budget("quick")).metering({}) if isinstance(i, Deepening)
    ]


def test_what_is_measured_at_a_depth_is_exact_and_flat_in_memory_for_the_reversible_pass_alone():
    def record(method: str, depth: int) -> dict:
        (found,) = Deepening("deep", None, parse(method), (), depth, 0.0).run()
        return found

    lean, base = ([record(m, depth) for depth in (8, 16)] for m in ("backprop[reversible=true]", "backprop"))
    assert lean[1]["peak_bytes"] < 1.02 * lean[0]["peak_bytes"]
    assert base[1]["peak_bytes"] > 1.8 * base[0]["peak_bytes"]
    assert all(a["gradient_error"] < 2 * b["gradient_error"] < 1e-5 for a, b in zip(lean, base, strict=True))
    assert (
        lean[1]["weights"] == base[1]["weights"] == sum(p.numel() for p in load_task("deep").deeper(16)[0].parameters())
    )


def test_a_task_of_one_depth_says_so():
    with pytest.raises(DldwError, match="digits has one depth: there is no network of 8 blocks"):
        load_task("digits").deeper(8)
