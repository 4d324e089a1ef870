"""The tokenizer model that runs inside the server answers like AutoTokenizer, and a bad request costs only itself."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from build_scripts.build.checkpoint import Checkpoint, serving_tokenizer
from build_scripts.build.demo import pretrained_directory
from build_scripts.settings import SOURCE_REPOSITORY
from tests.support import fake_triton
from tests.support.checkpoints import make_tokenizer
from tests.support.texts import HEADLINES, MEBIBYTES, VARIED, any_text

LIMITS = {
    "max_text_bytes": str(1 << 20),
    "max_request_bytes": str(4 << 20),
    "max_pending_requests": "1000000",
    "metrics_address": "127.0.0.1:9",  # nobody there: nothing is refused
}
# WordPiece as BERT ships it, byte-level BPE, and two ways to split for a Unigram.
KINDS = ("minilm", "roberta", "xlm-roberta", "deberta-v2")


@dataclass(frozen=True)
class Served:
    """The model as the server loads it, and the tokenizer that it must agree with."""

    module: ModuleType
    model: object
    hugging_face: PreTrainedTokenizerBase
    max_length: int

    def ids(self, texts: list[str]) -> list[list[int]]:
        """One request of all texts; the real ids of each row. Checks shapes, types, mask and padding on the way."""
        response = self.execute([[text.encode() for text in texts]])[0]
        assert response.error is None, response.error.message()
        input_ids, mask = response.outputs["INPUT_IDS"], response.outputs["ATTENTION_MASK"]
        assert input_ids.shape == mask.shape == (len(texts), self.max_length)
        assert input_ids.dtype == mask.dtype == np.int64
        lengths = mask.sum(1)
        assert np.array_equal(mask, np.arange(self.max_length) < lengths[:, None])
        tokens = response.outputs["TOKENS"]
        assert tokens.dtype == np.int32
        assert np.array_equal(tokens, lengths[:, None])
        assert (input_ids[mask == 0] == self.hugging_face.pad_token_id).all()
        return [row[:length].tolist() for row, length in zip(input_ids, lengths)]

    def expected(self, texts: list[str]) -> list[list[int]]:
        return self.hugging_face(texts, truncation=True, max_length=self.max_length)["input_ids"]

    def truncated(self, texts: list[str]) -> list[bool]:
        """What TRUNCATED says of each text."""
        truncated = self.execute([[text.encode() for text in texts]])[0].outputs["TRUNCATED"]
        assert (truncated.shape, truncated.dtype) == ((len(texts), 1), np.bool_)
        return truncated[:, 0].tolist()

    def too_long(self, texts: list[str]) -> list[bool]:
        return [len(ids) > self.max_length for ids in self.hugging_face(texts)["input_ids"]]

    def execute(self, requests: list[list[bytes]]) -> list[fake_triton.InferenceResponse]:
        return self.model.execute(
            [fake_triton.Request(TEXT=np.array([[raw] for raw in rows], dtype=np.object_)) for rows in requests]
        )


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """serve(tokenizer, max_length): model.py beside the tokenizer.json that a build writes."""

    def make(hugging_face: PreTrainedTokenizerBase, max_length: int) -> Served:
        directory = tmp_path_factory.mktemp("tokenizer")
        for source in (SOURCE_REPOSITORY / "tokenizer" / "1").glob("*.py"):
            shutil.copy(source, directory)
        checkpoint = Checkpoint(directory, None, hugging_face, [], False, max_length)
        serving_tokenizer(checkpoint).save(str(directory / "tokenizer.json"))
        return Served(*fake_triton.load_model(directory, LIMITS), hugging_face, max_length)

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


def test_varied_texts_get_hugging_faces_ids(served):
    assert served.ids(VARIED) == served.expected(VARIED)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(any_text, min_size=1, max_size=8))
def test_any_texts_get_hugging_faces_ids(served, texts):
    assert served.ids(texts) == served.expected(texts)
    assert served.truncated(texts) == served.too_long(texts)


def test_a_text_is_truncated_only_if_a_token_was_left_out(minilm):
    """From one token less than there is room for to one more; then in the shortcut for long texts."""
    texts = ["word " * count for count in (0, 509, 510, 511)] + ["word " * 510 + " " * 9_000, "word " * 3_000]
    assert minilm.truncated(texts) == [False, False, False, True, False, True]
    assert minilm.too_long(texts) == minilm.truncated(texts)


@pytest.mark.parametrize("name", MEBIBYTES)
@pytest.mark.parametrize("served", ["minilm", "roberta", "xlm-roberta"], indirect=True)
def test_a_mebibyte_gets_hugging_faces_ids(served, name):
    text = MEBIBYTES[name]
    assert len(text.encode()) <= 1 << 20
    assert served.ids([text, "a neighbour"]) == served.expected([text, "a neighbour"])


@pytest.mark.parametrize("max_length", [3, 16, 512])
def test_every_max_length_gets_hugging_faces_ids(serve, max_length):
    served = serve(hugging_face_tokenizer("minilm"), max_length)
    assert served.ids(VARIED) == served.expected(VARIED)


def test_truncation_on_the_left_is_kept(serve):
    tokenizer = make_tokenizer("bert", 128)
    tokenizer.truncation_side = "left"
    served = serve(tokenizer, max_length=16)
    assert served.ids(VARIED) == served.expected(VARIED)


# What may stand around a cut: words, what looks like a word's end, and tokens that are found in the raw text.
AROUND_A_CUT = [
    " the", " market", "a", "b", " ", "  ", ".", ",", "-", "[", "]", "<", ">", "(", "中", "文", "，", "[MASK]",
    "<mask>", "</s>", " <mask>", "[MASK", "MASK]", "new york", " New York", "Néw York", "wall-street", "!?", " tok en",
    "\u0301", "\u200d", "\n", "ing", "1", "é", "##s", "'s", "\x00", "▁", "...", "--", "   ", "中文",
]  # fmt: skip


SHORTCUT_KINDS = ("bert", "roberta", "xlm-roberta", "deberta-v2", "albert", "modernbert")


def with_small_beginnings(serve, kind: str, *, normalized: bool) -> Served:
    """The shortcut for long texts at a hundredth of its size, where every cut is near the last token that counts."""
    tokenizer = make_tokenizer(kind, 128)
    contents = ["new york", "wall-street", "!?", "tok en"]
    tokenizer.add_tokens([AddedToken(content, normalized=normalized) for content in contents])
    served = serve(tokenizer, max_length=12)
    served.module.BEGINNINGS = (48, 96)
    return served


@pytest.fixture(scope="session", params=SHORTCUT_KINDS)
def small(request, serve):
    served = with_small_beginnings(serve, request.param, normalized=False)
    assert served.model.safe_cut, "the shortcut must be in use"
    return served


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.sampled_from(AROUND_A_CUT), min_size=20, max_size=60), size=st.integers(40, 70))
def test_a_cut_changes_no_token_before_it(small, parts, size):
    text = "".join(parts)
    cut = small.model.last_safe_cut(text, size)
    if cut is not None:
        assert size // 2 <= cut < size
        before, whole = small.hugging_face([text[:cut], text], add_special_tokens=False)["input_ids"]
        assert whole[: len(before)] == before


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.sampled_from(AROUND_A_CUT), min_size=20, max_size=120))
def test_the_shortcut_for_long_texts_never_changes_an_answer(small, parts):
    text = "".join(parts)
    assert small.ids([text]) == small.expected([text])
    assert small.truncated([text]) == small.too_long([text])


@pytest.mark.parametrize("kind", SHORTCUT_KINDS)
@pytest.mark.parametrize("normalized", [False, True])
def test_an_added_token_is_found_wherever_a_cut_falls(serve, kind, normalized):
    """A normalized one also through capitals and accents, where the text itself does not hold it."""
    served = with_small_beginnings(serve, kind, normalized=normalized)
    starts = [word * words for word in ("a ", "a   ", " the") for words in range(16)]
    texts = [f"{start}{token}{' 5' * 60}" for start in starts for token in ("new york", "Néw York", "wall-street!?")]
    assert served.ids(texts) == served.expected(texts)


@settings(max_examples=30, deadline=None)
@given(
    parts=st.lists(st.sampled_from([*HEADLINES[:9], "字" * 90, "[MASK]", "<mask>", "!?" * 40, " ", "😀"]), min_size=2),
    before_the_cut=st.integers(0, 60),
)
def test_the_shortcut_at_its_real_size_never_changes_an_answer(minilm, parts, before_the_cut):
    head = ("".join(parts) * 8192)[: 8192 - before_the_cut]
    text = f"{head}{''.join(parts)} and so on {'.' * 400}"
    assert len(text) > minilm.module.BEGINNINGS[0]
    assert minilm.ids([text]) == minilm.expected([text])


@pytest.mark.parametrize("name", ["words", "han", "punctuation"])
def test_of_a_long_text_only_a_beginning_is_tokenized(minilm, name, monkeypatch):
    """Counted, not timed: without the shortcut a megabyte costs the neighbours a second."""
    tokenized = []
    tokenizer = minilm.model.tokenizer

    class Counting:
        def encode_batch_fast(self, texts):
            tokenized.extend(map(len, texts))
            return tokenizer.encode_batch_fast(texts)

    monkeypatch.setattr(minilm.model, "tokenizer", Counting())
    minilm.ids([MEBIBYTES[name]])
    assert 0 < sum(tokenized) <= sum(minilm.module.BEGINNINGS)


GOOD = ["Museum reopens after two years", "short"]
BAD = {
    "an invalid byte": (b"caf\xe9 au lait", "row 0 is not UTF-8: byte 0xe9 at offset 3"),
    "a truncated character": ("a€".encode()[:-1], "row 0 is not UTF-8: byte 0xe2 at offset 1"),
    "an encoded surrogate": (b"ab\xed\xa0\x80", "row 0 is not UTF-8: byte 0xed at offset 2"),
    "too long a text": (b"x" * ((1 << 20) + 1), "row 0 has 1048577 bytes; the limit is 1048576"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_has_an_error_of_its_own_and_its_neighbours_have_answers(minilm, name):
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


def test_a_request_may_not_hold_more_bytes_than_the_limit(minilm):
    mebibyte = MEBIBYTES["spaces"].encode()
    over, within = minilm.execute([[mebibyte] * 4 + [b"x"], [b"x"]])
    assert "4194305 bytes of TEXT; the limit is 4194304" in over.error.message()
    assert within.error is None


def test_requests_of_bad_texts_alone_get_errors_alone(minilm):
    assert all(response.error for response in minilm.execute([[b"\xff"], [b"\xfe", b"\xff"]]))


def test_who_is_refused_gets_a_503_that_names_the_limit(minilm, monkeypatch):
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
