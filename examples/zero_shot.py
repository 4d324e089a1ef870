"""Zero-shot classification with any labels. The server needs an entailment checkpoint, such as one trained on MNLI.

python examples/zero_shot.py "The keeper saved a penalty." sports politics cooking
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Callable

URL = os.environ.get("SERVER", "http://127.0.0.1:8000") + "/v2/models/text_classifier/infer"


def ask(pairs: list[tuple[str, str]], best: int = 0) -> list:
    """PROBABILITIES, pair after pair. best: the number of classes to get instead, as "probability:class id:label"."""
    inputs = [
        {"name": name, "shape": [len(pairs), 1], "datatype": "BYTES", "data": list(texts)}
        for name, texts in zip(("TEXT", "TEXT_PAIR"), zip(*pairs))
    ]
    outputs = [{"name": "PROBABILITIES", "parameters": {"classification": best} if best else {}}]
    body = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    with urllib.request.urlopen(urllib.request.Request(URL, body)) as answer:
        return json.load(answer)["outputs"][0]["data"]


def zero_shot(
    text: str, labels: list[str], ask: Callable = ask, template: str = "This example is {}."
) -> dict[str, float]:
    """label -> probability that it fits, best first. At most 64 labels. Several labels may fit.

    Equals transformers' pipeline with multi_label=True: entailment against contradiction, neutral left out.
    """
    pairs = [(text, template.format(label)) for label in labels]
    named = sorted((int(index), label.lower()) for _, index, label in (one.split(":", 2) for one in ask(pairs[:1], 99)))
    entails = next(index for index, label in named if label.startswith("entail"))
    contradicts = len(named) - 1 if entails == 0 else 0
    rows = ask(pairs)
    fits = {}
    for index, label in enumerate(labels):
        row = rows[index * len(named) : (index + 1) * len(named)]
        fits[label] = row[entails] / (row[entails] + row[contradicts])
    return dict(sorted(fits.items(), key=lambda one: -one[1]))


if __name__ == "__main__":
    for label, probability in zero_shot(sys.argv[1], sys.argv[2:]).items():
        print(f"{probability:.4f}\t{label}")
