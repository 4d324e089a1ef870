"""examples/zero_shot.py answers like transformers' zero-shot pipeline. A tiny checkpoint stands in for the server."""

from __future__ import annotations

import runpy

import pytest
import torch
import transformers

from build_scripts.core.paths import PROJECT
from tests.support.checkpoints import make_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = ["sports", "politics", "cooking", "a longer label: with a colon"]
NLI = ["contradiction", "neutral", "entailment"]


@pytest.mark.parametrize("names", [NLI, NLI[::-1], ["entailment", "not_entailment"]], ids=" ".join)
def test_zero_shot_equals_transformers(tmp_path, names):
    directory = make_checkpoint("bert", tmp_path / "checkpoint", labels=names)
    pipeline = transformers.pipeline("zero-shot-classification", model=str(directory))

    def ask(pairs, best=0):
        inputs = pipeline.tokenizer(*zip(*pairs), padding=True, return_tensors="pt")
        with torch.inference_mode():
            probabilities = pipeline.model(**inputs).logits.softmax(1)
        if not best:
            return probabilities.flatten().tolist()
        order = probabilities[0].argsort(descending=True).tolist()  # as Triton does: the most probable first
        return [f"{probabilities[0, index]:.6f}:{index}:{names[index]}" for index in order]

    zero_shot = runpy.run_path(str(PROJECT / "examples" / "zero_shot.py"))["zero_shot"]
    for text in ("The keeper saved a penalty in the last minute.", "Stir the soup: it must not boil."):
        expected = pipeline(text, LABELS, multi_label=True)
        found = zero_shot(text, LABELS, ask)
        assert list(found) == expected["labels"]
        assert list(found.values()) == pytest.approx(expected["scores"], abs=1e-4)
    assert list(zero_shot(text, LABELS[:1], ask).values()) == pytest.approx(
        pipeline(text, LABELS[:1])["scores"], abs=1e-4
    )
