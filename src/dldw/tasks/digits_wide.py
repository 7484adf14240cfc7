"""The digits with a network sixteen times as wide: what a method pays for more weights on the same problem."""

from __future__ import annotations

from dldw.tasks.digits import Digits


class DigitsWide(Digits):
    """As ``digits``, with 512 hidden units: 38,410 weights in place of 2,410."""

    name = "digits-wide"
    summary = "8 x 8 handwritten digits (scikit-learn), MLP 64-512-10 with tanh, batches of 128."
    width = 512
    companion = None
    wider = None
