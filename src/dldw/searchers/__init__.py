"""Searchers: one method per file."""

from dldw.searchers.cmaes import CMAES
from dldw.searchers.random_search import RandomSearch

__all__ = ["CMAES", "RandomSearch"]
