"""Make small checkpoints with random weights: ordinary Hugging Face directories, one kind per architecture.

Every parameter is drawn anew, biases and norms included: Hugging Face initialises those with zeros and ones, and a
graph that forgot one would still be right. The matrices are large enough for class ids to vary from text to text.
"""

from __future__ import annotations

import functools
import json
import string
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import PreTrainedTokenizerBase

from build_scripts.releases.default_model import headlines

PACKED_KINDS = ("bert", "bert-chinese", "roberta", "xlm-roberta", "camembert", "electra", "ernie", "distilbert")
PACKED_KINDS = (*PACKED_KINDS, "modernbert", "albert", "deberta-v2", "mpnet")
FALLBACK_KINDS = ("megatron-bert", "rembert")
# "bart" is not among them: it answers one text at a time only.
KINDS = PACKED_KINDS + FALLBACK_KINDS
# `make check` takes the others, and the zoo, which has each of these once: a test of one of them is slow.
LIKE_ANOTHER = tuple(kind for kind in KINDS if kind not in ("bert", "bert-chinese", "roberta", "megatron-bert"))

CHINESE_LABELS = ["财经", "房产", "股票", "教育", "科技", "社会", "时政", "体育", "游戏", "娱乐"]
HAN = [chr(code) for code in range(0x4E00, 0x4E00 + 400)]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.3,
}


def make_checkpoint(
    kind: str,
    directory: Path,
    *,
    labels: list[str] | None = None,
    multi_label: bool = False,
    seed: int = 0,
    max_positions: int = 128,
    **overrides: object,
) -> Path:
    """Write a checkpoint of a kind in KINDS into `directory` and return it. overrides: fields of the config."""
    labels = labels or (CHINESE_LABELS if kind == "bert-chinese" else [f"label {index}" for index in range(6)])
    tokenizer = make_tokenizer(kind, max_positions)
    config = make_config(kind, tokenizer, max_positions)
    config.update(
        {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "problem_type": "multi_label_classification" if multi_label else "single_label_classification",
            **overrides,
        }
    )
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    draw_weights(model, seed)
    spread_logits(model, tokenizer)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def draw_weights(model: nn.Module, seed: int) -> None:
    """Replace every parameter: matrices and biases around 0, the scales of norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if not parameter.requires_grad:  # computed, not trained: RoFormer's positions
                continue
            is_scale = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + float(is_scale))


def spread_logits(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Move and scale the last layer, so that every class wins for some texts and bf16 noise stays small."""
    head = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == model.config.num_labels][-1]
    inputs = tokenizer(sample_texts(), padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits
    with torch.no_grad():
        scale = 0.5 / logits.std(0)
        head.weight.mul_(scale[:, None])
        head.bias.sub_(logits.mean(0)).mul_(scale)


def make_config(kind: str, tokenizer: PreTrainedTokenizerBase, max_positions: int) -> transformers.PretrainedConfig:
    common = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": max_positions,
        "pad_token_id": tokenizer.pad_token_id,
        **SIZES,
    }
    # fairseq numbers positions from the padding id on, and keeps as many rows more.
    fairseq = {**common, "max_position_embeddings": max_positions + tokenizer.pad_token_id + 1, "type_vocab_size": 1}
    match kind:
        case "bert" | "bert-chinese":
            return transformers.BertConfig(**common)
        case "megatron-bert":
            return transformers.MegatronBertConfig(**common)
        case "rembert":
            return transformers.RemBertConfig(**common, input_embedding_size=16)
        case "roberta":
            return transformers.RobertaConfig(**fairseq)
        case "xlm-roberta":
            return transformers.XLMRobertaConfig(**fairseq)
        case "camembert":
            return transformers.CamembertConfig(**fairseq)
        case "electra":
            return transformers.ElectraConfig(**common, embedding_size=16)
        case "ernie":
            return transformers.ErnieConfig(**common, use_task_id=True, task_type_vocab_size=3)
        case "distilbert":
            return transformers.DistilBertConfig(
                vocab_size=common["vocab_size"], max_position_embeddings=max_positions, dim=32, n_layers=3, n_heads=4,
                hidden_dim=48, initializer_range=0.3, pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
        case "albert":
            return transformers.AlbertConfig(**common, embedding_size=16)
        case "deberta-v2":
            return transformers.DebertaV2Config(
                **common, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16,
                norm_rel_ebd="layer_norm", share_att_key=True,
            )  # fmt: skip
        case "mpnet":
            return transformers.MPNetConfig(**{**fairseq, "type_vocab_size": 2})
        case "bart":
            return transformers.BartConfig(
                vocab_size=common["vocab_size"], max_position_embeddings=max_positions, d_model=32, encoder_layers=2,
                decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
                decoder_ffn_dim=48, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id, decoder_start_token_id=tokenizer.eos_token_id,
                forced_eos_token_id=None,
            )  # fmt: skip
        case "modernbert":
            return transformers.ModernBertConfig(
                **common, local_attention=16, global_attn_every_n_layers=3, cls_token_id=tokenizer.cls_token_id,
                sep_token_id=tokenizer.sep_token_id, bos_token_id=None, eos_token_id=None,
            )  # fmt: skip
    raise ValueError(f"no such kind: {kind}")


def make_tokenizer(kind: str, max_length: int) -> PreTrainedTokenizerBase:
    """The tokenizer class that Hugging Face pairs with the architecture, with a vocabulary trained here."""
    size = {"model_max_length": max_length}
    match kind:
        case "bert-chinese":
            return transformers.BertTokenizer(vocab=chinese_vocabulary(), **size)
        case "bert" | "electra" | "ernie" | "distilbert" | "megatron-bert" | "rembert":
            return transformers.BertTokenizer(vocab=word_pieces(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")), **size)
        case "mpnet":
            vocabulary = word_pieces(("<s>", "<pad>", "</s>", "[UNK]", "<mask>"))
            return transformers.MPNetTokenizer(vocab=vocabulary, **size)
        case "roberta" | "bart":
            vocabulary, merges = byte_pairs(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
            return transformers.RobertaTokenizer(vocab=vocabulary, merges=merges, **size)
        case "modernbert":
            return byte_pair_tokenizer(max_length)
        case "xlm-roberta":
            return transformers.XLMRobertaTokenizer(vocab=unigrams(("<s>", "<pad>", "</s>", "<unk>", "<mask>")), **size)
        case "camembert":
            special = ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>", "<mask>")
            return transformers.CamembertTokenizer(vocab=unigrams(special), **size)
        case "albert":
            return transformers.AlbertTokenizer(vocab=unigrams(("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")), **size)
        case "deberta-v2":
            special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
            return transformers.DebertaV2Tokenizer(vocab=unigrams(special), **size)
    raise ValueError(f"no such kind: {kind}")


@functools.cache
def corpus() -> list[str]:
    """Headlines, and runs of the same characters often enough for tokens of several of them."""
    runs = ["wait ... what?! -- no  no   no    no", "中文 中文 字学 中文学", "(see: [1]), $$$ 100,000 !?"]
    return [text for _, text in headlines("train")][::4] + 12 * runs


def sample_texts() -> list[str]:
    """A few texts in which every tokenizer made here finds known tokens."""
    return corpus()[:60] + ["".join(HAN[(start * step) % len(HAN)] for step in range(40)) for start in range(1, 40)]


@functools.cache
def word_pieces(special: tuple[str, ...]) -> dict[str, int]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alphabet = list(string.printable.strip() + "é中文字学")
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer.get_vocab()


def chinese_vocabulary() -> dict[str, int]:
    """As in bert-base-chinese: one token a Han character, and pieces of ASCII."""
    letters = string.ascii_lowercase + string.digits
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *HAN, *"，。！？、", *string.punctuation, *letters]
    tokens += [f"##{letter}" for letter in letters]
    return {token: index for index, token in enumerate(tokens)}


@functools.cache
def byte_pairs(special: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A GPT-2 style vocabulary and its merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return tokenizer.get_vocab(), [tuple(merge) for merge in merges]


@functools.cache
def unigrams(special: tuple[str, ...]) -> list[tuple[str, float]]:
    """Pieces and their log probabilities, the special tokens first.

    Few decimals, so that a file gives them back exactly: "..." can be split two ways of equal probability, and then the
    last bit decides.
    """
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    unknown = next(token for token in special if token in ("<unk>", "[UNK]"))
    trainer = trainers.UnigramTrainer(
        vocab_size=500, special_tokens=list(special), unk_token=unknown, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return [(piece, round(score, 3)) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]


def byte_pair_tokenizer(max_length: int) -> PreTrainedTokenizerBase:
    """ModernBERT's kind: byte-level BPE with BERT's special tokens."""
    vocabulary, merges = byte_pairs(("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        mask_token="[MASK]", model_max_length=max_length, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
