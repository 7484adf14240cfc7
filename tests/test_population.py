"""The population rules give what one member after the other gives."""

import pytest
import torch
import torch.nn.functional as F

import dldw
from dldw import evaluate, gemm, population
from dldw.moved import DenseMoved, LowRankMoved
from dldw.population import population_losses

SCALES = [[0.3, -0.2, 0.5], [-0.3, 0.2, -0.5]]
MEMBERS = 6


def random(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def dense(*shape):
    return DenseMoved(random(*shape), SCALES, random(3, *shape))


def low_rank(*shape):
    if len(shape) == 1:
        return dense(*shape)
    return LowRankMoved(random(*shape), SCALES, random(3, shape[0], 2), random(3, random(*shape[1:]).numel(), 2))


@pytest.fixture(params=[lambda *shape: random(MEMBERS, *shape), dense, low_rank], ids=["stacked", "dense", "low-rank"])
def weight(request):
    """Makes one weight of all members."""
    return request.param


def one_by_one(function, weights):
    stacks = [w if isinstance(w, torch.Tensor) else w.stack() for w in weights]
    return torch.stack([function([stack[i] for stack in stacks]) for i in range(MEMBERS)])


def settings(moved):
    """What its class is built of, after the weight."""
    return moved.scales, *(t.float() for t in ((moved.z,) if isinstance(moved, DenseMoved) else (moved.a, moved.b)))


def assert_same(function, *weights):
    with torch.no_grad():
        losses = population_losses(function, weights, MEMBERS)
    torch.testing.assert_close(losses, one_by_one(function, weights))


def test_a_dense_stack_has_one_member_for_each_column_and_row():
    moved = dense(2, 3)
    expected = [moved.weight + scale * z for column in SCALES for scale, z in zip(column, moved.z, strict=True)]
    torch.testing.assert_close(moved.stack(), torch.stack(expected))


def test_a_low_rank_stack_has_one_member_for_each_column_and_row():
    moved = low_rank(2, 3, 4)
    z = [(a @ b.mT).view(2, 3, 4) for a, b in zip(moved.a, moved.b, strict=True)]
    expected = [moved.weight + scale * z[row] for column in SCALES for row, scale in enumerate(column)]
    torch.testing.assert_close(moved.stack(), torch.stack(expected))


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (2, 1, 3, 4)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_on_a_shared_input(weight, shape, bias):
    x = torch.randn(shape, dtype=torch.float64)
    weights = [weight(6, 4), weight(6)] if bias else [weight(6, 4)]
    assert_same(lambda w: F.linear(x, *w), *weights)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)], ids=str)
def test_linear_after_linear(weight, shape):
    x = torch.randn(shape, dtype=torch.float64)
    assert_same(
        lambda w: F.linear(F.linear(x, w[0], w[1]).tanh(), w[2], w[3]),
        weight(6, 4),
        weight(6),
        weight(2, 6),
        weight(2),
    )


@pytest.mark.parametrize("own", [True, False], ids=["a bias of each member", "a bias that no member changes"])
def test_low_rank_in_16_bits_after_a_layer_of_many_positions(own):
    def half(moved):
        return type(moved)(moved.weight.bfloat16(), moved.scales, *(t.bfloat16() for t in settings(moved)[1:]))

    weights = [half(low_rank(6, 4)), half(low_rank(5, 6)), *([half(dense(5))] if own else [])]
    x, bias = random(2, 3, 4).bfloat16(), random(5).bfloat16()
    with torch.no_grad():
        found = population_losses(
            lambda w: F.linear(F.linear(x, w[0]).tanh(), w[1], w[2] if own else bias).flatten(), weights, MEMBERS
        )
        members = zip(*(w.stack().double() for w in weights), strict=True)
        exact = [
            F.linear(F.linear(x.double(), w[0]).tanh(), w[1], w[2] if own else bias.double()).flatten() for w in members
        ]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), torch.stack(exact), rtol=0.03, atol=0.05)


@pytest.mark.parametrize(
    "make", [dense, low_rank, lambda *shape: random(MEMBERS, *shape)], ids=["dense", "low-rank", "stacked"]
)
@pytest.mark.parametrize("at_home", [True, False])
def test_many_numbers_of_float32_by_other_libraries_are_right_to_their_bits(make, at_home, monkeypatch):
    for module in (gemm, population):
        monkeypatch.setattr(module, "mkl_is_at_home", lambda: at_home)

    def outputs(w, x):
        return F.linear(F.linear(x, w[0], w[1]).tanh(), w[2]).tanh()

    wide = [make(256, 20), make(256), make(32, 256)]
    narrow = [w.float() if isinstance(w, torch.Tensor) else type(w)(w.weight.float(), *settings(w)) for w in wide]
    x = torch.randn(90, 20, dtype=torch.float64)
    with torch.no_grad():
        found = population_losses(lambda w: outputs(w, x.float()), narrow, MEMBERS)
        expected = one_by_one(lambda w: outputs(w, x), wide)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-4)


def test_linear_with_a_bias_that_no_member_changes(weight):
    x, bias = torch.randn(3, 4, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    assert_same(lambda w: F.linear(x, w[0], bias), weight(6, 4))


def test_linear_with_a_weight_that_no_member_changes(weight):
    x, shared = torch.randn(3, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    assert_same(lambda w: F.linear(x, shared, w[0]), weight(6))


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "none"},
        {"reduction": "mean"},
        {"reduction": "sum"},
        {"label_smoothing": 0.1},
        {"weight": torch.arange(1.0, 5.0, dtype=torch.float64)},
        {"ignore_index": 2, "reduction": "none"},
    ],
    ids=str,
)
def test_cross_entropy_with_every_option(weight, options):
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 2, 0])
    assert_same(lambda w: F.cross_entropy(F.linear(x, w[0]), y, **options), weight(4, 3))


@pytest.mark.parametrize("options", [{"reduction": "none"}, {}, {"reduction": "none", "ignore_index": 2}], ids=str)
@pytest.mark.filterwarnings("error")  # vmap has no rule for it: it would go one member after the other, and warn
def test_cross_entropy_with_targets_of_each_member(weight, options):
    x, y = random(5, 3), torch.arange(MEMBERS * 5).view(MEMBERS, 5) % 4
    assert_same(lambda w: F.cross_entropy(F.linear(x, w[0]), w[1], **options), weight(4, 3), y)


@pytest.mark.parametrize("options", [{"reduction": "none"}, {}, {"reduction": "none", "ignore_index": 2}], ids=str)
@pytest.mark.parametrize("alone_from", [0, 1 << 20], ids=["member after member", "joined"])
def test_cross_entropy_of_all_positions_but_the_last(weight, options, alone_from, monkeypatch):
    monkeypatch.setattr(population, "_OWN_CALL", alone_from)
    x, y = torch.randn(1, 7, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 2, 0])
    assert_same(lambda w: F.cross_entropy(F.linear(x, w[0])[:, :-1].flatten(0, 1), y, **options), weight(4, 3))


@pytest.mark.parametrize("options", [{"reduction": "none"}, {}, {"reduction": "none", "ignore_index": 2}], ids=str)
@pytest.mark.parametrize("positions", [(7,), (3, 2)], ids=str)
@pytest.mark.filterwarnings("error")  # as above
def test_cross_entropy_of_examples_with_positions(weight, options, positions):
    x, y = random(2, *positions, 3), torch.arange(2 * len(random(*positions).flatten())).view(2, *positions) % 4
    assert_same(lambda w: F.cross_entropy(F.linear(x, w[0]).movedim(-1, 1), y, **options), weight(4, 3))
    each = y.expand(MEMBERS, *y.shape)
    assert_same(lambda w: F.cross_entropy(F.linear(x, w[0]).movedim(-1, 1), w[1], **options), weight(4, 3), each)


def test_cross_entropy_that_ignores_the_default_index(weight):
    x, y = torch.randn(3, 3, dtype=torch.float64), torch.tensor([0, -100, 2])
    assert_same(lambda w: F.cross_entropy(F.linear(x, w[0]), y, reduction="none"), weight(4, 3))


def test_cross_entropy_does_not_overflow():
    y = torch.tensor([0, 1])
    with torch.no_grad():
        loss = population_losses(lambda w: F.cross_entropy(w[0], y), [torch.full((MEMBERS, 2, 3), 1e4)], MEMBERS)
    torch.testing.assert_close(loss, torch.full((MEMBERS,), 3.0).log())


@pytest.mark.parametrize("causal", [True, False])
def test_attention_folds_the_population_into_the_batch(weight, causal):
    k, v = torch.randn(2, 2, 3, 7, 4, dtype=torch.float64)
    assert_same(lambda w: F.scaled_dot_product_attention(w[0], k, v, is_causal=causal), weight(2, 3, 7, 4))


@pytest.mark.parametrize("mask_shape", [(7, 7), (2, 1, 7, 7)], ids=str)
def test_attention_with_a_mask(weight, mask_shape):
    k, v = torch.randn(2, 2, 3, 7, 4, dtype=torch.float64)
    mask = torch.ones(mask_shape, dtype=torch.bool).tril()
    assert_same(lambda w: F.scaled_dot_product_attention(w[0], k, v, mask), weight(2, 3, 7, 4))


TRANSFORMS = {
    "grad": lambda output, x: torch.func.grad(output)(x).square().sum(),
    "vmap": lambda output, x: torch.func.vmap(output)(x).sum(),
    "grad of each": lambda output, x: torch.func.vmap(torch.func.grad(output))(x).square().sum(),
    "hessian": lambda output, x: torch.func.hessian(output)(x[0]).square().sum(),
    "jvp": lambda output, x: torch.func.jvp(output, (x,), (x,))[1],
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=list(TRANSFORMS))
def test_a_transform_taken_inside_the_function_is_right(transform, weight):
    def function(w):
        with torch.enable_grad():
            return transform(lambda x: F.linear(x, w[0]).tanh().sum(), random(3, 4)).detach()

    assert_same(function, weight(6, 4))


def by_the_weight(w):
    with torch.enable_grad():
        return torch.func.grad(lambda v: F.linear(random(3, 4), v).square().sum())(w[0]).square().sum()


def test_a_gradient_by_the_weights_inside_the_function_is_right():
    assert_same(by_the_weight, random(MEMBERS, 6, 4))


@pytest.mark.parametrize("moved", [dense, low_rank])
def test_a_gradient_by_moved_weights_inside_the_function_says_why_it_cannot(moved):
    with torch.no_grad(), pytest.raises(RuntimeError, match="along directions cannot be an argument of a transform"):
        population_losses(by_the_weight, [moved(6, 4)], MEMBERS)


def test_operations_without_a_rule_get_the_weights_of_all_members(weight):
    x = random(3, 4)
    assert_same(lambda w: (x * w[0] + w[0].square()).sum(1), weight(4))
    assert_same(lambda w: torch.einsum("bi,oi->bo", x, w[0]).sum(1), weight(6, 4))
    assert_same(lambda w: F.conv1d(x.unsqueeze(1), w[0], w[1]).flatten(1).sum(1), weight(2, 1, 3), weight(2))
    assert_same(lambda w: F.layer_norm(x, (4,), w[0], w[1]).sum(1), weight(4), weight(4))


def test_embedding(weight):
    index = torch.tensor([[0, 2, 1], [1, 1, 0]])
    assert_same(lambda w: F.embedding(index, w[0]).sum((1, 2)), weight(3, 4))


def test_a_tied_embedding(weight):
    index = torch.tensor([[0, 2, 1], [1, 1, 0]])
    assert_same(lambda w: F.linear(F.embedding(index, w[0]), w[0]).square().sum((1, 2)), weight(3, 4))


@pytest.mark.parametrize("transposed", [lambda x, b, w: torch.addmm(b, x, w), lambda x, b, w: x @ w + b])
def test_products_with_a_transposed_weight(weight, transposed):
    x = random(3, 4)
    assert_same(
        lambda w: transposed(transposed(x, w[1], w[0]), w[3], w[2]).sum(1),
        weight(4, 6),
        weight(6),
        weight(6, 2),
        weight(2),
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_convolutions_on_a_shared_input_and_after_another(weight, bias, groups, dimensions):
    x, kernel = random(3, 4, *[5] * dimensions), [3] * dimensions
    convolve = getattr(F, f"conv{dimensions}d")

    def stacked_twice(w):
        first = convolve(x, w[0], w[1] if bias else None, padding=1, groups=groups)
        return convolve(first.tanh(), w[2], w[3] if bias else None, stride=2, padding="valid", groups=groups)

    shapes = [(6, 4 // groups, *kernel), (6,), (2, 6 // groups, *kernel), (2,)]
    assert_same(lambda w: stacked_twice(w).flatten(1).square().sum(1), *(weight(*shape) for shape in shapes))


def test_a_convolution_of_one_image_without_a_dimension_of_examples(weight):
    x = random(4, 5, 5)
    assert_same(lambda w: F.conv2d(F.conv2d(x, w[0]), w[1]).square().sum(), weight(6, 4, 3, 3), weight(2, 6, 3, 3))


def test_a_convolution_with_kernels_or_a_bias_that_no_member_changes(weight):
    x, bias, kernels = random(3, 4, 5, 5), random(2), random(2, 6, 3, 3)
    assert_same(lambda w: F.conv2d(F.conv2d(x, w[0]), kernels, bias).flatten(1).sum(1), weight(6, 4, 3, 3))
    assert_same(lambda w: F.conv2d(x, w[0], bias).flatten(1).square().sum(1), weight(2, 4, 3, 3))


@pytest.mark.parametrize("called", ["itself", "another", "three"])
@pytest.mark.parametrize("needs", [True, False])
def test_attention_with_a_packed_projection(weight, called, needs):
    layer = torch.nn.MultiheadAttention(8, 2, batch_first=True).double()
    x, y = random(2, 3, 8), random(2, 5, 8)
    inputs = {"itself": (x, x, x), "another": (x, y, y), "three": (x, y, y + 1)}[called]
    own = [p.detach() for p in layer.parameters()]

    def attention(w):
        layer._parameters["in_proj_weight"], layer._parameters["in_proj_bias"] = w[0], w[1]
        layer.out_proj._parameters["weight"], layer.out_proj._parameters["bias"] = w[2], w[3]
        return layer(*inputs, need_weights=needs)[0].square().sum((1, 2))

    assert_same(attention, *(weight(*p.shape) for p in own))


@pytest.mark.parametrize("shape", [(2, 3, 7, 4), (3, 7, 4), (7, 4)], ids=str)
def test_attention_of_any_number_of_dimensions(weight, shape):
    k, v, mask = random(*shape), random(*shape) + 1, torch.ones(7, 7, dtype=torch.bool).tril()
    assert_same(lambda w: F.scaled_dot_product_attention(w[0], k, v, mask), weight(*shape))


def test_positions_and_products_without_a_rule_of_their_own(weight):
    x = random(2, 5, 4)
    assert_same(lambda w: (x + w[0]).square().sum((1, 2)), weight(1, 5, 4))
    assert_same(lambda w: torch.einsum("bsd,dh->bsh", x, w[0]).square().sum((1, 2)), weight(4, 3))
    assert_same(lambda w: torch.einsum("bsd,hd->bsh", x @ w[1], w[0]).square().sum((1, 2)), weight(3, 6), weight(4, 6))
    assert_same(lambda w: (x @ w[0].T).square().sum((1, 2)), weight(3, 4))
    assert_same(lambda w: (x @ w[0].T @ w[0][:, 1:3]).square().sum((1, 2)), weight(3, 4))


def test_members_of_low_rank_are_not_stacked_where_that_would_be_larger_than_what_they_make(monkeypatch):
    def refuse(self):
        raise AssertionError("the weights of all members were made")

    weights = [low_rank(*shape) for shape in ((12, 4, 3, 3), (12, 6, 3, 3), (6, 12), (36, 12), (5, 12), (1, 9, 12))]
    monkeypatch.setattr(LowRankMoved, "stack", refuse)
    x, bias = random(1, 4, 5, 5), random(36)

    def model(w):
        y = F.conv2d(x, w[0]).flatten(2).mT  # [1, 9, 12]
        y = F.conv2d(y.reshape(1, 12, 3, 3), w[1], padding=1, groups=2).flatten(2).mT + w[5]
        y = torch.einsum("bsd,hd->bsh", y, w[2]) @ w[2]
        y, _ = F.multi_head_attention_forward(
            y, y, y, 12, 2, w[3], bias, None, None, False, 0.0, w[3][:12], None, need_weights=False
        )
        return F.linear(y, w[4]).square().sum((1, 2))

    with torch.no_grad():
        assert population_losses(model, weights, MEMBERS).isfinite().all()


def test_auto_evaluates_one_by_one_where_few_members_go_through_at_a_time(monkeypatch):
    passes = []
    losses = evaluate.population_losses
    monkeypatch.setattr(evaluate, "population_losses", lambda *args: passes.append(args[2]) or losses(*args))
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Linear(64, 2)).double(), random(512, 4)

    def estimate(mode, memory):
        evaluator, generator = evaluate.Evaluator(mode, memory), torch.Generator().manual_seed(0)
        passes.clear()
        source = dldw.SPSA(lambda m, b: m(b).square().sum(1), directions=6, evaluate=evaluator, generator=generator)
        return torch.tensor(source.estimate(model, x).coefficients), list(passes)

    few, together, forced = estimate("auto", 64 << 10), estimate("auto", 256 << 20), estimate("batched", 64 << 10)
    assert [few[1], together[1], forced[1]] == [[], [12], [2] * 6]
    torch.testing.assert_close(few[0], together[0])
    torch.testing.assert_close(few[0], forced[0])
