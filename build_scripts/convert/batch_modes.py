"""Find the way in which a traced checkpoint answers alike alone and in company, by doing what the server will do.

Padding, neighbours and literal special tokens in a text change the answers of some architectures, and end the forward
of others with an error. Each way of running the trace is tried on such texts before the calibration decides.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from build_scripts.convert.architectures import bert_parts
from build_scripts.convert.checkpoint import Checkpoint
from build_scripts.convert.error_guard import first_line
from build_scripts.convert.export import export
from build_scripts.convert.parity import HOSTILE_TEXTS, measure, pairs, reference, special_token_texts
from build_scripts.convert.precision import MAX_PROBABILITY_ERROR, passes
from build_scripts.convert.traced import WAYS
from build_scripts.core.errors import ServingError

TRIAL_TEXTS = ["one", "two words", "A rather longer text than the others, of many words.", "Plain words, and 中文 too."]


def settle(checkpoint: Checkpoint, directory: Path) -> Checkpoint:
    """The checkpoint with the fastest way that answers like Hugging Face; unchanged if it gets the packed graph.

    directory: for files that are removed again. Raises ServingError with every way's reason if none will do.
    """
    if bert_parts(checkpoint.model) is not None:
        return checkpoint
    texts = [*special_token_texts(checkpoint.tokenizer), *pairs(checkpoint), *HOSTILE_TEXTS, *TRIAL_TEXTS]
    expected = reference(checkpoint, texts)
    reasons: dict[str, list[str]] = {}  # most ways fail for the same one
    file = directory / "trial.pt"
    for way in WAYS:
        candidate = replace(checkpoint, way=way)
        try:
            export(candidate, "fp32", file)
            found = measure(file, candidate, expected)
        except Exception as error:  # tracing, saving and running model code raise whatever they like
            reasons.setdefault(f"{type(error).__name__}: {first_line(error)}"[:200], []).append(str(way))
            continue
        finally:
            file.unlink(missing_ok=True)
        if passes(found, "fp32"):
            return candidate
        reasons.setdefault(f"a probability moves by {found.max_probability_error:.2g}", []).append(str(way))
    why = "; ".join(
        f"{' and '.join(ways) if len(ways) < len(WAYS) else 'every way'}: {r}" for r, ways in reasons.items()
    )
    raise ServingError(
        f"{checkpoint.model.config.model_type}: no TorchScript file answers like Hugging Face, alone and in company "
        f"(at most {MAX_PROBABILITY_ERROR['fp32']:g} is accepted): {why}; this architecture cannot be served"
    )
