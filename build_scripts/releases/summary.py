"""Print what was built."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from build_scripts.core.names import shortened
from build_scripts.releases.pipeline import Built


def print_build(built: Built) -> None:
    """A short table after a build; one line if there was nothing to do."""
    manifest = built.manifest
    if not built.changed:
        print(f"up to date: release {manifest['release']} of {manifest['checkpoint']}, nothing to do")
        return
    table = Table(show_header=False, title="built", title_justify="left")
    table.add_row("checkpoint", manifest["checkpoint"])
    table.add_row("architecture", f"{manifest['architecture']}, {manifest['graph']}")
    if score := manifest["score"]:
        table.add_row("score", f"{score}, {'from 0 to 1' if score == 'sigmoid' else 'the logit, without bounds'}")
    else:
        kind = "multi-label" if manifest["multi_label"] else "single-label"
        table.add_row("labels", f"{len(manifest['labels'])}, {kind}: {shortened(manifest['labels'])}")
    more = f", at most {manifest['longest']}" if manifest["longest"] > manifest["max_length"] else ""
    table.add_row("max_length", f"{manifest['max_length']}{more}")
    if found := manifest["documents"]:
        windows = f"{found['pooling']} of up to {found['windows']} windows that share {found['stride']} tokens"
        table.add_row("documents", f"{windows}: up to {found['tokens']} tokens a text")
    if manifest["temperature"]:
        table.add_row("temperature", _temperature(manifest["temperature"]))
    for attempt in manifest["attempts"]:
        table.add_row(f"precision {attempt['precision']}", _attempt(attempt, manifest))
    sizes = {name: (built.release / name).stat().st_size / 1e6 for name in ("model.pt", "tokenizer.json")}
    table.add_row("sizes", ", ".join(f"{name} {size:.1f} MB" for name, size in sizes.items()))
    _, name, repository, *_ = built.release.parents
    table.add_row("release", f"{manifest['release']} of {name.name} in {repository}")
    Console().print(table)


def verdict(attempt: dict, chosen: str) -> str:
    """The outcome of one precision."""
    if attempt["precision"] == chosen:
        return "chosen"
    if not attempt["passed"]:
        return "rejected"
    unseen = attempt["unseen"]
    return "passed" if unseen is None or unseen["within_promise"] else "passed, but not safe enough for auto"


def _temperature(found: dict) -> str:
    shown = "1 (no other lowers the log loss)" if found["value"] == 1.0 else f"{found['value']:g}"
    figures = [
        f"{name} {found[key]['before']:.4f} -> {found[key]['after']:.4f}"
        for name, key in (("expected calibration error", "expected_calibration_error"), ("log loss", "log_loss"))
    ]
    return f"{shown}: {', '.join(figures)} on {found['held_out_texts']} held-out texts"


def _attempt(attempt: dict, manifest: dict) -> str:
    parity, unseen = attempt["parity"], attempt["unseen"]
    bounds = (
        f"; of {unseen['texts']} unseen texts {unseen['changed']} change class id, {unseen['broken']} break a limit "
        f"(95 % bounds: {unseen['changed_at_most']:.1%} and {unseen['broken_at_most']:.1%} of all texts; 99 % of them "
        f"move by at most {unseen['shift_at_most']:.2g})"
        if unseen
        else ""
    )
    shift = f"by at most {parity['max_probability_error']:.2g}"
    if manifest["score"]:
        found = (
            f"scores differ from Hugging Face's {shift}{' of their spread' if manifest['score'] == 'identity' else ''}"
        )
    else:
        found = (
            f"{parity['wrong']} of {parity['texts']} class ids differ from Hugging Face's ({parity['near_ties']} near "
            f"ties aside), probabilities {shift}"
        )
    outcome = verdict(attempt, manifest["precision"])
    return f"{outcome}: {found}; {attempt['milliseconds']:.1f} ms a batch of one or eight texts{bounds}"
