"""The fp32 file of the graph that a build would choose."""

from __future__ import annotations

from pathlib import Path

from build_scripts.convert.checkpoint import Checkpoint
from build_scripts.convert.export import Graph, model_file
from build_scripts.convert.gate_texts import hard_texts
from build_scripts.convert.graph_choice import choose_graph
from build_scripts.convert.parity import reference

PLAIN = ["one", "two words", "A rather longer text than the others, of many words.", "Plain words, and 中文 too."]


def fp32_file(checkpoint: Checkpoint, directory: Path) -> tuple[Graph, Path]:
    """The graph, and its file in `directory`. Raises ServingError if no graph answers like Hugging Face."""
    graph = choose_graph(checkpoint, reference(checkpoint, [*hard_texts(checkpoint), *PLAIN]), directory)
    return graph, model_file(directory, "fp32")
