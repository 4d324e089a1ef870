"""Read the labels of a checkpoint, and write the file that Triton reads."""

from __future__ import annotations

from pathlib import Path

from build_scripts.core.errors import ServingError
from build_scripts.core.names import shortened


def read_labels(config, path: Path) -> list[str]:
    """The names of the classes, without line ends left by `readlines`."""
    if config.num_labels < 1 or (config.problem_type == "regression" and config.num_labels > 1):
        raise ServingError(
            f"{path} has {config.num_labels} labels and problem type {config.problem_type or 'unset'}; expected a "
            "single-label or multi-label classifier, or one label, whose number is served as a score"
        )
    if sorted(config.id2label) != list(range(config.num_labels)):
        raise ServingError(
            f"id2label in {path}/config.json has the ids {shortened(sorted(config.id2label))}; expected 0 to "
            f"{config.num_labels - 1}, one for each class id: mend id2label"
        )
    names = [config.id2label[index] for index in range(config.num_labels)]
    # A number can be a name; null and a list cannot.
    labels = [str(name).strip("\r\n") if isinstance(name, str | int | float) else "" for name in names]
    for index, label in enumerate(labels):
        if not label.strip() or any(end in label for end in "\r\n\0") or not _encodes(label):
            raise ServingError(
                f"label {index} in {path}/config.json is {names[index]!r}; expected one non-empty line: mend id2label"
            )
    return labels


def _encodes(label: str) -> bool:
    """Whether a label is Unicode text: JSON can hold a lone surrogate."""
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in label)


def write_labels(labels: list[str], file: Path) -> None:
    """One label a line, as Triton reads them. Raises ServingError if Triton would read other labels."""
    file.write_bytes("".join(f"{label}\n" for label in labels).encode("utf-8"))
    lines = file.read_bytes().decode("utf-8").split("\n")
    if lines != [*labels, ""]:
        raise ServingError(f"{file.name} would have {len(lines) - 1} lines for {len(labels)} labels; mend id2label")
