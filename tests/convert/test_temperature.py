"""Temperature: fitted on one half, better on the other, folded into the last layer without a changed class id."""

from __future__ import annotations

import hashlib
import math
import random
from pathlib import Path

import pytest
import torch
from scipy.optimize import minimize_scalar
from transformers import AutoModelForSequenceClassification

from build_scripts.convert import calibrate as calibration
from build_scripts.convert import temperature
from build_scripts.convert.calibrate import calibrate
from build_scripts.convert.checkpoint import load
from build_scripts.core.errors import ServingError
from build_scripts.core.labelled_file import DEFAULT_COLUMNS
from build_scripts.core.options import BuildOptions
from build_scripts.quality.answers import InProcess
from build_scripts.quality.metrics import measure
from build_scripts.releases.default_model import headlines
from build_scripts.releases.pipeline import Built, build
from build_scripts.releases.summary import print_build
from tests.support.checkpoints import PACKED_KINDS, make_checkpoint
from tests.support.oracle import HuggingFace

pytestmark = [pytest.mark.usefixtures("one_thread")]

TEXTS = list(dict.fromkeys(text for _, text in headlines("train")))[:300]
# The checkpoint's logits are this much too large for the labels.
TOO_SHARP = 3.0


class OverConfident:
    """A checkpoint whose last layer is too sharp for the labels of `file`, and plain Hugging Face's logits of it."""

    def __init__(self, directory: Path, *, multi_label: bool):
        self.multi_label = multi_label
        self.directory = make_checkpoint("bert", directory / "model", multi_label=multi_label)
        model = AutoModelForSequenceClassification.from_pretrained(self.directory)
        with torch.no_grad():
            model.classifier.weight.mul_(12.0)
            model.classifier.bias.mul_(12.0)
        model.save_pretrained(self.directory)
        oracle = HuggingFace(self.directory, 128)
        with torch.inference_mode():
            encoded = [oracle.encode(text) for text in TEXTS]
            inputs = [{name: torch.tensor([row]) for name, row in one.items()} for one in encoded]
            self.logits = torch.cat([oracle.model(**one).logits for one in inputs]).double()
        self.file = directory / "labelled.tsv"
        self.write(self.file)

    def write(self, file: Path) -> None:
        """Labels drawn from the probabilities that logits / TOO_SHARP mean."""
        generator = torch.Generator().manual_seed(5)
        if self.multi_label:
            drawn = torch.rand(self.logits.shape, generator=generator) < (self.logits / TOO_SHARP).sigmoid()
            self.truth = drawn.double()
            labels = ["|".join(f"label {index}" for index in row.nonzero()[:, 0].tolist()) or "-" for row in drawn]
        else:
            drawn = torch.multinomial((self.logits / TOO_SHARP).softmax(1).float(), 1, generator=generator)[:, 0]
            self.truth = drawn
            labels = [f"label {index}" for index in drawn.tolist()]
        file.write_text("".join(f"{text}\t{label}\n" for text, label in zip(TEXTS, labels)), encoding="utf-8")

    def built(self, repository: Path, **options) -> Built:
        texts = repository.with_suffix(".txt")
        texts.write_text("Museum reopens after two years\n", encoding="utf-8")
        return build(
            BuildOptions(str(self.directory), precision="fp32", calibration=texts, repository=repository, **options)
        )


@pytest.fixture(scope="module", params=[False, True], ids=["single-label", "multi-label"])
def over_confident(request, tmp_path_factory) -> OverConfident:
    return OverConfident(tmp_path_factory.mktemp("sharp"), multi_label=request.param)


@pytest.fixture(scope="module")
def sharp(tmp_path_factory) -> OverConfident:
    return OverConfident(tmp_path_factory.mktemp("single"), multi_label=False)


@pytest.mark.slow
def test_release_is_better_calibrated_with_the_same_class_ids(over_confident, tmp_path, capsys):
    built = over_confident.built(tmp_path / "repository", calibrate=over_confident.file)
    found = built.manifest["temperature"]
    assert found["file_sha256"] == hashlib.sha256(over_confident.file.read_bytes()).hexdigest()
    assert found["fitted_texts"] + found["held_out_texts"] == len(TEXTS)
    for figure in ("expected_calibration_error", "log_loss"):
        assert found[figure]["after"] < 0.8 * found[figure]["before"]
    assert 2.0 < found["value"] < 4.5

    scaled = over_confident.logits / found["value"]
    expected = scaled.sigmoid() if over_confident.multi_label else scaled.softmax(1)
    batches = list(InProcess(built.release).answers(TEXTS))
    probabilities = torch.cat([torch.from_numpy(batch.probabilities) for batch in batches])
    assert (probabilities - expected).abs().max() < 1e-5
    class_ids = torch.cat([torch.from_numpy(batch.class_ids) for batch in batches])
    assert torch.equal(class_ids, over_confident.logits.argmax(1))

    capsys.readouterr()
    print_build(built)
    said = " ".join(capsys.readouterr().out.split())
    assert "temperature" in said
    assert "expected calibration error" in said


@pytest.mark.slow
def test_every_packed_family_scales_by_its_last_layer(subject):
    for kind in PACKED_KINDS:
        checkpoint = load(subject(kind).directory)
        with torch.no_grad():
            before = torch.stack([checkpoint.logits(text) for text in TEXTS[:3]])
            calibration.fold(calibration.last_layer(checkpoint), 4.0)
            after = torch.stack([checkpoint.logits(text) for text in TEXTS[:3]])
        torch.testing.assert_close(after, before / 4, msg=kind)


def test_a_traced_architecture_is_refused(subject, sharp):
    with pytest.raises(ServingError, match="this megatron-bert is traced, so its last layer is not known"):
        calibrate(load(subject("megatron-bert").directory), sharp.file)


def test_a_score_is_refused(tmp_path, sharp):
    checkpoint = load(make_checkpoint("bert", tmp_path, labels=["relevance"], problem_type=None))
    with pytest.raises(ServingError, match=r"CALIBRATE: this checkpoint has one label and gives a score"):
        calibrate(checkpoint, sharp.file)


@pytest.mark.parametrize("flawed", ["without effect", "one label only", "negative"])
def test_a_layer_that_does_not_scale_the_logits_is_refused(sharp, monkeypatch, flawed):
    def fold(layer, temperature):
        if flawed == "one label only":
            layer.weight[0].div_(temperature)
        elif flawed == "negative":
            layer.weight.neg_()

    monkeypatch.setattr(calibration, "fold", fold)
    with pytest.raises(ServingError, match=r"class ids change and a probability is off by .*build without CALIBRATE"):
        calibrate(load(sharp.directory), sharp.file)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [(text, "label 1") for text in TEXTS[:19]],
            r"holds 19 different labelled texts \(0 bad rows\); at least 20 are required",
        ),
        ([(TEXTS[0], "label 1")] * 100, "holds 1 different labelled texts"),
        ([(text, "weather") for text in TEXTS[:40]], "has the label 'weather'; this model's labels are label 0"),
    ],
)
def test_a_useless_file_is_refused(subject, tmp_path, rows, says):
    file = tmp_path / "labelled.tsv"
    file.write_text("".join(f"{text}\t{label}\n" for text, label in rows), encoding="utf-8")
    with pytest.raises(ServingError, match=says):
        calibrate(subject("bert").checkpoint, file)


@pytest.mark.parametrize("right", [True, False])
def test_a_file_that_decides_nothing_is_refused(sharp, tmp_path, right):
    """Without an error every lower temperature is better; with nothing but errors every higher one."""
    file = tmp_path / "labelled.tsv"
    said = (sharp.logits if right else -sharp.logits).argmax(1)
    file.write_text("".join(f"{text}\t{index}\n" for text, index in zip(TEXTS, said.tolist())), encoding="utf-8")
    with pytest.raises(ServingError, match=r"CALIBRATE=.*no temperature from 0\.05 to 20 fits"):
        calibrate(load(sharp.directory), file)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ServingError, match=r"CALIBRATE=.*: no such file; expected labelled texts"):
        BuildOptions(calibrate=tmp_path / "none.tsv")


def test_halves_share_no_text_and_ignore_the_order_of_lines(sharp, tmp_path, capsys):
    lines = sharp.file.read_text(encoding="utf-8").splitlines(keepends=True)
    again = tmp_path / "again.tsv"
    shuffled = [*lines, *lines[:50]]
    random.Random(3).shuffle(shuffled)
    again.write_text("".join([*shuffled, "a text without a label\n"]), encoding="utf-8")
    checkpoint = load(sharp.directory)
    halves = []
    for file in (sharp.file, again):
        found = calibration.read(checkpoint, file, DEFAULT_COLUMNS)
        halves.append((set(found.texts[: found.fitted]), set(found.texts[found.fitted :])))
    assert halves[0] == halves[1]
    assert not halves[0][0] & halves[0][1]
    assert abs(len(halves[0][0]) - len(halves[0][1])) <= 1
    assert "left out 1 bad rows; the first is line 351: 1 columns" in capsys.readouterr().out


def test_fitted_temperature_has_the_lowest_log_loss(over_confident):
    """Compared with scipy's search on the log loss."""
    truth = over_confident.truth
    best = minimize_scalar(
        lambda log: temperature.log_loss(over_confident.logits / math.exp(log), truth),
        bounds=(math.log(0.05), math.log(20)),
        method="bounded",
    )
    assert temperature.fit(over_confident.logits, truth) == pytest.approx(math.exp(best.x), rel=2e-3)


def test_calibration_error_equals_that_of_evaluations(over_confident):
    truth = over_confident.truth
    found = (
        over_confident.logits.sigmoid() if over_confident.multi_label else over_confident.logits.softmax(1)
    ).numpy()
    other = measure(truth.bool().numpy() if over_confident.multi_label else truth.numpy(), found)
    assert temperature.calibration_error(over_confident.logits, truth) == pytest.approx(
        other.headline["expected calibration error"].value, abs=1e-9
    )


def drawn(logits: torch.Tensor, true_temperatures: list[float]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    scaled = (logits / torch.tensor(true_temperatures)).sigmoid()
    return (torch.rand(logits.shape, generator=generator) < scaled).double()


def two_labels() -> torch.Tensor:
    """(4000, 2) logits."""
    return 6 * torch.rand(4000, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 3


def test_labels_share_a_temperature_so_that_unseen_class_ids_stay():
    """A temperature per label fits these texts better and keeps their class ids, but not that of another text."""
    seen = two_labels().abs() * torch.tensor([1.0, -1.0])
    found = temperature.choose(seen, drawn(seen, [1.5, 5.0]), 2000)
    unseen = torch.tensor([[0.8, 1.0], [-1.0, -0.8]], dtype=torch.float64)
    assert 1.5 < found < 5.0
    assert torch.equal((unseen / found).argmax(1), unseen.argmax(1))


def test_a_temperature_that_does_not_help_is_not_used():
    """The fitted half is over-confident, the held-out half is not."""
    logits = two_labels()
    truth = torch.cat([drawn(logits[:2000], [3.0, 3.0]), drawn(logits[2000:], [0.5, 0.5])])
    assert temperature.choose(logits, truth, 2000) == 1.0


def test_columns_of_the_file_have_the_names_that_were_given(sharp, tmp_path):
    lines = [line.split("\t") for line in sharp.file.read_text(encoding="utf-8").splitlines()]
    file = tmp_path / "labelled.csv"
    cells = [f'"{text}","{label}"' for text, label in lines if '"' not in text]
    file.write_text("\n".join(["sentence,topic", *cells]), encoding="utf-8")
    options = BuildOptions(calibrate=file, text_column="sentence", label_column="topic")
    assert calibrate(load(sharp.directory), file, options.columns)["value"] > 2
    with pytest.raises(ServingError, match=r"no text and no label; name them with TEXT_COLUMN="):
        calibrate(load(sharp.directory), file)


def test_refuses_a_multi_label_checkpoint_whose_documents_are_means(subject, tmp_path):
    checkpoint = load(subject("bert", multi_label=True).directory, pooling="mean", stride=16)
    with pytest.raises(ServingError, match="CALIBRATE: with DOCUMENTS=mean"):
        calibrate(checkpoint, tmp_path / "labelled.tsv")
