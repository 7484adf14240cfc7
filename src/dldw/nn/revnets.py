"""RevNets: residual networks for images whose stages are reversible."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dldw.errors import DldwError
from dldw.nn.reversible import Backward, ReversibleBlock, ReversibleSequential
from dldw.nn.tape import Streams

_SHAPES: dict[int, tuple[bool, tuple[int, ...], tuple[int, ...]]] = {
    38: (False, (3, 3, 3), (32, 32, 64, 112)),
    110: (False, (9, 9, 9), (32, 32, 64, 128)),
    164: (True, (9, 9, 9), (32, 32, 64, 128)),
    104: (True, (2, 2, 11, 2), (128, 128, 256, 512, 832)),
}
"""Depth -> whether branches have bottlenecks, units in each stage, channels of the stem and of each stage (table 1)."""
_LARGE = 104
"""The depth that is for images of about 224 x 224 pixels; the others are for 32 x 32."""


class RevNet(nn.Module):
    """Pre-activation residual stages of two streams; what changes the shape is stored, all else is recomputed.

    Shape: images [B, channels, H, W] to logits [B, classes].

    Source: Gomez, Ren, Urtasun & Grosse 2017, arXiv 1707.04585, table 1.

    Args:
        bottleneck: Whether a branch is 1 x 1, 3 x 3, 1 x 1 convolutions with a quarter of the channels, or two of 3 x 3.
        units: Residual units in each stage.
        channels: Of the stem and, both streams together, of each stage (times 4 with bottlenecks).
        large: Whether the stem reduces the image, for 224 x 224 pixels.
        classes: Classes to tell apart.
        in_channels: Channels of an image.
        backward: As in ``ReversibleBlock``.
    """

    def __init__(
        self,
        bottleneck: bool,
        units: tuple[int, ...],
        channels: tuple[int, ...],
        *,
        large: bool,
        classes: int,
        in_channels: int,
        backward: Backward,
    ) -> None:
        super().__init__()
        width = channels[0]
        stem: list[nn.Module] = [
            nn.Conv2d(in_channels, width, 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        self.stem = nn.Sequential(*stem, *([nn.MaxPool2d(3, 2, 1)] if large else []))
        stages: list[nn.Module] = []
        for at, (count, wide) in enumerate(zip(units, channels[1:], strict=True)):
            out, stride = wide * (4 if bottleneck else 1), 1 if at == 0 else 2
            blocks: list[ReversibleBlock] = []
            for unit in range(count):
                f = _branch(width // 2, out // 2, bottleneck, stride, activated=at == unit == 0)
                g = _branch(out // 2, out // 2, bottleneck, 1)
                if stride > 1 or width != out:
                    stages.append(_Transition(f, g, width // 2, out // 2, bottleneck, stride))
                else:
                    blocks.append(ReversibleBlock(f, g))
                width, stride = out, 1
            stages.append(ReversibleSequential(*blocks, backward=backward))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, channels, H, W]."""
        streams = self.stages(self.stem(images).chunk(2, 1))
        logits: Tensor = self.classifier(self.head(torch.cat(streams, 1)))
        return logits


def revnet(
    depth: int, *, classes: int | None = None, in_channels: int = 3, backward: Backward = "reversible"
) -> RevNet:
    """A RevNet of the paper.

    Args:
        depth: 38, 110 or 164 for images of about 32 x 32 pixels; 104 for 224 x 224.
        classes: Classes to tell apart; by default 10, and 1,000 for 224 x 224.
        in_channels: Channels of an image.
        backward: As in ``ReversibleBlock``; can be set on each of ``stages`` later.

    Raises:
        DldwError: The paper has no RevNet of that depth.

    Example:
        >>> import torch, dldw.nn
        >>> model = dldw.nn.revnet(38)
        >>> model(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    if depth not in _SHAPES:
        raise DldwError(
            f"there is no RevNet-{depth} in the paper; it has {', '.join(map(str, _SHAPES))}. For another shape use "
            "dldw.nn.ReversibleSequential."
        )
    large = depth == _LARGE
    classes = classes or (1000 if large else 10)
    bottleneck, units, channels = _SHAPES[depth]
    return RevNet(bottleneck, units, channels, large=large, classes=classes, in_channels=in_channels, backward=backward)


def _branch(wide: int, out: int, bottleneck: bool, stride: int, activated: bool = False) -> nn.Sequential:
    """Batch norm, ReLU and a convolution, two or three times; the first time without, where the input is activated."""
    inner = out // 4 if bottleneck else out
    sizes = [(wide, inner, 1), (inner, inner, 3), (inner, out, 1)] if bottleneck else [(wide, out, 3), (out, out, 3)]
    layers: list[nn.Module] = []
    for at, (into, to, kernel) in enumerate(sizes):
        if at or not activated:
            layers += [nn.BatchNorm2d(into), nn.ReLU()]
        layers.append(nn.Conv2d(into, to, kernel, stride if at == 0 else 1, kernel // 2, bias=False))
    return nn.Sequential(*layers)


class _Transition(nn.Module):
    """The unit that changes the shape: it has no inverse, so autograd stores it."""

    def __init__(self, f: nn.Module, g: nn.Module, wide: int, out: int, bottleneck: bool, stride: int) -> None:
        super().__init__()
        self.f, self.g = f, g
        self.first, self.second = (
            nn.Conv2d(wide, out, 1, stride, bias=False) if bottleneck else _Pooled(out - wide, stride) for _ in range(2)
        )

    def forward(self, x: Streams) -> Streams:
        y1 = self.first(x[0]) + self.f(x[1])
        return y1, self.second(x[1]) + self.g(y1)


class _Pooled(nn.Module):
    """A shortcut without weights: averages, and channels of zeros on both sides."""

    def __init__(self, more: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = more, stride

    def forward(self, x: Tensor) -> Tensor:
        sides = self.more // 2, self.more - self.more // 2
        return F.pad(F.avg_pool2d(x, self.stride), (0, 0, 0, 0, *sides))
