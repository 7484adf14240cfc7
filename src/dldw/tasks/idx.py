"""The IDX file format of MNIST and its relatives: http://yann.lecun.com/exdb/mnist/, also gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from dldw.errors import DldwError


def read_idx(file: Path, dimensions: int) -> np.ndarray:
    """The unsigned bytes in an IDX file.

    Args:
        file: The file; one that ends in ``.gz`` is unpacked on the way.
        dimensions: How many the array must have.

    Raises:
        DldwError: The file is torn or is something else.
    """
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise DldwError(
            f"{file} cannot be unpacked ({error}): the download was cut off. Fetch the file again."
        ) from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, 8, dimensions]):
        raise DldwError(
            f"{file} is no IDX file of bytes in {dimensions} dimensions: it starts with {content[:4].hex(' ') or 'nothing'}, "
            f"not 00 00 08 0{dimensions}. Fetch the file again, and check that it is what its name says."
        )
    shape = tuple(np.frombuffer(content, ">u4", dimensions, 4).tolist())
    if len(content) != header + math.prod(shape):
        raise DldwError(
            f"{file} is torn: its header promises {' x '.join(map(str, shape))} = {math.prod(shape):,} bytes of data, "
            f"and {len(content) - header:,} follow. Fetch the file again."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
