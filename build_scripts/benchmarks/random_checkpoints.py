"""Make a checkpoint of random weights in the shape of a published model, for `make bench` and `make compare`.

    python -m build_scripts.benchmarks.random_checkpoints modernbert-base build/modernbert-base
    make bench MODEL=build/modernbert-base

Speed does not depend on the weights. The tokenizer is trained on the project's own texts, so nothing is downloaded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from build_scripts.benchmarks.corpus import corpus
from build_scripts.core.paths import CALIBRATION
from build_scripts.releases.default_model import headlines

SPECIAL = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
LABELS, SEED = 10, 5
# Standard deviation of the classifier's weights: large enough that no two classes tie.
CLASSIFIER_STD = 0.5


def modernbert_base() -> transformers.PretrainedConfig:
    """transformers' defaults are ModernBERT-base's shape."""
    return transformers.ModernBertConfig()


def deberta_v3_base() -> transformers.PretrainedConfig:
    return transformers.DebertaV2Config(
        vocab_size=128_100,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=512,
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        pooler_hidden_act="gelu",
    )


def bert_base() -> transformers.PretrainedConfig:
    """transformers' defaults are BERT-base's shape."""
    return transformers.BertConfig()


SHAPES: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "modernbert-base": modernbert_base,
    "deberta-v3-base": deberta_v3_base,
    "bert-base": bert_base,
}


def make(shape: str, directory: Path) -> None:
    """Write the checkpoint. shape: one of SHAPES."""
    config = SHAPES[shape]()
    tokenizer = make_tokenizer(config.vocab_size, config.max_position_embeddings)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in SPECIAL.items()}
    config.update(
        {
            "pad_token_id": ids["pad_token"],
            "cls_token_id": ids["cls_token"],
            "sep_token_id": ids["sep_token"],
            "bos_token_id": ids["cls_token"],
            "eos_token_id": ids["sep_token"],
            "id2label": {index: f"class {index}" for index in range(LABELS)},
            "label2id": {f"class {index}": index for index in range(LABELS)},
        }
    )
    torch.manual_seed(SEED)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    torch.nn.init.normal_(model.classifier.weight, std=CLASSIFIER_STD)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def make_tokenizer(vocab_size: int, max_length: int) -> transformers.PreTrainedTokenizerFast:
    """A BPE tokenizer trained on the project's texts, padded to `vocab_size` with tokens that no text contains."""
    texts = [*corpus(), *CALIBRATION.read_text(encoding="utf-8").splitlines(), *(t for _, t in headlines("train"))]
    trained = Tokenizer(models.BPE(unk_token=SPECIAL["unk_token"]))
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = list(SPECIAL.values())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(texts, trainer)
    trained.add_tokens([f"<unused {index}>" for index in range(vocab_size - trained.get_vocab_size())])
    ends = [(token, trained.token_to_id(token)) for token in (SPECIAL["cls_token"], SPECIAL["sep_token"])]
    trained.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=trained, model_max_length=max_length, **SPECIAL)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write a checkpoint of random weights.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    make(arguments.shape, arguments.directory)
    print(f"written: {arguments.directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
