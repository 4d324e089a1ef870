"""How the soak judges what it sees; the soak itself is run in test_load."""

import json
import os
import socket
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest

from build_scripts.benchmarks.http_load import Answers
from build_scripts.core.options import Address
from build_scripts.serving.keep.memory import GROWTH_BYTES, REQUEST_BYTES
from tests.soak import attacks, traffic, under_attack
from tests.soak.attacks import ATTACKS, Attack, Target, answers, infer_body, request
from tests.soak.hostile import GENERATE, INFER
from tests.soak.overload import Overload
from tests.soak.soak import Course, report
from tests.soak.traffic import CLIENTS, Findings, class_ids, judge
from tests.soak.under_attack import RECOVERY_LIMIT_S, Attacked, attack_one

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
def test_a_status_is_judged_by_the_endpoint_that_gives_it(path, status, in_recovery, verdict):
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
def test_class_ids_are_read_from_the_answers_of_both_endpoints(answer, expected):
    assert class_ids(json.dumps(answer)) == expected


def test_answers_on_one_connection_are_told_apart():
    here, there = socket.socketpair()
    with here, there:
        for status, body in ((200, b"one"), (400, b""), (503, b"three")):
            head = f"HTTP/1.1 {status} x\r\nInference-Header-Content-Length: 99\r\nContent-Length: {len(body)}\r\n\r\n"
            there.sendall(head.encode() + body)
        there.shutdown(socket.SHUT_WR)
        assert list(answers(here)) == [(200, b"one"), (400, b""), (503, b"three")]


def test_a_request_says_how_long_it_is():
    head, body = request(infer_body(["é"]), "X: y\r\n").split(b"\r\n\r\n", 1)
    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
    assert json.loads(body)["inputs"][0]["data"] == ["é"]


@pytest.mark.slow
def test_a_slow_client_that_is_refused_half_way_is_counted_and_ends_nothing(monkeypatch):
    """The server closes what begins with a first line in pieces; writing on is then a broken pipe."""
    monkeypatch.setattr(attacks, "SLOW_CLIENTS", 2)
    answer = json.dumps({"outputs": [{"name": "CLASS_ID", "data": [3]}]}).encode()

    def serve(connection: socket.socket) -> None:
        with connection:
            received = connection.recv(65536)
            if received == b"P":
                connection.sendall(b"HTTP/1.1 405 x\r\nContent-Length: 0\r\n\r\n")
                return
            while not received.endswith(infer_body(["a text"])):
                received += connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 x\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: [background(serve, listener.accept()[0]) for _ in range(2)]).start()
        target = Target(Address("127.0.0.1", listener.getsockname()[1], 1, 2), "a text", 3, 0)
        assert attacks.slow_clients(target, 4) == {"refused": 1, "answered": 1}


def background(function, *arguments) -> None:
    threading.Thread(target=function, args=arguments).start()


@pytest.mark.slow
def test_an_attack_that_fails_is_a_finding_and_the_soak_goes_on(monkeypatch):
    def broken(target, seconds):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(under_attack, "settle", lambda *_: (0.0, 500.0))
    findings = Findings()
    monkeypatch.setattr(traffic, "ask", lambda *_: time.sleep(0.01))
    attacked = attack_one(Attack("breaks", broken), NOWHERE, os.getpid(), NO_TEXTS, findings, 1.0, 500.0, 0)
    assert attacked.outcomes == {}
    assert findings.counts["failed"] == 1
    assert "breaks" in next(iter(findings.examples))


@pytest.mark.parametrize(("held_mib", "waits"), [(200, False), (240, True)])
def test_the_soak_waits_while_tritonserver_alone_holds_what_its_watch_may_end_it_for(monkeypatch, held_mib, waits):
    """The processes of its models may have shrunk meanwhile: the sum says nothing about it."""
    monkeypatch.setattr(under_attack, "probe", lambda *_: SimpleNamespace(well=True))
    monkeypatch.setattr(under_attack, "resident", lambda _: 500.0)
    monkeypatch.setattr(under_attack, "held_bytes", lambda _: held_mib << 20)
    monkeypatch.setattr(under_attack, "SETTLE_LIMIT_S", 0.3)
    began = time.monotonic()
    under_attack.settle(NOWHERE, os.getpid(), 500.0, 0)
    assert (time.monotonic() - began > 0.3) == waits


def test_a_server_that_is_ended_while_it_is_looked_at_is_waited_for(monkeypatch):
    """It holds too much and answers, is ended at that moment and holds nothing, and there is another."""
    moments = iter(["ended", "anew"])
    server = SimpleNamespace(is_now="holds")

    def answers_until_it_is_ended(*_):
        well, server.is_now = server.is_now != "ended", next(moments, "anew")
        return SimpleNamespace(well=well)

    monkeypatch.setattr(under_attack, "resident", lambda _: 500.0)
    monkeypatch.setattr(under_attack, "held_bytes", lambda _: (300 << 20) * (server.is_now == "holds"))
    monkeypatch.setattr(under_attack, "probe", answers_until_it_is_ended)
    under_attack.settle(NOWHERE, os.getpid(), 500.0, 0)
    assert server.is_now == "anew"


@pytest.mark.parametrize("may_restart", [False, True])
def test_the_watch_is_waited_for_while_nobody_sends_and_its_restart_is_excused(monkeypatch, may_restart):
    """It puts a restart off for as long as requests wait."""
    others, findings, seen = threading.active_count(), Findings(), {}

    def look(when: str) -> None:
        senders = threading.active_count() - others
        seen[when] = (senders, findings.window_until > time.monotonic() + 30)

    attack = Attack("one", lambda *_: (look("attack"), Counter())[1], may_restart)
    monkeypatch.setattr(under_attack, "settle", lambda *_: (look("settle"), (0.0, 500.0))[1])
    monkeypatch.setattr(traffic, "ask", lambda *_: time.sleep(0.01))
    attack_one(attack, NOWHERE, os.getpid(), NO_TEXTS, findings, 1.0, 500.0, 0)
    assert seen == {"attack": (CLIENTS, may_restart), "settle": (0, may_restart)}
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
def test_who_survived_an_attack(attack, outcomes, seconds, restarted, survived):
    assert Attacked(attack, Counter(outcomes), seconds, (500.0, 500.0), restarted).survived == survived


@pytest.mark.parametrize("attack", [CALM, DEADLY])
def test_an_attack_whose_memory_stays_is_not_survived(attack):
    kept = (GROWTH_BYTES + CLIENTS * REQUEST_BYTES) / 2**20 + 1
    assert Attacked(attack, Counter(), 0.1, (500.0, 500.0 + kept - 2), False).survived
    assert not Attacked(attack, Counter(), 0.1, (500.0, 500.0 + kept), False).survived


def test_every_kind_of_finding_is_listed_with_how_often_it_was_seen():
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


def test_only_attacks_that_exhaust_the_server_excuse_its_end():
    assert [attack.name.split()[0] for attack in ATTACKS if attack.may_restart] == ["deep", "gzip", "200,000"]
