"""The variants of a choice take turns, and a failed request is no fast one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from build_scripts.benchmarks import choices, own_server
from build_scripts.benchmarks.http_load import Answers
from build_scripts.core.errors import ServingError
from build_scripts.core.options import Address, BuildOptions


def answering(milliseconds: float, called: list[str], name: str) -> Callable[[], list[Answers]]:
    """Each call as many requests, later ones slower."""

    def run() -> list[Answers]:
        called.append(name)
        times = called.count(name)
        return [Answers(2.0, {200: [milliseconds * times] * 100}, 0)]

    return run


def test_variants_take_turns_and_medians_are_told():
    called: list[str] = []
    variants = {name: answering(ms, called, name) for name, ms in (("one", 1.0), ("other", 10.0))}
    table = choices.table("variant", variants)
    assert called == ["one", "other"] * choices.ROUNDS
    assert table.splitlines()[2:] == ["| one | 50.0 | 2.00 | 2.00 |", "| other | 50.0 | 20.0 | 20.0 |"]


def test_clients_of_several_classifiers_count_together():
    fast, slow = Answers(1.0, {200: [1.0] * 99}, 0), Answers(1.0, {200: [7.0]}, 0)
    assert choices.summary([fast, slow]) == (100.0, 1.0, 7.0)


@pytest.mark.parametrize("answers", [Answers(1.0, {200: [1.0], 503: [0.1]}, 0), Answers(1.0, {200: [1.0]}, 2)])
def test_a_request_that_failed_ends_the_measurement(answers):
    with pytest.raises(ServingError, match="requests failed under load"):
        choices.summary([answers])


def test_a_server_of_ones_own_is_asked_for_what_the_benchmark_was_asked_for(tmp_path):
    options = BuildOptions(model="/a model", max_length=64, precision="fp32", repository=tmp_path)
    told = own_server.arguments(options, Address("127.0.0.1", 1, 2, 3), cache="64M")
    assert dict(zip(told[::2], told[1::2])) == {
        "--model": "/a model",
        "--max-length": "64",
        "--precision": "fp32",
        "--model-repository": str(tmp_path),
        "--host": "127.0.0.1",
        "--http-port": "1",
        "--grpc-port": "2",
        "--metrics-port": "3",
        "--cache": "64M",
    }
