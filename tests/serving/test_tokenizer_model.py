"""The tokenizer model answers like AutoTokenizer, and a bad request affects no other."""

from __future__ import annotations

import os
import resource
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from build_scripts.convert.checkpoint import Checkpoint, serving_tokenizer
from build_scripts.convert.documents import documents
from build_scripts.core.machine import cpu_flags
from build_scripts.core.paths import SOURCE_REPOSITORY
from build_scripts.releases.default_model import pretrained_directory
from tests.support import fake_triton
from tests.support.checkpoints import make_tokenizer
from tests.support.texts import HEADLINES, LONGEST, LONGEST_TEXTS, PAIRS, VARIED, any_text
from tests.support.waiting import HANG_S, wait_for

LIMITS = {
    "max_text_bytes": str(LONGEST),
    "max_request_bytes": str(4 * LONGEST),
    "max_waiting_bytes": str(8 * LONGEST),
    "max_pending_requests": "1000000",
    "metrics_address": "127.0.0.1:9",  # no server there: nothing is refused
}
# WordPiece as in BERT, byte-level BPE, and two pre-tokenizers of a Unigram.
KINDS = ("minilm", "roberta", "xlm-roberta", "deberta-v2")


@dataclass(frozen=True)
class Served:
    """The model as the server loads it, and its reference tokenizer."""

    model: object
    hugging_face: PreTrainedTokenizerBase
    max_length: int

    def ids(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text without padding, from one request. Also checks shapes, types, mask and padding."""
        response = self.execute([[text.encode() for text in texts]])[0]
        assert response.error is None, response.error.message()
        input_ids, mask = response.outputs["INPUT_IDS"], response.outputs["ATTENTION_MASK"]
        lengths = mask.sum(1)
        width = min(self.max_length, next(width for width in (512 << n for n in range(9)) if width >= max(lengths)))
        assert input_ids.shape == mask.shape == (len(texts), width)
        assert input_ids.dtype == mask.dtype == np.int64
        assert np.array_equal(mask, np.arange(width) < lengths[:, None])
        tokens = response.outputs["TOKENS"]
        assert tokens.dtype == np.int32
        assert np.array_equal(tokens, lengths[:, None])
        assert (input_ids[mask == 0] == self.hugging_face.pad_token_id).all()
        return [row[:length].tolist() for row, length in zip(input_ids, lengths)]

    def expected(self, texts: list[str]) -> list[list[int]]:
        return self.hugging_face(texts, truncation=True, max_length=self.max_length)["input_ids"]

    def truncated(self, texts: list[str]) -> list[bool]:
        """TRUNCATED of each text."""
        truncated = self.execute([[text.encode() for text in texts]])[0].outputs["TRUNCATED"]
        assert (truncated.shape, truncated.dtype) == ((len(texts), 1), np.bool_)
        return truncated[:, 0].tolist()

    def too_long(self, texts: list[str]) -> list[bool]:
        return [len(ids) > self.max_length for ids in self.hugging_face(texts)["input_ids"]]

    def execute(self, requests: list[list[bytes]]) -> list[fake_triton.InferenceResponse]:
        """One response per request, in order; waits for responses that are sent later."""
        received = [self.request(*rows) for rows in requests]
        responses = self.model.execute(received)
        if responses is not None:
            assert not any(request.sent for request in received)
            return responses
        wait_for(lambda: all(request.sent for request in received), "a request got no answer")
        assert all(len(request.sent) == 1 for request in received)
        return [request.sent[0] for request in received]

    @staticmethod
    def request(*rows: bytes, pair: Sequence[bytes] = ()) -> fake_triton.Request:
        columns = {"TEXT": rows, "TEXT_PAIR": pair} if pair else {"TEXT": rows}
        arrays = {name: np.array([[raw] for raw in column], dtype=np.object_) for name, column in columns.items()}
        return fake_triton.Request(**arrays)

    def pairs(self, pairs: list[tuple[str, str]]) -> list[tuple[list[int], list[int], bool]]:
        """Token ids, token types and TRUNCATED of each pair, from one request."""
        request = self.request(*(first.encode() for first, _ in pairs), pair=[second.encode() for _, second in pairs])
        (response,) = self.model.execute([request])
        assert response.error is None, response.error.message()
        ids, mask, tokens, truncated = (
            response.outputs[name] for name in ("INPUT_IDS", "ATTENTION_MASK", "TOKENS", "TRUNCATED")
        )
        assert np.array_equal(mask != 0, np.arange(self.max_length) < tokens)
        return [
            (row[:count].tolist(), (kinds[:count] - 1).tolist(), bool(cut))
            for row, kinds, count, cut in zip(ids, mask, tokens[:, 0], truncated[:, 0])
        ]

    def expected_pairs(self, pairs: list[tuple[str, str]]) -> list[tuple[list[int], list[int], bool]]:
        firsts, seconds = map(list, zip(*pairs))
        limits = {"truncation": True, "max_length": self.max_length, "return_token_type_ids": True}
        cut = self.hugging_face(firsts, seconds, **limits)
        whole = self.hugging_face(firsts, seconds)["input_ids"]
        too_long = [len(ids) > self.max_length for ids in whole]
        return list(zip(cut["input_ids"], cut["token_type_ids"], too_long))


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """serve(tokenizer, max_length, stride, **parameters): model.py beside a tokenizer.json as a build writes it.

    stride: of whole documents; None truncates texts. parameters: of config.pbtxt, beside LIMITS.
    """

    def make(
        hugging_face: PreTrainedTokenizerBase, max_length: int, stride: int | None = None, **parameters: str
    ) -> Served:
        directory = tmp_path_factory.mktemp("tokenizer")
        for source in (SOURCE_REPOSITORY / "tokenizer" / "1").glob("*.py"):
            shutil.copy(source, directory)
        checkpoint = Checkpoint(
            path=directory, model=None, tokenizer=hugging_face, labels=[], activation="softmax", max_length=max_length,
            vocab_size=len(hugging_face), pad_id=hugging_face.pad_token_id,
            documents=None if stride is None else documents("mean", stride, max_length, 2),
        )  # fmt: skip
        serving_tokenizer(checkpoint).save(str(directory / "tokenizer.json"))
        return Served(fake_triton.load_model(directory, {**LIMITS, **parameters})[1], hugging_face, max_length)

    return make


@pytest.fixture(scope="session", params=KINDS)
def served(request, serve):
    return serve(hugging_face_tokenizer(request.param), max_length=128)


def hugging_face_tokenizer(kind: str) -> PreTrainedTokenizerBase:
    if kind == "minilm":
        return AutoTokenizer.from_pretrained(pretrained_directory())
    return make_tokenizer(kind, 128)


@pytest.fixture(scope="session")
def minilm(serve):
    return serve(hugging_face_tokenizer("minilm"), max_length=512)


def test_varied_texts_equal_hugging_face(served):
    assert served.ids(VARIED) == served.expected(VARIED)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(any_text, min_size=1, max_size=8))
def test_any_texts_equal_hugging_face(served, texts):
    assert served.ids(texts) == served.expected(texts)
    assert served.truncated(texts) == served.too_long(texts)


def test_pairs_equal_hugging_face(served):
    assert served.pairs(PAIRS) == served.expected_pairs(PAIRS)


@pytest.mark.parametrize("max_length", [11, 12])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "modernbert"])
def test_pairs_of_any_lengths_are_cut_like_hugging_face(serve, kind, side, max_length):
    """The longer text first, then both, for an even and an odd number of tokens."""
    tokenizer = make_tokenizer(kind, 128)
    tokenizer.truncation_side = side
    served = serve(tokenizer, max_length)
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    pairs = [(" ".join(words[:first]), " ".join(words[second:])) for first in range(10) for second in range(10)]
    assert served.pairs(pairs) == served.expected_pairs(pairs)


def test_refuses_pair_whose_special_tokens_do_not_fit(serve):
    served = serve(make_tokenizer("roberta", 128), max_length=3)
    (response,) = served.model.execute([served.request(b"a", pair=[b"b"])])
    assert "this model reads 3 tokens" in response.error.message()
    assert served.ids(["a"]) == served.expected(["a"])


@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(st.tuples(any_text, any_text), min_size=1, max_size=4))
def test_any_pairs_equal_hugging_face(served, pairs):
    assert served.pairs(pairs) == served.expected_pairs(pairs)


def test_longest_pair_needs_little_memory(minilm):
    """The tokenizers package builds 118,000 encodings of 512 tokens for this pair: gigabytes."""
    text = LONGEST_TEXTS["han"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (row,) = minilm.model.encoder.tokenize([(text, text)])
    assert (len(row.ids), row.cut) == (512, True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10


def test_truncated_means_that_a_token_was_dropped(minilm):
    """One token below the limit to one above it; then long texts."""
    texts = ["word " * count for count in (0, 509, 510, 511)] + ["word " * 510 + " " * 70_000, "word " * 15_000]
    assert minilm.truncated(texts) == [False, False, False, True, False, True]
    assert minilm.too_long(texts) == minilm.truncated(texts)


@pytest.mark.slow
@pytest.mark.parametrize("name", LONGEST_TEXTS)
@pytest.mark.parametrize("served", ["minilm", "roberta", "xlm-roberta"], indirect=True)
def test_longest_texts_equal_hugging_face(served, name):
    text = LONGEST_TEXTS[name]
    assert len(text.encode()) <= LONGEST
    assert served.ids([text, "a neighbour"]) == served.expected([text, "a neighbour"])


def split_by(pattern: str):
    def change(tokenizer: PreTrainedTokenizerBase) -> None:
        backend = tokenizer.backend_tokenizer
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, backend.pre_tokenizer])

    return change


def adding(*contents: str, **options: bool):
    return lambda tokenizer: tokenizer.add_tokens([AddedToken(content, **options) for content in contents])


# Tokenizers whose tokens at one place of a text depend on another place.
FAR_SIGHTED = {
    "a word and what follows it": split_by(r"\w+(?= the)"),
    "letters before an x": split_by("[a-z]+(?=[a-z ]*x)"),
    "an added token of whole words": adding("new york", "york the", single_word=True),
    "a normalized one with a no-break space": adding("new\u00a0york", normalized=True),
    "one that takes the blanks around it": adding("york", lstrip=True, rstrip=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("name", FAR_SIGHTED)
def test_long_text_is_tokenized_whole(serve, kind, name):
    """Tokens lie around 8 KiB, where cutting a text for speed would change them."""
    tokenizer = make_tokenizer(kind, 128)
    FAR_SIGHTED[name](tokenizer)
    served = serve(tokenizer, max_length=12)
    pieces = ["new\u00a0york the", " a new york", " market the", "b themarket", " x", "york 5"]
    texts = []
    for turn, blanks in enumerate(range(8192 - 122, 8192 - 30, 4)):
        texts.append(" " * blanks + "new york " * 40)
        texts.append(" " * blanks + "".join(pieces[turn % 6 :] + pieces * 3))
    assert served.ids(texts) == served.expected(texts)


@pytest.mark.parametrize("max_length", [3, 16, 512])
def test_every_max_length_equals_hugging_face(serve, max_length):
    served = serve(hugging_face_tokenizer("minilm"), max_length)
    assert served.ids(VARIED) == served.expected(VARIED)


@pytest.mark.parametrize(
    ("words", "width"),
    [(0, 512), (510, 512), (511, 1024), (1022, 1024), (1023, 2048), (2046, 2048), (2047, 3000), (4000, 3000)],
)
def test_long_texts_get_the_next_power_of_two_of_columns(serve, words, width):
    """Each request by its longest text, whatever else Triton puts into the same batch."""
    served = serve(hugging_face_tokenizer("minilm"), max_length=3000)
    texts = ["word " * words, GOOD[0]]
    assert served.ids(texts) == served.expected(texts)
    long, short = served.execute([[text.encode() for text in texts], [GOOD[0].encode()]])
    assert long.outputs["INPUT_IDS"].shape == (2, width)
    assert short.outputs["INPUT_IDS"].shape == short.outputs["ATTENTION_MASK"].shape == (1, 512)


def test_parts_of_a_long_request_get_one_width(serve):
    served = serve(hugging_face_tokenizer("minilm"), max_length=4096)
    texts = ["word " * 3000, "short", "word " * 700 + " " * 100_000]
    assert served.ids(texts) == served.expected(texts)


def test_keeps_truncation_on_the_left(serve):
    tokenizer = make_tokenizer("bert", 128)
    tokenizer.truncation_side = "left"
    served = serve(tokenizer, max_length=16)
    assert served.ids(VARIED) == served.expected(VARIED)


GOOD = ["Museum reopens after two years", "short"]
BAD = {
    "an invalid byte": (b"caf\xe9 au lait", "row 0 is not UTF-8: byte 0xe9 at offset 3"),
    "a truncated character": ("a€".encode()[:-1], "row 0 is not UTF-8: byte 0xe2 at offset 1"),
    "an encoded surrogate": (b"ab\xed\xa0\x80", "row 0 is not UTF-8: byte 0xed at offset 2"),
    "too long a text": (b"x" * (LONGEST + 1), f"row 0 has {LONGEST + 1} bytes; the limit is {LONGEST}"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_request_gets_its_error_and_others_are_answered(minilm, name):
    raw, message = BAD[name]
    responses = minilm.execute([[GOOD[0].encode()], [raw], [text.encode() for text in GOOD], [b"", raw]])
    assert [bool(response.error) for response in responses] == [False, True, False, True]
    assert message in responses[1].error.message()
    assert message.replace("row 0", "row 1") in responses[3].error.message()
    assert {response.error.code() for response in responses[1::2]} == {fake_triton.TritonError.INVALID_ARG}
    assert all(not response.outputs for response in responses[1::2])
    expected = minilm.expected(GOOD)
    assert len(responses[0].outputs["INPUT_IDS"]) == 1
    assert responses[0].outputs["INPUT_IDS"][0, : len(expected[0])].tolist() == expected[0]
    for row, ids in zip(responses[2].outputs["INPUT_IDS"], expected, strict=True):
        assert row[: len(ids)].tolist() == ids


@pytest.mark.parametrize("name", BAD)
def test_bad_second_text_gets_its_error_and_others_are_answered(minilm, name):
    """Beside pairs and single texts: the model must not depend on Triton separating them."""
    raw, message = BAD[name]
    pair = (GOOD[0].encode(), GOOD[1].encode())
    bad = minilm.request(pair[0], pair[0], pair=[pair[1], raw])
    responses = minilm.model.execute([minilm.request(pair[0], pair=pair[1:]), bad, minilm.request(*pair)])
    assert [bool(response.error) for response in responses] == [False, True, False]
    assert f"TEXT_PAIR {message.replace('row 0', 'row 1')}" in responses[1].error.message()
    single, both = minilm.expected(GOOD), minilm.expected_pairs([tuple(GOOD)])[0][0]
    assert responses[0].outputs["INPUT_IDS"][0, : len(both)].tolist() == both
    assert responses[2].outputs["TOKENS"][:, 0].tolist() == list(map(len, single))


def test_both_texts_of_a_pair_count_towards_the_limit(minilm):
    longest = LONGEST_TEXTS["spaces"].encode()
    (response,) = minilm.model.execute([minilm.request(longest, longest, b"", pair=[longest, longest, b"x"])])
    assert f"{4 * LONGEST + 1} bytes of TEXT and TEXT_PAIR; the limit is {4 * LONGEST}" in response.error.message()


def test_refuses_request_over_the_byte_limit(minilm):
    longest = LONGEST_TEXTS["spaces"].encode()
    over, within = minilm.execute([[longest] * 4 + [b"x"], [b"x"]])
    assert f"{4 * LONGEST + 1} bytes of TEXT; the limit is {4 * LONGEST}" in over.error.message()
    assert within.error is None


def test_batch_of_bad_requests_gets_errors(minilm):
    assert all(response.error for response in minilm.execute([[b"\xff"], [b"\xfe", b"\xff"]]))


def test_refusal_is_a_503_with_the_limit(minilm, monkeypatch):
    monkeypatch.setattr(minilm.model.admission, "admit", lambda count: count - 2)  # 1 of 3 requests
    first, *refused = minilm.execute([[GOOD[0].encode()], [text.encode() for text in GOOD], [GOOD[1].encode()]])
    assert first.error is None
    [expected] = minilm.expected(GOOD[:1])
    assert first.outputs["INPUT_IDS"].shape == (1, minilm.max_length)
    assert first.outputs["INPUT_IDS"][0, : len(expected)].tolist() == expected
    assert [response.error.code() for response in refused] == [fake_triton.TritonError.UNAVAILABLE] * 2
    for response in refused:
        assert f"{LIMITS['max_pending_requests']} requests wait" in response.error.message()
        assert "max_pending_requests" in response.error.message()
        assert not response.outputs


class Gate:
    """An encoder that blocks on texts of `closed_for` characters or more until `opened`. begun: lengths of calls."""

    def __init__(self, encoder, closed_for: int):
        self.encoder, self.closed_for = encoder, closed_for
        self.opened, self.begun = threading.Event(), []

    def __getattr__(self, name: str):
        return getattr(self.encoder, name)

    def tokenize(self, texts: list[str]):
        if max(map(len, texts), default=0) >= self.closed_for:
            assert self.opened.wait(HANG_S)
        self.begun.append(sum(map(len, texts)))
        return self.encoder.tokenize(texts)


@pytest.fixture
def gate(serve, monkeypatch):
    """(served, gate): a model whose long texts wait for gate.opened."""
    served = serve(hugging_face_tokenizer("minilm"), max_length=128)
    gate = Gate(served.model.encoder, closed_for=30_000)
    monkeypatch.setattr(served.model, "encoder", gate)
    monkeypatch.setattr(served.model.long_texts, "tokenize", gate.tokenize)
    yield served, gate
    gate.opened.set()


LONG = HEADLINES[0] + " " * 100_000


def test_short_request_overtakes_long_one(gate):
    served, gate = gate
    long, short = served.request(LONG.encode(), GOOD[0].encode()), served.request(GOOD[1].encode())
    assert served.model.execute([long, short]) is None
    [neighbour] = served.model.execute([served.request(GOOD[0].encode())])
    assert (len(long.sent), len(short.sent)) == (0, 1)
    for response, text in ((short.sent[0], GOOD[1]), (neighbour, GOOD[0])):
        [expected] = served.expected([text])
        assert response.outputs["INPUT_IDS"][0, : len(expected)].tolist() == expected
    gate.opened.set()
    wait_for(lambda: long.sent, "the long request got no answer")
    outputs = long.sent[0].outputs
    expected = served.expected([LONG, GOOD[0]])
    assert outputs["INPUT_IDS"].shape == outputs["ATTENTION_MASK"].shape == (2, served.max_length)
    for row, mask, ids in zip(outputs["INPUT_IDS"], outputs["ATTENTION_MASK"], expected, strict=True):
        assert row[mask == 1].tolist() == ids


def test_execute_tokenizes_a_bounded_number_of_bytes(gate):
    """Many texts of medium length make a long batch too. Each request is answered once."""
    served, gate = gate
    gate.opened.set()
    requests = [[b"word " * 1000] * rows for rows in (1, 12, 2, 3, 40)]
    responses = served.execute(requests)
    assert [len(response.outputs["INPUT_IDS"]) for response in responses] == [1, 12, 2, 3, 40]
    at_once, *one_by_one = gate.begun
    assert at_once == 6 * 5000
    assert one_by_one == [5000] * 52


def test_earliest_deadline_goes_first(gate):
    served, gate = gate
    first, large, small = (
        served.request(*[(letter * 70_000).encode()] * rows) for letter, rows in zip("abc", (1, 6, 2))
    )
    for request in (first, large, small):
        assert served.model.execute([request]) is None
    order = []
    for name, request in (("first", first), ("large", large), ("small", small)):
        request.send = lambda response, flags, name=name: order.append(name)
    gate.opened.set()
    wait_for(lambda: len(order) == 3, "a request got no answer")
    assert order == ["first", "small", "large"]


def test_refuses_long_texts_over_the_backlog_limit(gate):
    served, _ = gate
    longest = b" " * LONGEST
    waiting = [served.request(*[longest] * 4) for _ in range(3)]
    for request in waiting[:2]:  # fills the backlog
        assert served.model.execute([request]) is None
    assert served.model.execute(waiting[2:]) is None
    [refused] = waiting[2].sent
    assert refused.error.code() == fake_triton.TritonError.UNAVAILABLE
    assert f"overload: {8 * LONGEST} bytes of long texts wait already, this request has {4 * LONGEST} more" in (
        refused.error.message()
    )
    assert "max_waiting_bytes" in refused.error.message()
    assert not waiting[0].sent
    assert not waiting[1].sent


def test_unloading_waits_for_long_requests(gate):
    served, gate = gate
    request = served.request(LONG.encode())
    assert served.model.execute([request]) is None
    unloading = threading.Thread(target=served.model.finalize)
    unloading.start()
    unloading.join(0.2)
    assert unloading.is_alive()
    assert not request.sent
    gate.opened.set()
    unloading.join(HANG_S)
    assert not unloading.is_alive()
    assert request.sent[0].error is None


def test_failed_long_request_is_answered_and_so_is_the_next(serve, monkeypatch):
    served = serve(hugging_face_tokenizer("minilm"), max_length=16)
    tokenize = served.model.encoder.tokenize

    def fail_on_x(texts: list[str]):
        if texts[0].startswith("x"):
            raise MemoryError("no room")
        return tokenize(texts)

    monkeypatch.setattr(served.model.long_texts, "tokenize", fail_on_x)
    bad, good = served.execute([[b"x" * 100_000], [LONG.encode()]])
    assert bad.error.code() == fake_triton.TritonError.INTERNAL
    assert "no room" in bad.error.message()
    assert good.error is None


def test_counts_tokens_truncated_texts_and_refusals(serve, monkeypatch):
    """Includes the thread's texts. Repeated flushes count nothing twice."""
    served = serve(hugging_face_tokenizer("minilm"), max_length=16)
    families = fake_triton.MetricFamily.families
    texts = [GOOD[1], "word " * 40, "word " * 20_000]
    served.execute([[text.encode()] for text in texts] + [[b"\xff"]] + [[b" " * LONGEST] * 5])
    monkeypatch.setattr(served.model.admission, "admit", lambda count: 0)
    served.execute([[b"a"], [b"a"]])
    for _ in range(3):
        served.model.metrics.flush()
    [tokens] = families["text_classifier_tokens"].told.values()
    assert sorted(tokens) == sorted(map(len, served.expected(texts)))
    [truncated] = families["text_classifier_truncated_texts_total"].told.values()
    assert sum(truncated) == 2
    refused = families["text_classifier_refused_requests_total"].told
    assert {dict(labels)["reason"]: sum(told) for labels, told in refused.items()} == {
        "overload": 2,
        "long_texts": 0,
        "invalid": 2,
    }


def test_tells_what_runs_until_it_ends(serve, monkeypatch):
    monkeypatch.setenv("TRITON_SERVER_VERSION", "2.71.0")
    served = serve(hugging_face_tokenizer("minilm"), 16, release="b" * 12, precision="bf16")
    [(labels, told)] = fake_triton.MetricFamily.families["text_classifier_info"].told.items()
    found = dict(labels)
    flags = set(found.pop("cpu").split())
    assert flags < cpu_flags()
    assert ("avx2" in flags) == ("avx2" in cpu_flags())
    assert found == {
        "model": "tokenizer",
        "process": str(os.getpid()),
        "release": "b" * 12,
        "precision": "bf16",
        "torch": version("torch"),
        "triton": "2.71.0",
    }
    assert told == [1]
    served.model.finalize()
    assert told == [1, 0]
