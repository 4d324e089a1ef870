"""The soak: its verdicts, and half a minute of it."""

import json
import os
import re
import shutil
import socket
import threading
import time
from collections import Counter

import pytest

from build_scripts.benchmarks.http_load import Answers
from build_scripts.core.options import Address
from tests.soak import attacks, traffic, under_attack
from tests.soak.attacks import ATTACKS, Attack, Target, answers, infer_bytes, request
from tests.soak.hostile import GENERATE, INFER
from tests.soak.overload import Overload
from tests.soak.soak import Course, report, soak
from tests.soak.traffic import CLIENTS, Findings, class_ids, judge
from tests.soak.under_attack import RECOVERY_LIMIT_S, Attacked, attack_one
from tests.support.servers import embedded

NOWHERE = Target(Address("127.0.0.1", 1, 2, 3), "a text", 3, 0)
NO_TEXTS = traffic.Traffic([], {}, [])


@pytest.mark.parametrize(
    ("path", "status", "in_recovery", "verdict"),
    [
        (INFER, 503, True, "lost in a recovery"),
        (INFER, 503, False, "failed"),
        (INFER, 400, True, "wrong"),
        # Triton 2.51's generate says 400 where infer says 500 or 503.
        (GENERATE, 400, True, "lost in a recovery"),
        (GENERATE, 400, False, "failed"),
        (GENERATE, 200, True, "wrong"),
    ],
)
def test_verdict_depends_on_endpoint_and_status(path, status, in_recovery, verdict):
    findings = Findings(window_until=time.monotonic() + 60 if in_recovery else 0.0)
    judge(findings, "a text", path, status, "{}", False, "valid, answered")
    assert findings.counts == {"sent": 1, verdict: 1, "texts": 0}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"CLASS_ID": 3, "PROBABILITIES": [0.5]}, [3]),
        ({"CLASS_ID": [3, 1]}, [3, 1]),
        ({"outputs": [{"name": "PROBABILITIES", "data": [0.1]}, {"name": "CLASS_ID", "data": [3, 1]}]}, [3, 1]),
        ({"outputs": []}, None),
        ({"error": "no"}, None),
        ([], None),
    ],
)
def test_reads_class_ids_of_both_endpoints(answer, expected):
    assert class_ids(json.dumps(answer)) == expected


def test_answers_on_one_connection_are_told_apart():
    here, there = socket.socketpair()
    with here, there:
        for status, body in ((200, b"one"), (400, b""), (503, b"three")):
            head = f"HTTP/1.1 {status} x\r\nInference-Header-Content-Length: 99\r\nContent-Length: {len(body)}\r\n\r\n"
            there.sendall(head.encode() + body)
        there.shutdown(socket.SHUT_WR)
        assert list(answers(here)) == [(200, b"one"), (400, b""), (503, b"three")]


def test_request_has_content_length():
    head, body = request(infer_bytes(["é"]), "X: y\r\n").split(b"\r\n\r\n", 1)
    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
    assert json.loads(body)["inputs"][0]["data"] == ["é"]


@pytest.mark.slow
def test_counts_slow_client_that_is_refused(monkeypatch):
    """The server closes what begins with a first line in pieces; writing on is then a broken pipe."""
    monkeypatch.setattr(attacks, "SLOW_CLIENTS", 2)
    answer = json.dumps({"outputs": [{"name": "CLASS_ID", "data": [3]}]}).encode()

    def serve(connection: socket.socket) -> None:
        with connection:
            received = connection.recv(65536)
            if b"\r\n\r\n" not in received:  # the client that sends its first line in pieces
                connection.sendall(b"HTTP/1.1 405 x\r\nContent-Length: 0\r\n\r\n")
                return
            while not received.endswith(infer_bytes(["a text"])):
                received += connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 x\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: [background(serve, listener.accept()[0]) for _ in range(2)]).start()
        target = Target(Address("127.0.0.1", listener.getsockname()[1], 1, 2), "a text", 3, 0)
        assert attacks.slow_clients(target, 4) == {"refused": 1, "answered": 1}


def background(function, *arguments) -> None:
    threading.Thread(target=function, args=arguments).start()


@pytest.mark.slow
def test_failing_attack_is_a_finding(monkeypatch):
    def broken(target, seconds):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(under_attack, "silence", lambda *_: 0.0)
    findings = Findings()
    monkeypatch.setattr(traffic, "ask", lambda *_: time.sleep(0.01))
    attacked = attack_one(Attack("breaks", broken), NOWHERE, os.getpid(), NO_TEXTS, findings, 1.0)
    assert attacked.outcomes == {}
    assert findings.counts["failed"] == 1
    assert "breaks" in next(iter(findings.examples))


@pytest.mark.parametrize("may_restart", [False, True])
def test_deadly_attacks_alone_excuse_lost_requests(monkeypatch, may_restart):
    others, findings, seen = threading.active_count(), Findings(), {}

    def look(when: str) -> None:
        senders = threading.active_count() - others
        seen[when] = (senders, findings.window_until > time.monotonic() + 30)

    attack = Attack("one", lambda *_: (look("attack"), Counter())[1], may_restart)
    monkeypatch.setattr(under_attack, "silence", lambda *_: (look("after"), 0.0)[1])
    monkeypatch.setattr(traffic, "ask", lambda *_: time.sleep(0.01))
    attack_one(attack, NOWHERE, os.getpid(), NO_TEXTS, findings, 1.0)
    assert seen == {"attack": (CLIENTS, may_restart), "after": (0, may_restart)}
    assert findings.window_until == 0.0


NOBODY = Answers(1.0, {}, 0)
CALM, DEADLY = Attack("calm", Counter), Attack("deadly", Counter, may_restart=True)


@pytest.mark.parametrize(
    ("attack", "outcomes", "seconds", "restarted", "survived"),
    [
        (CALM, {"answered": 5, "refused": 2, "closed": 3}, 0.1, False, True),
        (CALM, {"hung": 1}, 0.1, False, False),
        (CALM, {"wrong": 1}, 0.1, False, False),
        (CALM, {}, 0.1, True, False),
        (CALM, {}, RECOVERY_LIMIT_S + 1, False, False),
        (DEADLY, {"hung": 1}, 3.0, True, True),
        (DEADLY, {"wrong": 1}, 3.0, True, False),
        (DEADLY, {}, RECOVERY_LIMIT_S + 1, True, False),
    ],
)
def test_survival_of_an_attack(attack, outcomes, seconds, restarted, survived):
    assert Attacked(attack, Counter(outcomes), seconds, (500.0, 500.0), restarted).survived == survived


def test_report_counts_each_kind_of_finding():
    findings = Findings()
    for turn in range(60):
        judge(
            findings, f"text {turn}", INFER, 503, f"overload: {turn} requests wait", False, "valid, answered", texts=1
        )
    judge(findings, "a bad id", INFER, 404, "no such model", False, "hostile, refused")
    judge(findings, "a text", INFER, 200, '{"outputs": []}', False, "valid, answered", texts=1)
    assert sorted((kind.split(":")[0], count) for kind, (count, _) in findings.examples.items()) == [
        ("failed", 60), ("wrong", 1), ("wrong", 1),
    ]  # fmt: skip
    course = Course(findings, {"requests": 62}, [], Overload(NOBODY, NOBODY, 1.0, NOBODY, (1.0, 1.0)))
    listed = report(course, 30.0)
    for words in ("60 times failed: a valid request", "1 times wrong: a bad id", "text 0: 503 overload: 0 requests"):
        assert words in listed


def test_three_attacks_may_restart_the_server():
    assert [attack.name.split()[0] for attack in ATTACKS if attack.may_restart] == ["deep", "gzip", "200,000"]


@pytest.mark.server
@pytest.mark.long
@pytest.mark.skipif(not embedded(), reason="kills the classifier's process")
def test_short_soak_finds_nothing_wrong(default_repository, capfd, monkeypatch, tmp_path):
    """Half a minute of what `make soak` does in ten."""
    monkeypatch.setattr("tests.soak.soak.BUILD", tmp_path)
    shutil.copytree(default_repository, tmp_path / "soak" / "repository", symlinks=True)  # it need not build again
    good = soak("", None, 30.0)
    said = capfd.readouterr().out
    assert good, said
    rows = dict(line.strip("| ").split(" | ") for line in said.splitlines() if line.count(" | ") == 1)
    assert int(re.search(r"held (\d+) texts", said)[1]) > int(rows["valid, answered"]) > 0
    assert int(rows["hostile, refused"]) > 0
    assert [name for name in rows if name.startswith("tokenizer SIG")]
