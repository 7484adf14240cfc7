"""Fashion-MNIST, or MNIST: 28 x 28 images in ten classes, from the user's own copy of the four IDX files."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from dldw.errors import DldwError
from dldw.tasks.classification import Batch, Classification
from dldw.tasks.idx import read_idx


class FashionMnist(Classification):
    """60,000 images to train (a twelfth of them to tune on) and 10,000 to test; a small convolutional network.

    Source: Xiao, Rasul & Vollgraf 2017, arXiv 1708.07747.

    Args:
        data: Directory of the IDX files, as they are or gzipped; the environment variable DLDW_DATA by default.

    Raises:
        DldwError: No directory is given, or files are missing, torn, or do not belong together.
    """

    name = "fashion-mnist"
    summary = "28 x 28 images (Fashion-MNIST or MNIST, IDX files in --data), a CNN with two strided convolutions."
    target = 0.80
    width = 8

    def __init__(self, data: Path | None = None) -> None:
        given = data or os.environ.get("DLDW_DATA")
        if not given:
            raise DldwError(
                "fashion-mnist needs its four IDX files and was told of no directory. Fetch them from "
                "https://github.com/zalandoresearch/fashion-mnist and give the directory with --data or DLDW_DATA."
            )
        train, test = _split(Path(given), "train"), _split(Path(given), "t10k")
        super().__init__(train, test, validation=max(1, len(train[1]) // 12))

    def prepare(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1).float().div_(255)

    def network(self, width: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(2 * width * 49, 10),
        )  # fmt: skip


def _split(directory: Path, name: str) -> Batch:
    images, labels = (_find(directory, f"{name}-{what}") for what in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    x, y = torch.from_numpy(read_idx(images, 3).copy()), torch.from_numpy(read_idx(labels, 1).copy()).long()
    if x.shape != (len(y), 28, 28) or len(y) < 2 or int(y.max()) > 9:
        raise DldwError(
            f"{images} holds {len(x)} images of {' x '.join(map(str, x.shape[1:]))} and {labels} {len(y)} labels up to "
            f"{int(y.max()) if len(y) else '-'}; the network takes 28 x 28 in ten classes, a label to each. Fetch both again."
        )
    return x, y


def _find(directory: Path, stem: str) -> Path:
    for name in (stem, f"{stem}.gz", stem.replace("-idx", ".idx"), stem.replace("-idx", ".idx") + ".gz"):
        if (directory / name).is_file():
            return directory / name
    raise DldwError(
        f"{directory} has no file {stem} or {stem}.gz. The task reads the four IDX files of Fashion-MNIST or MNIST; "
        "fetch them from https://github.com/zalandoresearch/fashion-mnist and give their directory with --data."
    )
