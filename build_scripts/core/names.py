"""What models are called: the three of each classifier, release candidates, cached ensembles."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from build_scripts.core.errors import ServingError

# The models of the default classifier. Those of another are called by its name: see `Models`.
ENSEMBLE, TOKENIZER, CLASSIFIER = "text_classifier", "tokenizer", "classifier"
# How the names of ensembles begin whose answers are kept.
CACHED = "cached"
# Labels and ids that a message lists; a checkpoint may have 20,000.
SHOWN = 10
RELEASE_ID = "[0-9a-f]{12}"
# Not what a release's candidates are called: a model's name and the release's id.
NAME = re.compile(
    rf"(?!tokenizer|classifier|{CACHED}|text_classifier.)(?!(?:.*_)?{RELEASE_ID}$)[A-Za-z][A-Za-z0-9_]{{0,63}}"
)


@dataclass(frozen=True)
class Models:
    """The three models of one classifier, whose name is the ensemble's.

    The kind comes first, so that no two classifiers' models have one name, and all of a kind begin alike.
    """

    ensemble: str = ENSEMBLE

    @property
    def tokenizer(self) -> str:
        return TOKENIZER if self.ensemble == ENSEMBLE else f"{TOKENIZER}_{self.ensemble}"

    @property
    def classifier(self) -> str:
        return CLASSIFIER if self.ensemble == ENSEMBLE else f"{CLASSIFIER}_{self.ensemble}"

    @property
    def all(self) -> tuple[str, str, str]:
        return self.tokenizer, self.classifier, self.ensemble


def is_model_or_candidate(model: str, name: str) -> bool:
    """Whether a model has the name, or is what a release loads beside the one that has it."""
    return re.fullmatch(f"{name}(_{RELEASE_ID})?", model) is not None


def is_cached(model: str, name: str) -> bool:
    """Whether a model keeps the answers of the classifier of that name."""
    return re.fullmatch(rf"{CACHED}_{name}_{RELEASE_ID}_\d+", model) is not None


def check_name(name: str) -> str:
    """The name of a classifier. Raises ServingError if it can be none."""
    if NAME.fullmatch(name):
        return name
    raise ServingError(
        f"NAME={name} cannot be a classifier's name; expected a letter, then letters, digits and underscores, at most "
        f"64, and nothing that begins with {TOKENIZER}, {CLASSIFIER}, {CACHED} or {ENSEMBLE}, or ends as a "
        "release's id does"
    )


def shortened(names: Iterable[object]) -> str:
    """A list for people: the first SHOWN names, and the number of the others."""
    texts = [str(name) for name in names]
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more
