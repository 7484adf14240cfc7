"""Is the backward pass of a C++ operation right? Compiled where there is a compiler, and looked for a fault.

    python examples/check_custom_op.py [--python]

With a compiler the operation is built by ``torch.utils.cpp_extension``, which takes about a minute the first time; without
one, or with ``--python``, it is the same operation as a ``torch.library`` custom op. A CUDA operation is checked in the same
way: move model and batch to the device.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable

import torch
from torch import Tensor, nn

import dldw

SOURCE = """
#include <torch/extension.h>
#include <vector>

torch::Tensor forward(torch::Tensor x, torch::Tensor gain) {
  return x * x.sigmoid() * gain;
}

std::vector<torch::Tensor> backward(torch::Tensor g, torch::Tensor x, torch::Tensor gain, bool wrong) {
  auto s = x.sigmoid();
  auto slope = wrong ? s : s + x * s * (1 - s);  // the product rule has two terms
  return {g * gain * slope, (g * x * s).sum(0)};
}
"""

Forward = Callable[[Tensor, Tensor], Tensor]
Backward = Callable[[Tensor, Tensor, Tensor, bool], list[Tensor]]


def compiled() -> tuple[Forward, Backward]:
    """The operation in C++."""
    from torch.utils.cpp_extension import load_inline

    module = load_inline("dldw_example_scaled_swish", SOURCE, functions=["forward", "backward"])
    return module.forward, module.backward


def in_python() -> tuple[Forward, Backward]:
    """The operation as a custom op, opaque to autograd like a compiled one."""

    @torch.library.custom_op("dldw_example::scaled_swish", mutates_args=())
    def forward(x: Tensor, gain: Tensor) -> Tensor:
        return x * x.sigmoid() * gain

    def backward(g: Tensor, x: Tensor, gain: Tensor, wrong: bool) -> list[Tensor]:
        s = x.sigmoid()
        slope = s if wrong else s + x * s * (1 - s)
        return [g * gain * slope, (g * x * s).sum(0)]

    return forward, backward


class Gated(nn.Module):
    """A layer, and the operation with a gain for each unit."""

    def __init__(self, forward: Forward, backward: Backward, wrong: bool) -> None:
        super().__init__()
        self.layer, self.gain = nn.Linear(6, 8), nn.Parameter(torch.ones(8))

        class ScaledSwish(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x: Tensor, gain: Tensor) -> Tensor:
                ctx.save_for_backward(x, gain)
                return forward(x, gain)

            @staticmethod
            def backward(ctx, g: Tensor):
                return tuple(backward(g, *ctx.saved_tensors, wrong))

        self.operation = ScaledSwish

    def forward(self, x: Tensor) -> Tensor:
        return self.operation.apply(self.layer(x), self.gain)


def main() -> None:
    """Says which operation it is, and what ``dldw.check`` finds in it with and without a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="store_true", help="do not compile")
    compiles = not parser.parse_args().python and all(map(shutil.which, ("c++", "ninja")))
    print("the operation is", "C++, compiled by torch.utils.cpp_extension" if compiles else "a torch.library custom op")
    operation = compiled() if compiles else in_python()
    torch.manual_seed(0)
    x = torch.randn(32, 6)
    for wrong in (True, False):
        print(f"--- backward pass {'without a term of the product rule' if wrong else 'as it should be'}")
        print(dldw.check(Gated(*operation, wrong), lambda model, x: model(x).square().mean(1), x).explain(), end="\n\n")


if __name__ == "__main__":
    main()
