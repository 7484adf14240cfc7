"""Modules with a way of learning, or of being differentiated, of their own; each is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dldw.lazy import attributes

if TYPE_CHECKING:
    from dldw.nn.axial import AxialPositions as AxialPositions
    from dldw.nn.belief import DeepBeliefNetwork as DeepBeliefNetwork
    from dldw.nn.belief import stack as stack
    from dldw.nn.conversion import Conversion as Conversion
    from dldw.nn.conversion import convert as convert
    from dldw.nn.feed_forward import ChunkedFeedForward as ChunkedFeedForward
    from dldw.nn.feed_forward import chunked_cross_entropy as chunked_cross_entropy
    from dldw.nn.hugging_face_reformer import reformer_from_hugging_face as reformer_from_hugging_face
    from dldw.nn.local_attention import LocalAttention as LocalAttention
    from dldw.nn.lsh_attention import LSHAttention as LSHAttention
    from dldw.nn.rbm import RBM as RBM
    from dldw.nn.reformer import Reformer as Reformer
    from dldw.nn.reformer import ReformerConfig as ReformerConfig
    from dldw.nn.reversible import ReversibleBlock as ReversibleBlock
    from dldw.nn.reversible import ReversibleSequential as ReversibleSequential
    from dldw.nn.revnets import RevNet as RevNet
    from dldw.nn.revnets import revnet as revnet

_HOMES = {
    "AxialPositions": "dldw.nn.axial",
    "DeepBeliefNetwork": "dldw.nn.belief",
    "stack": "dldw.nn.belief",
    "Conversion": "dldw.nn.conversion",
    "convert": "dldw.nn.conversion",
    "chunked_cross_entropy": "dldw.nn.feed_forward",
    "ChunkedFeedForward": "dldw.nn.feed_forward",
    "reformer_from_hugging_face": "dldw.nn.hugging_face_reformer",
    "LocalAttention": "dldw.nn.local_attention",
    "LSHAttention": "dldw.nn.lsh_attention",
    "RBM": "dldw.nn.rbm",
    "Reformer": "dldw.nn.reformer",
    "ReformerConfig": "dldw.nn.reformer",
    "ReversibleBlock": "dldw.nn.reversible",
    "ReversibleSequential": "dldw.nn.reversible",
    "RevNet": "dldw.nn.revnets",
    "revnet": "dldw.nn.revnets",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = attributes(__name__, _HOMES)
