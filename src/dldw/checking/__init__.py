"""Is this gradient right? What is claimed is compared with difference quotients that know their own error."""

from __future__ import annotations

from dldw.checking.curvature import Curvature, HessianDiagonal, directional_curvature, hessian_diagonal
from dldw.checking.function import check_function
from dldw.checking.model import check
from dldw.checking.result import CheckResult, Part

__all__ = [
    "CheckResult",
    "Curvature",
    "HessianDiagonal",
    "Part",
    "check",
    "check_function",
    "directional_curvature",
    "hessian_diagonal",
]
