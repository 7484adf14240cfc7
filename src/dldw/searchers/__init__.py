"""Searchers: one method per file."""

from dldw.searchers.random_search import RandomSearch

__all__ = ["RandomSearch"]
