"""``python -m dldw`` is the command ``dldw``, where its script is not on the path."""

from __future__ import annotations

from dldw.cli import main

main()
