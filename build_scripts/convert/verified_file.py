"""Write a checkpoint's model.pt after comparing its answers with Hugging Face's."""

from __future__ import annotations

from pathlib import Path

from build_scripts.convert.checkpoint import Checkpoint, Text
from build_scripts.convert.export import graphs, model_file
from build_scripts.convert.gate_texts import GateTexts, interleaved
from build_scripts.convert.graph_choice import choose_graph
from build_scripts.convert.parity import reference
from build_scripts.convert.precision import choose_precision

# Ordinary texts that join the hard ones when a graph is chosen.
PLAIN_NEIGHBOURS = 8


def write_verified(checkpoint: Checkpoint, texts: GateTexts, asked: str, directory: Path) -> dict:
    """Write directory/model.pt in the precision that was asked for; returns the manifest's facts about it.

    Raises ServingError if no file answers like Hugging Face.
    """
    graphs(checkpoint)  # fail early: Hugging Face's answers take minutes
    mixed = interleaved(texts.ordinary, texts.hard)
    # fp32 changes other texts too little to need a bound, and so no held-out texts.
    held_out: list[Text] = [] if asked == "fp32" else texts.held_out
    print(f"asking Hugging Face for {len(mixed) + len(held_out)} answers", flush=True)
    expected = reference(checkpoint, mixed)
    graph = choose_graph(checkpoint, expected.of([*texts.hard, *texts.ordinary[:PLAIN_NEIGHBOURS]]), directory)
    print(f"{graph}: exporting in precision {asked}, and comparing", flush=True)
    unseen = reference(checkpoint, held_out) if held_out else None
    choice = choose_precision(checkpoint, graph, asked, expected, unseen, directory)
    model_file(directory, choice.chosen.precision).rename(directory / "model.pt")
    for rejected in directory.glob("model.*.pt"):
        rejected.unlink()
    return {"graph": str(graph), **choice.as_dict()}
