"""No answer depends on neighbours, on padding or on special tokens in any text of the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from build_scripts.convert import graph_choice
from build_scripts.convert.export import Graph, export
from build_scripts.convert.gate_texts import HOSTILE_TEXTS, interleaved, special_token_texts
from build_scripts.convert.parity import measure, passes, reference
from build_scripts.convert.traced import BatchMode
from build_scripts.core.errors import ServingError
from build_scripts.core.options import BuildOptions
from build_scripts.releases.pipeline import build
from tests.support.fp32_file import fp32_file
from tests.support.oracle import HuggingFace
from tests.support.token_batches import MAX_LOGIT_ERROR

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

ONE_BY_ONE = Graph(batch_mode=BatchMode(one_by_one=True))


def batches(checkpoint, texts: list[str]) -> list[tuple[list[str], torch.Tensor, torch.Tensor]]:
    """Alone, in pairs, all together: the texts with their input_ids and attention_mask."""
    groups = [[text] for text in texts] + [texts[i : i + 2] for i in range(0, len(texts), 2)] + [texts, texts[::-1]]
    return [(group, *checkpoint.tokenize(group)) for group in groups]


NEIGHBOURS = [
    "one </s> two </s> three", "a plain neighbour", "<pad>", "", "</s>", "one <mask> two", "</s></s> again", "b",
]  # fmt: skip


def test_pooling_at_a_token_is_served_one_by_one(subject, tmp_path):
    """BART reads the last </s> of each text; in a batch, Hugging Face expects the same number of them in every row."""
    own = subject("bart")
    graph, file = fp32_file(own.checkpoint, tmp_path)
    assert graph == ONE_BY_ONE
    model = torch.jit.load(str(file))
    oracle = HuggingFace(own.directory, 128)
    with torch.inference_mode():
        for texts, input_ids, attention_mask in batches(own.checkpoint, NEIGHBOURS):
            _, probabilities = model(input_ids, attention_mask)
            assert (probabilities - oracle.probabilities(texts)).abs().max() < MAX_LOGIT_ERROR


def test_pooling_at_a_token_answers_the_warm_up(subject, tmp_path):
    checkpoint = subject("bart").checkpoint
    export(checkpoint, ONE_BY_ONE, "fp32", tmp_path / "model.pt")
    model = torch.jit.load(str(tmp_path / "model.pt"))
    input_ids, attention_mask = checkpoint.tokenize(["a plain neighbour"])
    zeros = torch.zeros_like(input_ids)
    with torch.inference_mode():
        _, alone = model(zeros, zeros)
        _, both = model(torch.cat([zeros, input_ids]), torch.cat([zeros, attention_mask]))
        _, neighbour = model(input_ids, attention_mask)
    assert alone.isfinite().all()
    assert torch.equal(both[0], alone[0])
    assert torch.equal(both[1], neighbour[0])


def test_gate_detects_dependence_on_neighbours(subject, tmp_path):
    """The padded mode answers every plain batch of BART correctly; with </s> in a text it does not."""
    checkpoint = subject("bart").checkpoint
    export(checkpoint, Graph(), "fp32", tmp_path / "model.pt")
    texts = interleaved(HOSTILE_TEXTS, special_token_texts(checkpoint.tokenizer))
    try:
        passed = passes(measure(tmp_path / "model.pt", checkpoint, reference(checkpoint, texts)), "fp32")
    except (RuntimeError, torch.jit.Error):
        passed = False
    assert not passed


class NoZeros(torch.nn.Module):
    """A file that answers every text and fails on the zeros of a server's warm-up."""

    def __init__(self, file: Path):
        super().__init__()
        self.model = torch.jit.load(str(file))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if int(attention_mask.sum(1).min()) == 0:
            raise RuntimeError("an empty row")
        return self.model(input_ids, attention_mask)


def test_gate_tries_the_warm_up(subject, tmp_path):
    own = subject("bert")
    torch.jit.script(NoZeros(own.file())).save(str(tmp_path / "model.pt"))
    with pytest.raises((RuntimeError, torch.jit.Error), match="an empty row"):
        measure(tmp_path / "model.pt", own.checkpoint, reference(own.checkpoint, ["one", "two words"]))


@pytest.mark.parametrize("kind", ["bart", "bert"])
def test_build_exports_each_graph_once_and_asks_hugging_face_once(subject, kind, tmp_path, monkeypatch):
    exported, asked = [], []
    checkpoint = type(subject(kind).checkpoint)
    plain = checkpoint.logits
    monkeypatch.setattr(checkpoint, "logits", lambda self, text: asked.append(text) or plain(self, text))

    def counted(checkpoint, graph, precision, path):
        exported.append((str(graph), precision))
        export(checkpoint, graph, precision, path)

    monkeypatch.setattr(graph_choice, "export", counted)
    calibration = tmp_path / "texts.txt"
    calibration.write_text("rather more words than one\nand some other words\n", encoding="utf-8")
    options = {"precision": "fp32", "calibration": calibration, "repository": tmp_path / "repository"}
    built = build(BuildOptions(model=str(subject(kind).directory), **options))
    model = torch.jit.load(str(built.release / "model.pt"))
    zeros = torch.zeros(1, 512, dtype=torch.int64)
    _, probabilities = model(zeros, zeros)
    assert probabilities.isfinite().all()
    graph = "packed (padding only inside attention)" if kind == "bert" else str(ONE_BY_ONE)
    assert built.manifest["graph"] == graph
    assert exported.count((graph, "fp32")) == 1
    assert asked.count("rather more words than one") == 1


def test_failing_packed_graph_falls_back_to_the_traced_forward(subject, tmp_path, monkeypatch):
    plain = graph_choice.export

    def damaged(checkpoint, graph, precision, path):
        plain(checkpoint, graph, precision, path)
        if graph.packed:
            file = torch.jit.load(str(path))
            with torch.no_grad():
                file.logits.words.mul_(1.2)
            file.save(str(path))

    monkeypatch.setattr(graph_choice, "export", damaged)
    graph, _ = fp32_file(subject("bert").checkpoint, tmp_path)
    assert graph == Graph()


def test_refuses_a_checkpoint_that_no_graph_answers(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(graph_choice, "passes", lambda *_: False)
    with pytest.raises(ServingError, match=r"megatron-bert: no TorchScript file answers like Hugging Face.*moves by"):
        fp32_file(subject("megatron-bert").checkpoint, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_special_tokens_appear_once_and_repeatedly_beside_texts_without(subject):
    tokenizer = subject("roberta").tokenizer
    texts = special_token_texts(tokenizer)
    for token in tokenizer.all_special_tokens:
        assert {1, 3} <= {text.count(token) for text in texts}
        assert 0 in {text.count(token) for text in texts}


@pytest.mark.parametrize(("texts", "others"), [(10, 3), (3, 10), (0, 2), (2, 0), (9, 3)])
def test_interleaving_keeps_every_text(texts, others):
    one, other = [f"t{i}" for i in range(texts)], [f"o{i}" for i in range(others)]
    mixed = interleaved(one, other)
    assert sorted(mixed) == sorted(one + other)
    assert [text for text in mixed if text in one] == one
