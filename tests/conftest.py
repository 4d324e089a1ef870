"""Fixtures that more than one file uses: checkpoints and the files exported from them, each made once a session."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import servers
from tests.support.checkpoints import LIKE_ANOTHER, make_checkpoint

# What the caller's shell, or the `make test` that runs this, would hand on to the commands and clients of the tests.
FOREIGN = ("TRITON_", "MAKE", "MFLAGS", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "AIP_")
for name in [name for name in os.environ if name.upper().startswith(FOREIGN)]:
    del os.environ[name]

# So that a failing assert in these shows its values, as one in a test does.
pytest.register_assert_rewrite("tests.support.token_batches", "tests.support.trees")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "default_server" in getattr(item, "fixturenames", ()):
            item.add_marker("server")
        if "default_oracle" in getattr(item, "fixturenames", ()):  # the first of them trains the default model
            item.add_marker("slow")
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if not {parameters.get("kind"), parameters.get("served")}.isdisjoint(LIKE_ANOTHER):
            item.add_marker("slow")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """`make check` leaves the tests out that are marked; the mark is asked for where a server is started."""
    servers.may_start = item.get_closest_marker("server") is not None


# No property depends on speed: on a busy machine one example took longer than the 200 ms that are the default.
settings.register_profile("any speed", deadline=None)
settings.load_profile("any speed")


@dataclass(frozen=True, eq=False)
class Subject:
    """A checkpoint directory as Hugging Face reads it, and as this project exports it.

    All is loaded when it is first asked for, and outside inference mode: what is loaded in it is of use in it only.
    """

    directory: Path

    @cached_property
    def model(self):
        import torch
        from transformers import AutoModelForSequenceClassification

        with torch.inference_mode(False):
            model = AutoModelForSequenceClassification.from_pretrained(self.directory, attn_implementation="eager")
        return model.eval()

    @cached_property
    def tokenizer(self):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.directory)

    @cached_property
    def checkpoint(self):
        import torch

        from build_scripts.convert.checkpoint import load

        with torch.inference_mode(False):
            return load(self.directory)

    def file(self, precision: str = "fp32") -> Path:
        from build_scripts.convert.export import export, graphs

        path = self.directory / f"exported.{precision}.pt"
        if not path.exists():
            export(self.checkpoint, graphs(self.checkpoint)[0], precision, path)
        return path

    @cached_property
    def exported(self):
        """The fp32 file, loaded as the server loads it."""
        import torch

        return torch.jit.load(str(self.file())).eval()


@pytest.fixture(scope="session")
def subject(tmp_path_factory) -> Callable[..., Subject]:
    """subject(kind, **options): a checkpoint made by make_checkpoint, the same one for the same arguments."""

    @cache
    def make(kind: str, **options) -> Subject:
        return Subject(make_checkpoint(kind, tmp_path_factory.mktemp(kind), **options))

    return make


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """For small models: a second thread would only spin, and take a core from something else.

    And as they are served: TorchScript's optimizer compiles each new shape, which took up to 150 MB per module.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.jit.optimized_execution(False):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    with single_thread():
        yield


@pytest.fixture(scope="session")
def tiny_repository(subject, tmp_path_factory) -> Path:
    """A complete repository of a tiny model; tests leave it as it is."""
    from build_scripts.core.options import BuildOptions
    from build_scripts.releases.pipeline import build

    repository = tmp_path_factory.mktemp("tiny") / "repository"
    with single_thread():
        build(BuildOptions(model=str(subject("bert").directory), precision="fp32", repository=repository))
    return repository


@pytest.fixture(scope="session")
def default_repository(tmp_path_factory, worker_id) -> Path:
    """The default model in fp32, so that answers can be compared exactly. Built once for all test processes."""
    from build_scripts.core.options import BuildOptions
    from build_scripts.releases.pipeline import build

    own = tmp_path_factory.getbasetemp()
    repository = (own if worker_id == "master" else own.parent) / "default" / "repository"
    build(BuildOptions(precision="fp32", repository=repository))  # locks the directory; the second one finds it built
    return repository


@pytest.fixture(scope="session")
def default_server(default_repository, tmp_path_factory):
    """A supervised server of the default model; tests only send requests to it."""
    output = tmp_path_factory.mktemp("server") / "output.txt"
    with servers.running(default_repository, output, "--precision", "fp32") as server:
        yield server


@pytest.fixture(scope="session")
def default_oracle():
    """Hugging Face's answers for the default model."""
    from build_scripts.releases.default_model import demo_checkpoint
    from tests.support.oracle import HuggingFace

    return HuggingFace(demo_checkpoint(), max_length=512)
