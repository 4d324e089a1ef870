"""MODEL=name@revision, from a hub of our own on 127.0.0.1: what is downloaded, and from which revision."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import huggingface_hub
import pytest

from build_scripts.core.errors import ServingError
from build_scripts.releases import hub
from tests.support.http_stand_in import Reply, Request, StandIn

COMMITS = {"main": "a" * 40, "v2": "b" * 40}
NAMES = [
    "config.json",
    "tokenizer.json",
    "vocab.txt",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "training_args.bin",
    "optimizer.pt",
    "tf_model.h5",
    "model.fp16.safetensors",
    "README.md",
    "checkpoint-500/config.json",
    "checkpoint-500/model.safetensors",
    "openvino/openvino_model.bin",
    "onnx/model.onnx",
    "1_Pooling/config.json",
]


def content(commit: str, name: str) -> bytes:
    return f"{name} of {commit}".encode()


def answer(request: Request) -> Reply:
    """The three requests of a download: the model's description, the list of its files, a file."""
    kind, revision, name = asked(request.path.partition("?")[0])
    commit = COMMITS.get(revision, revision)
    if commit not in COMMITS.values():
        return Reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
    if kind == "resolve":
        found = content(commit, name)
        return Reply(200, found, {"ETag": f'"{hashlib.sha256(found).hexdigest()}"', "X-Repo-Commit": commit})
    if kind == "tree":
        listed: object = [{"type": "file", "path": name, "size": 9, "oid": "0"} for name in NAMES]
    else:
        listed = {"id": "some/model", "sha": commit, "siblings": [{"rfilename": name} for name in NAMES]}
    return Reply(200, json.dumps(listed).encode(), {"Content-Type": "application/json"})


def asked(path: str) -> tuple[str, str, str]:
    """Kind, revision and file name of a request."""
    for kind in ("resolve", "tree", "revision"):
        _, found, rest = path.partition(f"/{kind}/")
        if found:
            revision, _, name = rest.partition("/")
            return kind, revision, name
    return "revision", "main", ""


@pytest.fixture
def downloads(tmp_path, monkeypatch) -> Iterator[None]:
    """The hub's client, led to a hub and a cache of this test."""
    with StandIn(answer) as server:
        url = server.url
        monkeypatch.setattr(hub, "HfApi", lambda: huggingface_hub.HfApi(endpoint=url, token=False))
        monkeypatch.setattr(
            hub,
            "snapshot_download",
            lambda name, **options: huggingface_hub.snapshot_download(
                name, endpoint=url, cache_dir=tmp_path / "cache", token=False, **options
            ),
        )
        yield


@pytest.mark.parametrize(("asked", "commit"), [("", "main"), ("@main", "main"), ("@v2", "v2"), ("@" + "b" * 40, "v2")])
def test_a_download_takes_the_revision_and_only_what_a_build_reads(downloads, asked, commit):
    directory = hub.resolve(f"some/model{asked}")
    files = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    assert files == ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"]
    assert all((directory / name).read_bytes() == content(COMMITS[commit], name) for name in files)


def test_without_a_list_of_the_files_nothing_of_a_folder_is_taken(downloads, monkeypatch):
    """The hub may describe no model and still give its files; the kinds of weights cannot be told apart then."""

    class Silent:
        def model_info(self, *_: object, **__: object) -> None:
            raise OSError("no answer")

    monkeypatch.setattr(hub, "HfApi", Silent)
    directory = hub.resolve("some/model")
    files = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    weights = ["model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json"]
    assert files == ["config.json", *weights, "tokenizer.json", "vocab.txt"]


def test_a_revision_that_is_not_there_is_one_line(downloads):
    with pytest.raises(ServingError, match=r"MODEL=some/model@nowhere: .*check the name") as refused:
        hub.resolve("some/model@nowhere")
    assert len(str(refused.value).splitlines()) == 1


def test_a_directory_with_an_at_sign_is_a_directory(tmp_path, monkeypatch):
    (tmp_path / "model@v2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("model@v2").name == "model@v2"


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin", "openvino_model.bin", "training_args.bin"], ["pytorch_model.bin"]),
        (
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "pytorch_model-00001-of-00002.bin",
            ],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (["adapter_model.safetensors", "tf_model.h5"], []),
        (["checkpoint-500/config.json", "onnx/tokenizer.json", "spiece.model"], ["spiece.model"]),
    ],
)
def test_one_kind_of_weights_is_taken(files, taken):
    assert hub.needed(["config.json", *files]) == ["config.json", *taken]
