"""What `make serve` builds before it starts, by what it was asked for and what is live."""

from __future__ import annotations

from pathlib import Path

import pytest

from build_scripts.core.errors import ServingError
from build_scripts.core.options import BuildOptions
from build_scripts.releases import before_serving, store
from build_scripts.releases.before_serving import build_or_keep
from build_scripts.releases.fingerprint import DEFAULT_CHECKPOINT
from tests.support.fake_releases import fake_release


@pytest.fixture
def built(monkeypatch) -> list[BuildOptions]:
    """The options of every build; none is done."""
    options: list[BuildOptions] = []
    monkeypatch.setattr(before_serving, "build", options.append)
    return options


def live(repository: Path, checkpoint: str, name: str = "text_classifier") -> None:
    fake_release(repository, "a" * 12, name, checkpoint=checkpoint)
    store.switch(repository, "a" * 12, name)


def test_an_empty_repository_gets_the_default(built, tmp_path):
    build_or_keep(options := BuildOptions(repository=tmp_path), named=False)
    assert built == [options]


def test_a_live_default_is_brought_up_to_date(built, tmp_path):
    live(tmp_path, f"{DEFAULT_CHECKPOINT} (/somewhere)")
    build_or_keep(options := BuildOptions(repository=tmp_path, precision="fp32"), named=False)
    assert built == [options]


@pytest.mark.parametrize(("name", "target"), [("text_classifier", "make repo"), ("topic", "make repo NAME=topic")])
def test_a_users_live_model_stays(built, tmp_path, capsys, name, target):
    live(tmp_path, "./mine", name)
    assert build_or_keep(BuildOptions(repository=tmp_path, name=name), named=name == "topic") is None
    assert built == []
    said = capsys.readouterr().out
    assert f"serving the live release {'a' * 12} of ./mine; `{target}` brings the default model back" in said
    assert store.live_release(tmp_path, name).name == "a" * 12


def test_a_users_live_model_gives_way_to_another(built, tmp_path):
    live(tmp_path, "./mine")
    build_or_keep(options := BuildOptions(model="./theirs", repository=tmp_path), named=False)
    assert built == [options]


def test_options_without_a_model_are_refused_in_one_line(built, tmp_path):
    live(tmp_path, "./mine")
    asked = BuildOptions(repository=tmp_path, precision="fp32", max_length=64)
    with pytest.raises(ServingError, match=r"MAX_LENGTH=64 PRECISION=fp32 .* add MODEL=\./mine"):
        build_or_keep(asked, named=False)
    assert built == []


def test_labelled_texts_without_a_model_are_refused(built, tmp_path):
    live(tmp_path, "./mine")
    labelled = tmp_path / "labelled.tsv"
    labelled.write_text("a text\tfinance\n", encoding="utf-8")
    with pytest.raises(ServingError, match=r"CALIBRATE=.*labelled\.tsv asks for another release of \./mine"):
        build_or_keep(BuildOptions(repository=tmp_path, calibrate=labelled), named=False)
    assert built == []


def test_other_classifiers_do_not_bring_the_default(built, tmp_path):
    live(tmp_path, "./mine", "topic")
    assert build_or_keep(BuildOptions(repository=tmp_path), named=False) is None
    build_or_keep(options := BuildOptions(repository=tmp_path), named=True)
    assert built == [options]
