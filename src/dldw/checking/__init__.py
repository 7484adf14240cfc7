"""Is this gradient right? What is claimed is compared with difference quotients that know their own error."""

from __future__ import annotations

from dldw.checking.function import check_function
from dldw.checking.model import check
from dldw.checking.result import CheckResult, Part

__all__ = ["CheckResult", "Part", "check", "check_function"]
