"""The client and `make classify` against a scripted server: what is repeated, and what errors say."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest

from build_scripts.__main__ import COMMANDS
from build_scripts.core.command_line import run
from build_scripts.core.errors import ServingError
from build_scripts.serving import client
from build_scripts.serving.classify import texts_of_lines
from build_scripts.serving.client import BATCH_SIZE, classify
from build_scripts.serving.start.arguments import Tls
from tests.support.fake_grpc import OVERLOAD, FakeTriton, listening

LOST = grpc.StatusCode.UNAVAILABLE, "Connection reset by peer"
TEXTS = ["a text"] * (2 * BATCH_SIZE + 1)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(client, "LONGEST_PAUSE_S", 0.001)


def test_a_request_that_is_refused_under_overload_is_sent_again():
    triton = FakeTriton(OVERLOAD, OVERLOAD, None, OVERLOAD)
    with listening(triton) as url:
        assert len(list(classify(TEXTS, url))) == len(TEXTS)
    assert triton.texts == [BATCH_SIZE, BATCH_SIZE, 1]


def test_a_server_that_starts_again_is_waited_for():
    """It answered before, so it exists."""
    with listening(FakeTriton(None, LOST, LOST)) as url:
        assert len(list(classify(TEXTS, url))) == len(TEXTS)


def test_a_server_that_never_answered_is_not_waited_for():
    triton = FakeTriton(LOST)
    with listening(triton) as url, pytest.raises(ServingError, match="no server answers"):
        list(classify(TEXTS, url))
    assert triton.asked == 1


def test_answers_before_a_failure_are_kept():
    answers = []
    with listening(FakeTriton(None, OVERLOAD)) as url, pytest.raises(ServingError, match="overload: 128 requests wait"):
        list(map(answers.append, classify(TEXTS, url, patience_s=0)))
    assert len(answers) == BATCH_SIZE


def test_a_refused_text_of_a_file_is_named_by_its_line(tmp_path, capsys):
    refusal = "in ensemble 'text_classifier', TEXT row 3 has 140000 bytes; the limit is 131072 (max_text_bytes)"
    file = tmp_path / "texts.txt"
    file.write_text("a text\n" * 40, encoding="utf-8")
    with listening(FakeTriton(None, (grpc.StatusCode.INVALID_ARGUMENT, refusal))) as url:
        assert run(COMMANDS["classify"], ["--file", str(file), "--grpc-port", url.rpartition(":")[2]]) == 1
    printed = capsys.readouterr()
    assert printed.out.count("2\tsports\t0.9000\n") == BATCH_SIZE
    assert f"refused: line {BATCH_SIZE + 4} has 140000 bytes; the limit is 131072" in printed.err


def test_an_unknown_name_lists_those_that_there_are(monkeypatch):
    unknown = grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'text_classifier' is not found"
    with listening(FakeTriton(unknown, unknown)) as url:
        here = SimpleNamespace(grpc_url=url, releases={"sentiment": "1", "topic": "2"})
        monkeypatch.setattr(client, "running_servers", lambda: [here])
        with pytest.raises(ServingError, match=r"^NAME=text_classifier: .*; it has sentiment, topic$"):
            list(classify(["a"], url))
        monkeypatch.setattr(client, "running_servers", lambda: [])
        with pytest.raises(ServingError, match="`make status` lists them"):
            list(classify(["a"], url))


@pytest.mark.parametrize("text", ["", "-5 degrees", "--file"])
def test_any_text_is_a_text(text, monkeypatch, capsys):
    with listening(FakeTriton(None, None)) as url:
        port = url.rpartition(":")[2]
        assert run(COMMANDS["classify"], ["--text", text, "--grpc-port", port]) == 0
        monkeypatch.setenv("TRITON_TC_TEXT", text)
        assert run(COMMANDS["classify"], ["--grpc-port", port]) == 0
    assert capsys.readouterr().out == "2\tsports\t0.9000\n" * 2


def test_prints_a_score_of_any_size(capsys):
    """Of a checkpoint with one label, such as a reranker."""
    with listening(FakeTriton(best="-11.312500:0:relevance")) as url:
        arguments = ["--text", "query", "--pair", "passage", "--grpc-port", url.rpartition(":")[2]]
        assert run(COMMANDS["classify"], arguments) == 0
    assert capsys.readouterr().out == "0\trelevance\t-11.3125\n"


def test_the_first_line_with_a_tab_is_told_of_once(capsys):
    lines = ["one", "a\tb", "c\td", ""]
    assert list(texts_of_lines(lines)) == ["one", ("a", "b"), ("c", "d"), ""]
    assert capsys.readouterr().err == "line 2 has a tab: such lines are pairs, TEXT and PAIR\n"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """name -> certificate and key; each is its own authority."""
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificates")
    directory, made = tmp_path_factory.mktemp("tls"), {}
    for name, subject in {"other": "DNS:other.example", "here": "IP:127.0.0.1"}.items():
        made[name] = directory / f"{name}.pem", directory / f"{name}.key"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-subj", "/CN=test", "-addext", f"subjectAltName={subject}"]
        subprocess.run([*command, "-out", made[name][0], "-keyout", made[name][1]], check=True, capture_output=True)
    return made


@pytest.mark.parametrize(
    ("server", "authority", "said"),
    [
        ("other", "other", "Hostname Verification Check failed"),
        ("here", "other", "CERTIFICATE_VERIFY_FAILED"),
        (None, "here", "WRONG_VERSION_NUMBER"),
        ("here", None, "if it has TLS, set TLS_CA="),
    ],
    ids=["another name", "another authority", "a server without TLS", "a client without TLS"],
)
def test_failed_tls_is_told_from_no_server(certificates, server, authority, said):
    tls = Tls(authority=certificates[authority][0]) if authority else client.PLAIN
    pair = certificates[server] if server else ()
    with listening(FakeTriton(), *pair) as url, pytest.raises(ServingError) as refusal:
        list(classify(["a"], url, tls=tls))
    assert said in str(refusal.value)
    assert "no server answers" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_tls_that_fits_answers(certificates):
    certificate, key = certificates["here"]
    with listening(FakeTriton(), certificate, key) as url:
        assert len(list(classify(["a"], url, tls=Tls(authority=certificate)))) == 1
