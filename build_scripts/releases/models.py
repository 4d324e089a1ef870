"""Put the three models of a release together in a directory that Triton can load.

A working repository holds what people write (configs, the tokenizer's code) and releases. It holds no complete model,
so that no copy, checkout or stray file can make Triton load anything but the release that the history names. A server
loads models that are put together afresh each time it starts, in its run directory: code and labels as copies, weights,
tokenizer and the tokenizers package as links into the release. Triton from 26.02 on refuses a label file that a link
leads out of the model's directory. A package has the same files, all of them copies.

Each config carries the release's id as a parameter: the server tells which release it runs. The tokenizer's has the
precision, too, for the metrics page.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from build_scripts.core.errors import ServingError
from build_scripts.core.names import CLASSIFIER, ENSEMBLE, TOKENIZER, Models
from build_scripts.releases import store
from build_scripts.releases.files import copy_whole, link_whole, same, write_whole
from build_scripts.releases.store import CONFIG

RELEASE_PARAMETER = "release"
# Where the files of a release belong, model by model: path in the model -> name in the release.
PARTS: dict[str, dict[str, str]] = {
    TOKENIZER: {"1/tokenizer.json": "tokenizer.json", "1/tokenizers": "tokenizers"},
    CLASSIFIER: {"1/model.pt": "model.pt", "labels.txt": "labels.txt"},
    ENSEMBLE: {},
}
COPIED = {"labels.txt"}


def serving_models(repository: Path, directory: Path) -> tuple[list[Path], dict[str, str]]:
    """The model repositories for Triton to load, and what they hold: name of a classifier -> id of the live release.

    directory: where the models are put together, and where Triton finds what a later release puts there. Raises
    ServingError if nothing was built, or if a release does not hold the files that it was built with.
    """
    served = {name: store.require_release(repository, name) for name in store.names(repository) or [ENSEMBLE]}
    for name, manifest in served.items():
        if not store.is_package(repository):
            release = store.releases_directory(repository, name) / manifest["release"]
            try:
                put_together(repository, name, release, directory)
            except OSError as error:
                raise ServingError(
                    f"the models cannot be put together in {directory} ({error.strerror}); expected a directory that "
                    "this user may write to, with some space"
                ) from error
        elif changed := damaged_file(repository, name):
            raise ServingError(f"{changed} is not the file that the package was made with; copy the package again")
    ids = {name: manifest["release"] for name, manifest in served.items()}
    return [repository, directory] if store.is_package(repository) else [directory], ids


def put_together(repository: Path, name: str, release: Path, directory: Path) -> None:
    """Write the models of one release, or bring them up to date. On a full disk, models that are up to date stay."""
    store.refuse_damaged(release)
    for kind, model in zip(Models().all, Models(name).all):
        config = repository / model / CONFIG
        fill(
            repository,
            kind,
            release,
            directory / model,
            config.read_text(encoding="utf-8") + written(parameters(release, kind)),
        )


def fill(repository: Path, kind: str, release: Path, model: Path, config: str) -> None:
    """Write one model. kind: the default classifier's name for such a model."""
    (model / "1").mkdir(parents=True, exist_ok=True)
    write_whole(model / CONFIG, config)
    parts = {path: (release / part).resolve() for path, part in PARTS[kind].items()}
    copied = {**dict(code(repository, kind)), **{Path(path): parts.pop(path) for path in COPIED & parts.keys()}}
    for target, source in copied.items():
        if not same(source, model / target):
            copy_whole(source, model / target)
    for path, source in parts.items():
        link_whole(model / path, source)


def code(repository: Path, kind: str) -> Iterator[tuple[Path, Path]]:
    """(path in the model, file) of what people write for a model beside its config; every classifier has the same."""
    for file in sorted((repository / kind).glob("1/*")):
        path = file.relative_to(repository / kind)
        if file.is_file() and not file.is_symlink() and path.as_posix() not in PARTS[kind] and file.name[0] != ".":
            yield path, file


def parameters(release: Path, model: str) -> dict[str, str]:
    """What a release adds to the parameters of a config. The embedded pytorch backend refuses those it does not know.

    model: name of any classifier's model; it begins with the kind.
    """
    found = {RELEASE_PARAMETER: release.name}
    return {**found, "precision": store.read_manifest(release)["precision"]} if model.startswith(TOKENIZER) else found


def written(parameters: dict[str, str]) -> str:
    """Parameters as text, to be put at the end of a config."""
    lines = (
        f'parameters {{ key: "{key}", value: {{ string_value: "{value}" }} }}\n' for key, value in parameters.items()
    )
    return "\n" + "".join(lines)


def damaged_file(repository: Path, name: str) -> Path | None:
    """The first file of the live release that is not the one that it was built with. None where nothing was built."""
    live = store.live_release(repository, name)
    if live is None:
        return None

    def locate(part: str) -> Path:
        return packed_file(repository, name, part) if store.is_package(repository) else live / part

    return store.damaged(store.read_manifest(live), locate)


def packed_file(package: Path, name: str, part: str) -> Path:
    """Where a package has a file of a classifier's release."""
    own = dict(zip(Models().all, Models(name).all))
    top, _, rest = part.partition("/")
    kind, path = next((kind, path) for kind, parts in PARTS.items() for path, of in parts.items() if of == top)
    return package / own[kind] / path / rest


def tokenizers_libraries(repository: Path) -> list[Path]:
    """The compiled part of each live release's copy of the tokenizers package."""
    if store.is_package(repository):
        return list(repository.glob("*/1/tokenizers/tokenizers*.so"))
    live = [store.live_release(repository, name) for name in store.names(repository)]
    return [library for release in live if release for library in release.glob("tokenizers/tokenizers*.so")]
