"""Products that go to oneDNN where it may, and to torch where something watches: they are right either way."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dldw import gemm
from dldw.gemm import add_outer, add_product, linear, product, product_beside


class Operations(TorchDispatchMode):
    """The names of the operations that ran."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def made(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def assert_right(found, x, w, bias=None):
    expected = F.linear(x.double(), w.double(), None if bias is None else bias.double())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)


LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.mT.contiguous().mT,
    "expanded": lambda t: t[:1].expand(len(t), -1),
    "every other": lambda t: t.repeat_interleave(2, 1)[:, ::2],
}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
@pytest.mark.parametrize("bias", [None, made(400)], ids=["no bias", "bias"])
@pytest.mark.parametrize("of_weight", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("of_input", LAYOUTS.values(), ids=LAYOUTS)
def test_large_ones_go_to_onednn_in_any_layout(of_input, of_weight, bias, monkeypatch):
    monkeypatch.setattr(gemm, "mkl_is_at_home", lambda: False)
    x, w = of_input(made(300, 24)), of_weight(made(400, 24))
    with torch.no_grad(), Operations() as ran:
        assert_right(product(x, w.mT, bias), x, w, bias)
        assert_right(linear(x.view(3, 100, 24) if x.is_contiguous() else x, w, bias).flatten(0, -2), x, w, bias)
    assert ran.names.count("mkldnn::_linear_pointwise") == 2


@pytest.mark.parametrize("at_home", [True, False], ids=["by torch", "by oneDNN"])
def test_a_product_is_added_as_often_as_asked_for(at_home, monkeypatch):
    monkeypatch.setattr(gemm, "mkl_is_at_home", lambda: at_home)
    rows, columns, out = made(300, 24), made(24, 400), made(300, 400)
    expected = out.double() - 0.5 * rows.double() @ columns.double()
    with torch.no_grad():
        add_product(out, rows, columns, -0.5)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-4)


def test_small_ones_and_other_types_are_torchs(monkeypatch):
    monkeypatch.setattr(gemm, "mkl_is_at_home", lambda: False)
    x, w = made(300, 24), made(400, 24)
    with torch.no_grad(), Operations() as ran:
        linear(x[:2], w), linear(x.double(), w.double()), linear(x.bfloat16(), w.bfloat16()), linear(x[0], w)
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
        linear(x, w)
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", True)
        monkeypatch.setattr(gemm, "mkl_is_at_home", lambda: True)
        linear(x, w)
    assert "mkldnn::_linear_pointwise" not in ran.names


@pytest.mark.parametrize(("maker", "there", "at_home"), [
    ("GenuineIntel", True, True), ("AuthenticAMD", True, False), ("GenuineIntel", False, False)
])  # fmt: skip
@pytest.mark.parametrize("linux", [True, False])
def test_mkl_is_at_home_on_processors_of_its_maker(maker, there, at_home, linux, monkeypatch):
    def read(*args, **kwargs):
        if not linux:
            raise FileNotFoundError
        return f"processor : 0\nvendor_id : {maker}\n"

    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: there)
    monkeypatch.setattr(gemm.Path, "read_text", read)
    monkeypatch.setattr(gemm.platform, "processor", lambda: f"Family 6, {maker}")
    assert gemm.mkl_is_at_home.__wrapped__() == at_home


def test_autograd_follows_it():
    x, w = made(300, 24), made(400, 24).requires_grad_()
    linear(x, w).square().sum().backward()
    expected = torch.func.grad(lambda w: F.linear(x.double(), w).square().sum())(w.detach().double())
    torch.testing.assert_close(w.grad.double(), expected, rtol=1e-4, atol=1e-2)


@torch.no_grad()
def test_vmap_autocast_and_forward_mode_see_it():
    x, w = made(5, 300, 24), made(5, 400, 24)
    together = torch.vmap(linear)(x, w)
    for found, each, own in zip(together, x, w, strict=True):
        assert_right(found, each, own)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x[0], w[0]).dtype == torch.bfloat16
    _, tangent = torch.func.jvp(lambda w: linear(x[0], w), (w[0],), (w[1],))
    assert_right(tangent, x[0], w[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("at_home", [True, False], ids=["MKL at home", "MKL abroad"])
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize(
    ("lead", "bias"),
    [(lead, bias) for lead in [(), (5,), (2, 5), (0, 5)] for bias in (None, (40,))] + [((2, 5), (2, 1, 40))],
    ids=str,
)
def test_what_is_thin_is_added_with_two_roundings(dtype, at_home, rank, lead, bias, monkeypatch):
    monkeypatch.setattr(gemm, "mkl_is_at_home", lambda: at_home)
    monkeypatch.setattr(gemm, "_MANY", 1)
    rows, columns, thin = made(*lead, 24).to(dtype), made(24, 40).to(dtype), (0.1 * made(*lead, rank)).to(dtype)
    factor = made(*lead[:1] if bias == (2, 1, 40) else (), rank, 40).to(dtype)
    shift = None if bias is None else made(*bias).to(dtype)
    wide = torch.zeros(()) if shift is None else shift.double()
    small = thin.double() @ factor.double() + wide
    exact = rows.double() @ columns.double() + small
    with torch.no_grad():
        found = product_beside(rows, columns, shift, thin, factor)
    assert found.dtype == dtype
    assert found.shape == (*lead, 40)
    unit = torch.finfo(dtype).eps
    assert ((found.double() - exact).abs() <= unit * (exact.abs() + small.abs() + wide.abs()) + 1e-5).all()


@pytest.mark.parametrize("many", [1, 1 << 20], ids=["many", "few"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_outer_is_added_with_one_rounding_and_the_whole_coefficient(dtype, many, monkeypatch):
    monkeypatch.setattr(gemm, "_MANY", many)
    out, column, row = made(96, 33).to(dtype), made(96, 1).to(dtype), made(1, 33).to(dtype)
    value = 1.2345678e-2  # rounded to 16 bits it would be off by more than the bound below
    expected = out.double() + value * column.double() * row.double()
    add_outer(out, column, row, value)
    info = torch.finfo(dtype)
    ulp = info.eps * expected.abs().clamp(min=info.tiny).log2().floor().exp2()
    assert ((out.double() - expected).abs() / ulp).max() < 0.51


@pytest.mark.parametrize("has", [False, True])
def test_outer_ones_in_bfloat16_are_onednns_where_it_has_them(has, monkeypatch):
    monkeypatch.setattr(gemm, "_MANY", 1)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has)
    with Operations() as ran:
        add_outer(made(4, 3).bfloat16(), made(4, 1).bfloat16(), made(1, 3).bfloat16(), 1.0)
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
        add_outer(made(4, 3).bfloat16(), made(4, 1).bfloat16(), made(1, 3).bfloat16(), 1.0)
    assert ran.names.count("aten::addmm_") == (has and torch.backends.mkldnn.is_available())
