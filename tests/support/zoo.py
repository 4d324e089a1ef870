"""One small checkpoint per family and per layout that people bring, and what becomes of each.

`ROWS` is what the documentation says: `python -m tests.support.zoo` writes it into docs/your-checkpoint.md, and the
tests check each row against plain transformers. Weights are random, tokenizers are trained here, nothing is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedTokenizerBase

from build_scripts.convert.export import Graph
from build_scripts.convert.traced import BatchMode
from build_scripts.core.paths import PROJECT
from tests.support import checkpoints, pieces

PACKED, PADDED, ALONE, REFUSED = "packed", "padded", "one text at a time", "refused"
ALONE_FULL = "one text at a time, at full width"
OUTCOMES = {BatchMode(): PADDED, BatchMode(one_by_one=True): ALONE, BatchMode(True, True): ALONE_FULL}
PAGE = PROJECT / "docs" / "your-checkpoint.md"
SECTION = re.compile(r"(<!-- zoo -->\n).*?(<!-- /zoo -->)", re.DOTALL)

# Small values of whatever a config calls its sizes.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "emb_dim", "embedding_size"), 32),
    "word_embed_proj_dim": 32,
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "d_inner", "n_inner", "hidden_dim"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 140),
    "num_decoder_layers": 2, "decoder_attention_heads": 4, "num_key_value_heads": 2, "d_kv": 8, "head_dim": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """family: a model type of transformers.

    tokenizer: the kind of `checkpoints.make_tokenizer`, or one of ours, or the name of SentencePiece's file, which is
    then all there is of a tokenizer.
    """

    family: str
    becomes: str
    tokenizer: str = "bert"
    config: dict[str, Any] = field(default_factory=dict)
    says: str = ""

    @property
    def name(self) -> str:
        told = [f"{key}={value}" for key, value in self.config.items() if key in TOLD]
        return " ".join([self.family, *told, *([f"tokenizer={self.tokenizer}"] if self.of_pieces else [])])

    @property
    def of_pieces(self) -> bool:
        return self.tokenizer in pieces.FILES


# Settings that make another layout of a family; other ones only keep it small.
TOLD = (
    "hidden_act",
    "is_decoder",
    "relative_attention",
    "num_hidden_layers",
    "pad_token_id",
    "classifier_pooling",
    "pos_att_type",
    "conv_kernel_size",
    "use_sliding_window",
    "rotary_value",
    "type_vocab_size",
)

# Sizes by names of their own.
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
CONVOLUTION = {"conv_kernel_size": 3, "conv_act": "gelu"}
ONE_THETA = {"global_rope_theta": 10_000.0, "local_rope_theta": 10_000.0}
PERCEIVER = {
    "d_latents": 32, "num_latents": 8, "num_blocks": 1, "num_self_attends_per_block": 2,
    "num_self_attention_heads": 4, "num_cross_attention_heads": 4,
}  # fmt: skip
REFORMER = {
    "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16], "attn_layers": ["local", "lsh"],
    "feed_forward_size": 48, "num_hashes": 1, "num_buckets": 4, "lsh_attn_chunk_length": 16,
    "local_attn_chunk_length": 16, "attention_head_size": 8,
}  # fmt: skip

ROWS = [
    Row("bert", PACKED),
    Row("bert", PACKED, config={"hidden_act": "gelu_new"}),
    Row("roberta", PACKED, "roberta"),
    Row("xlm-roberta", PACKED, "xlm-roberta"),
    Row("camembert", PACKED, "camembert"),
    Row("xlm-roberta", PACKED, "sentencepiece.bpe.model"),
    Row("camembert", PACKED, "sentencepiece.bpe.model"),
    Row("data2vec-text", PACKED, "roberta"),
    Row("electra", PACKED),
    Row("ernie", PACKED),
    Row("distilbert", PACKED),
    Row("layoutlm", PACKED),
    Row("bert", PADDED, config={"is_decoder": True}),
    Row("bert", PADDED, config={"num_hidden_layers": 0}),
    Row("deberta", PADDED, "roberta", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    Row("modernbert", PACKED, "modernbert", {"local_attention": 16, "classifier_pooling": "cls"}),
    Row("modernbert", PACKED, "modernbert", {"local_attention": 16, "classifier_pooling": "mean", **ONE_THETA}),
    Row("deberta-v2", PACKED, "deberta-v2", {**DISENTANGLED, "position_buckets": 16, "position_biased_input": False}),
    Row("deberta-v2", PACKED, "spm.model", {**DISENTANGLED, "max_relative_positions": 40, "type_vocab_size": 2}),
    Row("deberta-v2", PACKED, "deberta-v2", {**DISENTANGLED, "pos_att_type": ["c2p"], **CONVOLUTION}),
    Row("deberta-v2", PACKED, "deberta-v2", {**DISENTANGLED, "pos_att_type": ["p2c"], "share_att_key": True}),
    Row("deberta-v2", PACKED, "deberta-v2", {"relative_attention": False}),
    Row("eurobert", PACKED, "modernbert", {"classifier_pooling": "bos"}),
    Row("eurobert", PACKED, "modernbert", {"classifier_pooling": "mean"}),
    Row("eurobert", PACKED, "modernbert", {"classifier_pooling": "late"}),
    Row("gte", PACKED, "xlm-roberta"),
    Row("gte", PACKED, config={"type_vocab_size": 0}),
    Row("nomic_bert", PACKED),
    Row("jina_embeddings_v3", PACKED, "xlm-roberta"),
    Row("albert", PACKED, "albert"),
    Row("albert", PACKED, "spiece.model", {"num_hidden_groups": 2, "num_hidden_layers": 4}),
    Row("mpnet", PACKED, "mpnet"),
    Row("roformer", PACKED),
    Row("roformer", PADDED, config={"rotary_value": True}),
    Row("ultrabert", PACKED, "modernbert", {"sliding_window": 8, "classifier_pooling": "cls"}),
    Row("llama", PACKED, "bytes"),
    # Its tokenizer's class adds a token.
    Row("qwen2", PACKED, "bytes", {"vocab_size": 512}),
    Row("qwen3", PACKED, "bytes"),
    Row("qwen3", PACKED, "bytes", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    Row("gemma", PACKED, "bytes"),
    Row("rembert", PADDED),
    Row("megatron-bert", PADDED),
    Row("ibert", PADDED, "roberta"),
    Row("mra", PADDED, "roberta"),
    Row("perceiver", PADDED, config=PERCEIVER),
    Row("xmod", PADDED, "xlm-roberta", {"default_language": "en_XX"}),
    Row("gpt2", PADDED, "bytes"),
    Row("gpt2", ALONE, "bytes", {"pad_token_id": None}),
    Row("gpt_neox", PADDED, "bytes"),
    Row("opt", PADDED, "bytes"),
    Row("bart", ALONE, "roberta"),
    Row("mbart", ALONE, "roberta"),
    Row("t5", ALONE, "roberta", {"decoder_start_token_id": 1}),
    Row("mt5", ALONE, "roberta", {"decoder_start_token_id": 1}),
    Row("xlnet", ALONE, "xlnet"),
    Row("convbert", ALONE),
    Row("mobilebert", ALONE),
    Row("fnet", ALONE),
    Row("longformer", ALONE_FULL, "roberta", {"attention_window": 16}),
    Row("bloom", REFUSED, "bytes", says="cannot be written as TorchScript"),
    Row("yoso", REFUSED, says="cannot be written as TorchScript"),
    Row("reformer", REFUSED, "bytes", REFORMER, says="cannot be written as TorchScript"),
]


def outcome(graph: Graph) -> str:
    return PACKED if graph.packed else OUTCOMES[graph.batch_mode]


def make(row: Row, directory: Path, *, labels: int = 4) -> Path:
    """Write the row's checkpoint: config and weights in the family's own classes, and its tokenizer."""
    tokenizer = pieces.write(row.tokenizer, row.family, directory) if row.of_pieces else make_tokenizer(row.tokenizer)
    config = small_config(row.family, tokenizer, {**row.config, "num_labels": labels})
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    checkpoints.draw_weights(model, seed=0)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(directory)
    if row.of_pieces:
        (directory / "tokenizer_config.json").write_text('{"model_max_length": 128}', encoding="utf-8")
    else:
        tokenizer.save_pretrained(directory)
    return directory


def small_config(family: str, tokenizer: PreTrainedTokenizerBase, changes: dict[str, Any]) -> PretrainedConfig:
    config_class = CONFIG_MAPPING[family]
    known = config_class().to_dict().keys() | set(config_class.attribute_map.values())
    sizes = {key: value for key, value in SMALL.items() if key in known}
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return config_class(**{**sizes, **special, "vocab_size": len(tokenizer), **changes})


def make_tokenizer(kind: str) -> PreTrainedTokenizerBase:
    own: dict[str, Callable[[], PreTrainedTokenizerBase]] = {"bytes": no_special_tokens, "xlnet": xlnet}
    return own[kind]() if kind in own else checkpoints.make_tokenizer(kind, 128)


def no_special_tokens() -> PreTrainedTokenizerBase:
    """As GPT-2 and Qwen tokenize: nothing is added, so that an empty text has no token at all."""
    vocabulary, merges = checkpoints.byte_pairs(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def xlnet() -> PreTrainedTokenizerBase:
    """Its special tokens stand at the end, and the last has another token type."""
    special = ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>")
    return transformers.XLNetTokenizer(vocab=checkpoints.unigrams(special), model_max_length=128)


def table() -> str:
    """The rows in Markdown, grouped by what becomes of them."""
    meaning = {
        PACKED: "padding-free graph, fastest",
        PADDED: "transformers' own forward, a batch padded to its longest text",
        ALONE: "transformers' own forward, one text after the other",
        ALONE_FULL: "the same, every text padded to `max_length`",
        REFUSED: "the build says why",
    }
    lines = ["| how it is served | families and layouts that are tried |", "|---|---|"]
    for outcome, words in meaning.items():
        rows = [row for row in ROWS if row.becomes == outcome]
        if rows:
            names = ", ".join(f"`{row.name}`" + (f" ({row.says})" if row.says else "") for row in rows)
            lines.append(f"| **{outcome}**: {words} | {names} |")
    return "\n".join(lines) + "\n"


def written(page: str) -> str:
    """The page with today's table between its marks."""
    return SECTION.sub(lambda match: match.group(1) + table() + match.group(2), page)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
