"""Weights of a Reformer that was trained with Hugging Face's ``transformers``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dldw.errors import DldwError
from dldw.nn.feed_forward import ACTIVATIONS
from dldw.nn.reformer import Reformer, ReformerConfig

NAMES = (
    (r"reformer\.embeddings\.word_embeddings\.", "embedding."),
    (r"reformer\.embeddings\.position_embeddings\.embedding\.weight", "positions.weights.0"),
    (r"reformer\.embeddings\.position_embeddings\.", "positions."),
    (r"reformer\.encoder\.layers\.(\d+)\.attention\.layer_norm\.", r"blocks.blocks.\1.f.norm."),
    (r"reformer\.encoder\.layers\.(\d+)\.attention\.self_attention\.", r"blocks.blocks.\1.f.attention."),
    (r"reformer\.encoder\.layers\.(\d+)\.attention\.output\.dense\.", r"blocks.blocks.\1.f.attention.output."),
    (r"reformer\.encoder\.layers\.(\d+)\.feed_forward\.layer_norm\.", r"blocks.blocks.\1.g.norm."),
    (r"reformer\.encoder\.layers\.(\d+)\.feed_forward\.dense\.dense\.", r"blocks.blocks.\1.g.layers.layers.0."),
    (r"reformer\.encoder\.layers\.(\d+)\.feed_forward\.output\.dense\.", r"blocks.blocks.\1.g.layers.layers.2."),
    (r"reformer\.encoder\.layer_norm\.", "norm."),
    (r"lm_head\.decoder\.", "head."),
)
"""Its names and ours."""


def reformer_from_hugging_face(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Reformer:
    """A ``Reformer`` with the weights of a ``ReformerModelWithLMHead``; outputs are equal given the same rotations.

    Args:
        config: Its configuration as a dictionary: ``config.json``, or ``model.config.to_dict()``.
        state: Its ``state_dict()``, or what ``safetensors.torch.load_file`` reads.

    Raises:
        DldwError: The configuration asks for what this Reformer does not do, or a weight is missing or not known.
    """
    window = [
        config["lsh_num_chunks_before"], config["lsh_num_chunks_after"],
        config["local_num_chunks_before"], config["local_num_chunks_after"],
    ]  # fmt: skip
    if window != [1, 0, 1, 0] or not config["is_decoder"]:
        raise DldwError(
            f"this model looks at {window} chunks before and after (hashed, local), is_decoder={config['is_decoder']}; only "
            "decoders that look one chunk back are supported. Load another, or keep it in transformers."
        )
    if config["hidden_act"] not in ACTIVATIONS:
        raise DldwError(
            f"this model's hidden_act is {config['hidden_act']!r}, and there are {', '.join(ACTIVATIONS)}. Add it to "
            "dldw.nn.feed_forward.ACTIVATIONS."
        )
    axial = config["axial_pos_embds"]
    buckets = config["num_buckets"]
    own = ReformerConfig(
        vocabulary=config["vocab_size"],
        width=config["hidden_size"],
        layers=tuple(config["attn_layers"]),
        heads=config["num_attention_heads"],
        head_width=config["attention_head_size"],
        hidden=config["feed_forward_size"],
        positions=tuple(config["axial_pos_shape"]) if axial else (config["max_position_embeddings"],),
        position_widths=tuple(config["axial_pos_embds_dim"]) if axial else None,
        hashes=config["num_hashes"],
        chunk=config["lsh_attn_chunk_length"],
        local_chunk=config["local_attn_chunk_length"],
        buckets=tuple(buckets) if isinstance(buckets, list | tuple) else buckets,
        reach="ring",
        activation=config["hidden_act"],
        dropout=config["hidden_dropout_prob"],
        epsilon=config["layer_norm_eps"],
    )
    model = Reformer(own).to(next(iter(state.values())).dtype)
    weights = {
        _own_name(name): weight for name, weight in state.items() if name != "lm_head.bias"
    }  # decoder.bias again
    wanted = model.state_dict()
    if weights.keys() != wanted.keys():
        missing, unknown = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
        raise DldwError(
            f"these are not the weights of a ReformerModelWithLMHead of that configuration: missing {missing[:3]}, not known "
            f"{unknown[:3]}. Give the state_dict and the configuration of the same model."
        )
    weights["embedding.weight"] = weights["embedding.weight"] / own.width**0.5  # ours are scaled up where they are used
    model.load_state_dict({name: weight.view_as(wanted[name]) for name, weight in weights.items()})
    return model


def _own_name(name: str) -> str:
    for theirs, ours in NAMES:
        renamed, count = re.subn(f"^{theirs}", ours, name)
        if count:
            return renamed
    return name
