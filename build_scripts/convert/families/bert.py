"""BERT, RoBERTa, XLM-R, CamemBERT, data2vec-text, ELECTRA, ERNIE, LayoutLM (without boxes) and DistilBERT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from build_scripts.convert.families.common import norm_of
from build_scripts.graph.activations import plain_name
from build_scripts.graph.parts import EncoderLayer, EncoderParts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Classes whose encoder is modeling_bert's, module for module.
LAYOUT = ("bert", "roberta", "xlm-roberta", "camembert", "data2vec-text", "electra", "ernie", "layoutlm")
# Of these, the ones that number positions from the padding id on, as fairseq did.
FAIRSEQ_POSITIONS = {"roberta", "xlm-roberta", "camembert", "data2vec-text"}


def parts(model: PreTrainedModel, token_types: int) -> EncoderParts | None:
    config, base, model_type = model.config, model.base_model, model.config.model_type
    plain = (
        plain_name(config.hidden_act) != ""
        and not getattr(config, "is_decoder", False)
        and not getattr(config, "add_cross_attention", False)
        and len(base.encoder.layer) > 0
    )
    if not plain:
        return None
    embeddings = base.embeddings
    constant = embeddings.token_type_embeddings.weight[: min(token_types, 2), None]
    if getattr(config, "use_task_id", False):
        constant = constant + embeddings.task_type_embeddings.weight[0]
    if model_type == "layoutlm":  # a text without boxes has the box (0, 0, 0, 0) at every token
        x, y = embeddings.x_position_embeddings.weight[0], embeddings.y_position_embeddings.weight[0]
        height, width = embeddings.h_position_embeddings.weight[0], embeddings.w_position_embeddings.weight[0]
        constant = constant + (2 * x + 2 * y + height + width)
    if model_type in ("bert", "ernie", "layoutlm"):
        head_dense, head_activation, classifier = base.pooler.dense, "tanh", model.classifier
    else:
        head_dense, classifier = model.classifier.dense, model.classifier.out_proj
        head_activation = "gelu" if model_type == "electra" else "tanh"
    head_size = config.hidden_size // config.num_attention_heads
    return EncoderParts(
        word_embeddings=embeddings.word_embeddings.weight,
        position_embeddings=embeddings.position_embeddings.weight + constant,
        skipped_position_id=embeddings.padding_idx if model_type in FAIRSEQ_POSITIONS else -1,
        embedding_norm=norm_of(embeddings.LayerNorm),
        embedding_projection=getattr(base, "embeddings_project", None),
        layers=[
            EncoderLayer(
                query=layer.attention.self.query,
                key=layer.attention.self.key,
                value=layer.attention.self.value,
                attention_output=layer.attention.output.dense,
                attention_norm=norm_of(layer.attention.output.LayerNorm),
                intermediate=layer.intermediate.dense,
                output=layer.output.dense,
                output_norm=norm_of(layer.output.LayerNorm),
                scale=head_size**-0.5,
            )
            for layer in base.encoder.layer
        ],
        heads=config.num_attention_heads,
        key_value_heads=config.num_attention_heads,
        activation=plain_name(config.hidden_act),
        head_dense=head_dense,
        head_activation=head_activation,
        classifier=classifier,
    )


def distilbert_parts(model: PreTrainedModel, _token_types: int) -> EncoderParts | None:
    config, base = model.config, model.distilbert
    if not plain_name(config.activation) or not base.transformer.layer:
        return None
    return EncoderParts(
        word_embeddings=base.embeddings.word_embeddings.weight,
        position_embeddings=base.embeddings.position_embeddings.weight[None],
        embedding_norm=norm_of(base.embeddings.LayerNorm),
        layers=[
            EncoderLayer(
                query=layer.attention.q_lin,
                key=layer.attention.k_lin,
                value=layer.attention.v_lin,
                attention_output=layer.attention.out_lin,
                attention_norm=norm_of(layer.sa_layer_norm),
                intermediate=layer.ffn.lin1,
                output=layer.ffn.lin2,
                output_norm=norm_of(layer.output_layer_norm),
                scale=(config.dim // config.n_heads) ** -0.5,
            )
            for layer in base.transformer.layer
        ],
        heads=config.n_heads,
        key_value_heads=config.n_heads,
        activation=plain_name(config.activation),
        head_dense=model.pre_classifier,
        head_activation="relu",
        classifier=model.classifier,
    )
