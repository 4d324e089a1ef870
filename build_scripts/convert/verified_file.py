"""Write model.pt of a checkpoint, compared with Hugging Face before anything is served."""

from __future__ import annotations

from pathlib import Path

from build_scripts.convert.checkpoint import Checkpoint
from build_scripts.convert.export import model_file
from build_scripts.convert.gate_texts import hard_texts, interleaved
from build_scripts.convert.graph_choice import choose_graph
from build_scripts.convert.parity import reference
from build_scripts.convert.precision import choose_precision

# Texts without anything special that join the hard ones when a graph is chosen.
PLAIN_NEIGHBOURS = 8


def write_verified(checkpoint: Checkpoint, texts: list[str], asked: str, directory: Path) -> dict:
    """Write directory/model.pt in the precision that was asked for; returns the manifest's facts about it.

    Raises ServingError if no file answers like Hugging Face.
    """
    hard = hard_texts(checkpoint)
    mixed = interleaved(texts, hard)
    print(f"asking Hugging Face for {len(mixed)} answers", flush=True)
    expected = reference(checkpoint, mixed)
    graph = choose_graph(checkpoint, expected.of([*hard, *texts[:PLAIN_NEIGHBOURS]]), directory)
    print(f"{graph}: exporting in precision {asked}, and comparing", flush=True)
    choice = choose_precision(checkpoint, graph, asked, expected, directory)
    model_file(directory, choice.chosen.precision).rename(directory / "model.pt")
    for rejected in directory.glob("model.*.pt"):
        rejected.unlink()
    return {"graph": str(graph), **choice.as_dict()}
