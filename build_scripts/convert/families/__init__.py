"""Describe a checkpoint as the packed graph's parts, whatever its Hugging Face class calls them.

One module per family, or per group of families with the same names. `encoder_parts` returns None for a checkpoint that
the packed graph cannot compute; the caller then traces Hugging Face's own forward. Nothing is computed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from build_scripts.convert.families import albert, bert, deberta_v2, gated, modernbert, mpnet, roformer
from build_scripts.graph.parts import EncoderParts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAMILIES = {
    **dict.fromkeys(bert.LAYOUT, bert.parts),
    "distilbert": bert.distilbert_parts,
    "modernbert": modernbert.parts,
    "deberta-v2": deberta_v2.parts,
    "eurobert": gated.eurobert_parts,
    "ultrabert": gated.ultrabert_parts,
    "gte": gated.gte_parts,
    "nomic_bert": gated.gte_parts,
    "jina_embeddings_v3": gated.jina_parts,
    "albert": albert.parts,
    "mpnet": mpnet.parts,
    "roformer": roformer.parts,
    **dict.fromkeys(("llama", "qwen2", "qwen3", "gemma"), gated.decoder_parts),
}


def encoder_parts(model: PreTrainedModel, token_types: int = 1) -> EncoderParts | None:
    """The parts of a loaded `AutoModelForSequenceClassification`, or None.

    token_types: number of token types that the tokenizer gives to the tokens of a pair.
    """
    family = FAMILIES.get(model.config.model_type)
    return None if family is None else family(model, token_types)
