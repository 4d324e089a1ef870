"""Where things lie in the project, each path once."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
BUILD = PROJECT / "build"
OURS = PROJECT / "build_scripts"
DATA = OURS / "data"
# The texts that a precision is compared on, unless the user names a file.
CALIBRATION = DATA / "calibration.txt"
# Sentences for generated texts that no gate sees; they bound what an unseen text may lose.
UNSEEN = DATA / "unseen.txt"
CORPUS = DATA / "perf_corpus.txt"
SOURCE_REPOSITORY = PROJECT / "model_repository"
PACKAGE = BUILD / "package"
