"""`make classify`: ask a running server for the texts that a user names, and print its answers."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from build_scripts.core.errors import ServingError
from build_scripts.core.names import check_name
from build_scripts.core.options import Address, ClassifyOptions
from build_scripts.core.text_files import read_lines
from build_scripts.serving.client import Text, classify
from build_scripts.serving.start.arguments import Tls


def texts_of(asked: ClassifyOptions) -> Iterable[Text]:
    """The texts to classify. Raises ServingError unless exactly one of TEXT and FILE is given."""
    if asked.text is not None and asked.file is None:
        return [asked.text if asked.pair is None else (asked.text, asked.pair)]
    if asked.file is not None and asked.text is None and asked.pair is None:
        return texts_of_lines(read_lines("FILE", asked.file))
    raise ServingError('expected either TEXT="…", with or without PAIR="…", or FILE=path (- for standard input)')


def texts_of_lines(lines: Iterable[str]) -> Iterator[Text]:
    """A tab separates the two texts of a pair. Warns once: a tab inside a single text would change its answer."""
    warned = False
    for number, line in enumerate(lines, 1):
        first, tab, second = line.partition("\t")
        if tab and not warned:
            print(f"line {number} has a tab: such lines are pairs, TEXT and PAIR", file=sys.stderr)
            warned = True
        yield (first, second) if tab else line


def print_answers(asked: ClassifyOptions, address: Address, tls: Tls) -> None:
    """One line per text: class id, label and probability (or score), separated by tabs."""
    unit = "line" if asked.file else "text"
    answers = classify(texts_of(asked), address.grpc_url, tls=tls, name=check_name(asked.name), unit=unit)
    for answer in tqdm(answers, unit="text", disable=None if asked.file else True, leave=False):
        print(f"{answer.class_id}\t{answer.label}\t{answer.probability:.4f}", flush=True)
