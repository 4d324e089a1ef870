"""Choose the graph of a checkpoint: the fastest whose answers do not depend on padding, neighbours or special tokens.

Each graph is tried as the server will run it, on texts that are known to make traced models fail.
"""

from __future__ import annotations

from pathlib import Path

from build_scripts.convert.checkpoint import Checkpoint
from build_scripts.convert.error_guard import first_line
from build_scripts.convert.export import Graph, export, graphs, model_file
from build_scripts.convert.parity import PROBABILITY_LIMITS, Reference, measure, moved, passes
from build_scripts.core.errors import ServingError


def choose_graph(checkpoint: Checkpoint, expected: Reference, directory: Path) -> Graph:
    """The first graph that answers like the reference. Its fp32 file is left in `directory`.

    Raises ServingError with the reasons if no graph does.
    """
    file = model_file(directory, "fp32")
    failed: dict[str, list[Graph]] = {}  # most graphs fail for the same reason
    candidates = graphs(checkpoint)
    for graph in candidates:
        try:
            export(checkpoint, graph, "fp32", file)
            found = measure(file, checkpoint, expected)
            if passes(found, "fp32"):
                return graph
            reason = moved(checkpoint, found)
        except OSError:  # such as a full disk: not the graph's fault
            raise
        except Exception as error:  # tracing, saving and model code raise errors of any type
            reason = f"{type(error).__name__}: {first_line(error)}"[:200]
        failed.setdefault(reason, []).append(graph)
    file.unlink(missing_ok=True)
    reasons = [
        f"{'every graph' if len(of) == len(candidates) else ' and '.join(map(str, of))}: {reason}"
        for reason, of in failed.items()
    ]
    raise ServingError(
        f"{checkpoint.model.config.model_type}: no TorchScript file answers like Hugging Face, alone and in a batch "
        f"(the limit is {PROBABILITY_LIMITS['fp32']:g}): {'; '.join(reasons)}; this architecture cannot be served"
    )
