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
    kind = "multi-label" if manifest["multi_label"] else "single-label"
    table.add_row("labels", f"{len(manifest['labels'])}, {kind}: {shortened(manifest['labels'])}")
    table.add_row("max_length", str(manifest["max_length"]))
    for attempt in manifest["attempts"]:
        table.add_row(f"precision {attempt['precision']}", _attempt(attempt, manifest["precision"]))
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


def _attempt(attempt: dict, chosen: str) -> str:
    parity, unseen = attempt["parity"], attempt["unseen"]
    bounds = (
        f"; of {unseen['texts']} unseen texts {unseen['changed']} change class id, {unseen['broken']} break a limit "
        f"(95 % bounds: {unseen['changed_at_most']:.1%} and {unseen['broken_at_most']:.1%} of all texts; 99 % of them "
        f"move by at most {unseen['shift_at_most']:.2g})"
        if unseen
        else ""
    )
    return (
        f"{verdict(attempt, chosen)}: {parity['wrong']} of {parity['texts']} class ids differ from Hugging Face's "
        f"({parity['near_ties']} near ties aside), probabilities by at most "
        f"{parity['max_probability_error']:.2g}; {attempt['milliseconds']:.1f} ms a batch of one or eight texts{bounds}"
    )
