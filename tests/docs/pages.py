"""The pages of the documentation, and the commands in them."""

from __future__ import annotations

import re
from pathlib import Path

from build_scripts.core.paths import PROJECT

PAGES = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md"), *(PROJECT / "examples").glob("*.md")])
# Left out of shown output, or filled in when a message is printed.
ANYTHING = "…"
README, CHINESE = PROJECT / "README.md", PROJECT / "README.zh-CN.md"


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(PROJECT)) for path in paths]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[tuple[str, str]]:
    """(command, shown output) of every console block. A backslash continues a command on the next line."""
    found = []
    for block in blocks(page, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            command = lines.pop(0)
            while command.endswith("\\"):
                command = command[:-1] + lines.pop(0)
            found.append((command, "\n".join(lines)))
    return found


def typed(page: Path) -> list[str]:
    """Everything that a reader may type: console blocks, shell blocks, and code within sentences."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [command for command, _ in commands(page)] + lines + re.findall(r"`([^`\n]+)`", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
