"""The contract on the wire, seen by independent clients."""

import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from google.protobuf import text_format
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig

from build_scripts.benchmarks.services import infer_body
from build_scripts.core.names import TOKENIZER
from build_scripts.core.paths import PROJECT, SOURCE_REPOSITORY
from build_scripts.serving import client
from build_scripts.serving.client import text_input
from tests.support.servers import perf_analyzer_failure, post
from tests.support.texts import HEADLINES
from tests.support.waiting import HANG_S

SPORTS, TEXT = 7, "Midfielder scores twice as champions win away"


def test_curl_gets_a_class_id(default_server):
    url = f"{default_server.http}/v2/models/text_classifier/generate"
    body = json.dumps({"TEXT": TEXT})
    answer = json.loads(subprocess.run(["curl", "-s", url, "-d", body], capture_output=True, check=True).stdout)
    assert answer["CLASS_ID"] == SPORTS
    assert len(answer["PROBABILITIES"]) == 10


def test_a_list_of_texts_gets_a_list(default_server):
    body = {"TEXT": [TEXT, "Central bank holds interest rates as inflation slows"]}
    status, answer = post(f"{default_server.http}/v2/models/text_classifier/generate", body)
    assert status == 200
    assert json.loads(answer)["CLASS_ID"] == [SPORTS, 0]


def test_answer_has_tokens_and_truncated(default_server, default_oracle):
    texts = [TEXT, "", "long " * 600, "long " * 510]
    answer = post(f"{default_server.http}/v2/models/text_classifier/generate", {"TEXT": texts})[1]
    answered = json.loads(answer)
    assert answered["TOKENS"] == [len(ids) for ids in default_oracle.tokenizer(texts, truncation=True)["input_ids"]]
    assert answered["TRUNCATED"] == [False, False, True, False]


PAIR = ("Midfielder scores twice as champions win away", "A football match was decided.")


def test_pair_over_generate_infer_and_grpc(default_server, default_oracle):
    expected = default_oracle.probabilities([PAIR])[0].tolist()
    assert expected != pytest.approx(default_oracle.probabilities([PAIR[0]])[0].tolist(), abs=2e-4)
    url = f"{default_server.http}/v2/models/text_classifier"
    generated = httpx.post(f"{url}/generate", json={"TEXT": PAIR[0], "TEXT_PAIR": PAIR[1]}).json()
    assert generated["PROBABILITIES"] == pytest.approx(expected, abs=1e-4)
    assert generated["TOKENS"] == len(default_oracle.encode(PAIR)["input_ids"])
    outputs = httpx.post(f"{url}/infer", json=infer_body([PAIR[0]], [PAIR[1]])).json()["outputs"]
    assert {out["name"]: out["data"] for out in outputs}["PROBABILITIES"] == pytest.approx(expected, abs=1e-4)
    (answer,) = client.classify([PAIR], default_server.grpc)
    assert answer.probability == pytest.approx(max(expected), abs=1e-4)


def test_tokenizing_client_marks_the_second_text_with_2(default_server, default_oracle):
    encoded = default_oracle.tokenizer(*PAIR)
    mask = [one + kind for one, kind in zip(encoded["attention_mask"], encoded["token_type_ids"])]
    inputs = [
        {"name": f"INPUT__{index}", "shape": [1, len(data)], "datatype": "INT64", "data": data}
        for index, data in enumerate((encoded["input_ids"], mask))
    ]
    outputs = httpx.post(f"{default_server.http}/v2/models/classifier/infer", json={"inputs": inputs}).json()["outputs"]
    expected = default_oracle.probabilities([PAIR])[0].tolist()
    assert {out["name"]: out["data"] for out in outputs}["OUTPUT__1"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ({"TEXT": ["a", "b"], "TEXT_PAIR": ["c"]}, 400, "batch size does not match"),
        ({"TEXT": "a", "TEXT_PAIR": ["c", "d"]}, 400, "batch size does not match"),
        ({"TEXT": ["a", "b"], "TEXT_PAIR": ["c", None]}, 500, "non-string"),
        ({"TEXT": "a", "TEXT_PAIR": 7}, 500, "non-string"),
        ({"TEXT_PAIR": "c"}, 400, "at least one output is not set"),
    ],
    ids=str,
)
def test_malformed_pair_is_an_error_from_triton(default_server, body, code, says):
    """A value that is not a string is a 500, in TEXT too: Triton parses the JSON."""
    status, answer = post(f"{default_server.http}/v2/models/text_classifier/generate", body)
    assert (status, says in answer.decode()) == (code, True), answer


def test_infer_returns_class_ids_and_labelled_probabilities(default_server):
    body = {
        **infer_body([TEXT, "Museum reopens"]),
        "outputs": [{"name": "CLASS_ID"}, {"name": "PROBABILITIES", "parameters": {"classification": 3}}],
    }
    response = httpx.post(f"{default_server.http}/v2/models/text_classifier/infer", json=body).json()
    outputs = {output["name"]: output for output in response["outputs"]}
    assert outputs["CLASS_ID"]["datatype"] == "INT64"
    assert outputs["CLASS_ID"]["shape"] == [2, 1]
    assert outputs["PROBABILITIES"]["shape"] == [2, 3]
    score, index, label = outputs["PROBABILITIES"]["data"][0].split(":")
    assert (int(index), label) == (SPORTS, "sports")
    assert 0.5 < float(score) <= 1


def test_grpc_returns_int64_ids_and_fp32_probabilities(default_server):
    with triton.InferenceServerClient(default_server.grpc) as server:
        result = server.infer("text_classifier", [text_input([TEXT])])
    assert result.as_numpy("CLASS_ID").tolist() == [[SPORTS]]
    probabilities = result.as_numpy("PROBABILITIES")
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (1, 10)
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)


def test_tokenizing_client_works(default_server, default_oracle):
    """INPUT__0 and INPUT__1, int64 [1, 512], in; OUTPUT__0, int64 [1, 1], out."""
    encoded = default_oracle.tokenizer(TEXT, padding="max_length", max_length=512)
    inputs = [
        {"name": name, "shape": [1, 512], "datatype": "INT64", "data": encoded[key]}
        for name, key in (("INPUT__0", "input_ids"), ("INPUT__1", "attention_mask"))
    ]
    body = {"inputs": inputs, "outputs": [{"name": "OUTPUT__0"}]}
    response = httpx.post(f"{default_server.http}/v2/models/classifier/infer", json=body).json()
    (output,) = response["outputs"]
    assert (output["datatype"], output["shape"], output["data"]) == ("INT64", [1, 1], [SPORTS])


def test_clients_that_share_a_batch_may_ask_for_one_output(default_server, default_oracle):
    """Triton ends a stub that drops an output without Python's lock; batches are answered through senders."""
    encoded = default_oracle.tokenizer(TEXT, padding="max_length", max_length=512)
    inputs = [
        {"name": name, "shape": [1, 512], "datatype": "INT64", "data": encoded[key]}
        for name, key in (("INPUT__0", "input_ids"), ("INPUT__1", "attention_mask"))
    ]
    asked = {"classifier": {"inputs": inputs, "outputs": [{"name": "OUTPUT__0"}]}}
    asked["tokenizer"] = {**infer_body([TEXT]), "outputs": [{"name": "TOKENS"}]}

    def ask(number: int) -> bool:
        model = "tokenizer" if number % 4 == 0 else "classifier"
        answer = httpx.post(f"{default_server.http}/v2/models/{model}/infer", json=asked[model], timeout=HANG_S).json()
        return [output["name"] for output in answer["outputs"]] == [asked[model]["outputs"][0]["name"]]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(200)))


def test_metadata_is_as_documented(default_server):
    def described(model):
        answer = httpx.get(f"{default_server.http}/v2/models/{model}").json()
        return {
            tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in answer["inputs"] + answer["outputs"]
        }

    assert described("text_classifier") == {
        "TEXT": ("BYTES", [-1, 1]),
        "TEXT_PAIR": ("BYTES", [-1, 1]),
        "CLASS_ID": ("INT64", [-1, 1]),
        "PROBABILITIES": ("FP32", [-1, -1]),
        "TOKENS": ("INT32", [-1, 1]),
        "TRUNCATED": ("BOOL", [-1, 1]),
    }
    assert described("tokenizer") == {
        "TEXT": ("BYTES", [-1, 1]),
        "TEXT_PAIR": ("BYTES", [-1, 1]),
        "INPUT_IDS": ("INT64", [-1, -1]),
        "ATTENTION_MASK": ("INT64", [-1, -1]),
        "TOKENS": ("INT32", [-1, 1]),
        "TRUNCATED": ("BOOL", [-1, 1]),
    }
    assert described("classifier") == {
        "INPUT__0": ("INT64", [-1, -1]),
        "INPUT__1": ("INT64", [-1, -1]),
        "OUTPUT__0": ("INT64", [-1, 1]),
        "OUTPUT__1": ("FP32", [-1, -1]),
    }


def test_perf_analyzer_needs_no_shape_flags(default_server, tmp_path):
    pairs = tmp_path / "pairs.json"
    pairs.write_text(json.dumps({"data": [{"TEXT": [PAIR[0]], "TEXT_PAIR": [PAIR[1]]}]}), encoding="utf-8")
    for arguments in ([], ["--input-data", str(pairs)]):
        assert perf_analyzer_failure(default_server.http, "text_classifier", *arguments) is None


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "build_scripts", *arguments]
    return subprocess.run(command, cwd=PROJECT, input=stdin, capture_output=True, text=True, timeout=HANG_S)


def test_classify_prints_id_label_and_probability(default_server):
    port = str(default_server.address.grpc_port)
    done = run("classify", "--text", TEXT, "--grpc-port", port)
    class_id, label, probability = done.stdout.rstrip("\n").split("\t")
    assert (class_id, label) == (str(SPORTS), "sports")
    assert 0.5 < float(probability) <= 1


@pytest.mark.parametrize("source", ["standard input", "a file"])
def test_classify_keeps_order_and_shows_no_progress_in_a_pipe(default_server, default_oracle, tmp_path, source):
    texts, file = HEADLINES[:100], tmp_path / "texts.txt"
    file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    port = str(default_server.address.grpc_port)
    if source == "a file":
        done = run("classify", "--file", str(file), "--grpc-port", port)
    else:
        done = run("classify", "--file", "-", "--grpc-port", port, stdin=file.read_text(encoding="utf-8"))
    assert done.stderr == ""
    assert [int(line.split("\t")[0]) for line in done.stdout.splitlines()] == default_oracle.class_ids(texts)


def test_classify_takes_a_pair_and_a_file_of_pairs_and_texts(default_server, default_oracle, tmp_path):
    port = str(default_server.address.grpc_port)
    done = run("classify", "--text", PAIR[0], "--pair", PAIR[1], "--grpc-port", port)
    assert done.stdout.split("\t")[0] == str(default_oracle.class_ids([PAIR])[0])
    rows = [*HEADLINES[:3], *zip(HEADLINES[:20], HEADLINES[20:40]), *HEADLINES[3:5], ("first alone", "")]
    file = tmp_path / "rows.tsv"
    file.write_text("".join("\t".join([row] if isinstance(row, str) else row) + "\n" for row in rows), encoding="utf-8")
    done = run("classify", "--file", str(file), "--grpc-port", port)
    expected = [row.max().item() for row in (default_oracle.probabilities([row])[0] for row in rows)]
    found = [float(line.split("\t")[-1]) for line in done.stdout.splitlines()]
    assert found == pytest.approx(expected, abs=1e-3), done.stderr


@given(st.lists(st.text(max_size=3) | st.tuples(st.text(max_size=3), st.text(max_size=3)), max_size=80))
def test_request_holds_texts_or_pairs(rows):
    batches = list(client.batches(rows))
    assert [row for batch in batches for row in batch] == rows
    assert all(len({type(row) for row in batch}) == 1 for batch in batches)


LIMIT = client.BATCH_BYTES


@settings(max_examples=200, deadline=None)
@given(st.lists(st.builds(str.__mul__, st.sampled_from("a\u00e9\u80a1\U0001f600"), st.integers(0, LIMIT)), max_size=12))
@example(["a" * (LIMIT - 1), "a"])
@example(["a" * (LIMIT - 1), "a", "a"])
@example(["a" * LIMIT, "a"])
@example(["", "a" * (LIMIT + 1), ""])
@example(["a"] * (2 * client.BATCH_SIZE + 1))
def test_request_is_as_large_as_the_limits_allow(texts):
    batches = list(client.batches(texts))
    assert [text for batch in batches for text in batch] == texts
    sizes = [[len(text.encode()) for text in batch] for batch in batches]
    for batch in sizes:
        assert 1 <= len(batch) <= client.BATCH_SIZE
        assert sum(batch) <= LIMIT or len(batch) == 1
    for batch, following in itertools.pairwise(sizes):
        assert len(batch) == client.BATCH_SIZE or sum(batch) + following[0] > LIMIT


def test_clients_requests_are_within_the_servers_limits():
    config = text_format.Parse((SOURCE_REPOSITORY / TOKENIZER / "config.pbtxt").read_text(), ModelConfig())
    assert config.max_batch_size >= client.BATCH_SIZE
    assert int(config.parameters["max_request_bytes"].string_value) >= LIMIT


def test_classify_without_a_server_says_how_to_start_one():
    done = run("classify", "--text", "a", "--grpc-port", "9")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "make serve" in done.stderr


def test_health_exits_0_on_a_server_that_answers(default_server):
    command = ["build_scripts", "health", "--http-port", str(default_server.address.http_port)]
    for arguments in (command, ["build_scripts.serving.keep.health", "--url", default_server.http]):
        done = subprocess.run([sys.executable, "-m", *arguments], cwd=PROJECT, capture_output=True, text=True)
        assert (done.returncode, done.stdout[:8]) == (0, "healthy:")


def test_listens_on_localhost_only(default_server):
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in default_server.family()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
