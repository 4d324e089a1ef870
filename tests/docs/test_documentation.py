"""The documentation names only commands, variables, links and messages that exist, and all of them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from build_scripts.__main__ import COMMANDS
from build_scripts.core.options import INSTALL_VARIABLES, OPTIONS
from build_scripts.core.paths import OURS, PROJECT
from tests.docs.pages import ANYTHING, CHINESE, PAGES, README, anchors, commands, names, typed
from tests.soak.__main__ import soak

MAKEFILE = (PROJECT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):.*?## ", MAKEFILE, re.MULTILINE))
VARIABLES = {*INSTALL_VARIABLES, *(option.variable for option in OPTIONS.values())}


def test_the_makefile_was_read():
    assert {"serve", "classify", "test"} <= TARGETS
    assert {"MODEL", "HTTP_PORT", "PYTHON"} <= VARIABLES


def test_every_target_and_variable_is_documented():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != "CHANGELOG.md")
    assert [name for name in sorted(TARGETS) if not re.search(rf"make {name}\b", text)] == []
    assert [name for name in sorted(VARIABLES) if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_documented_target_takes_its_variables(page):
    for line in typed(page):
        for target, rest in re.findall(r"(?:^|\s|\()make (?:-s )?([a-z-]+)((?: (?!make )[^;&|#]*)?)", line):
            assert target in TARGETS, line
            given = set(re.findall(r"(?<=\s)([A-Z][A-Z_]+)=", rest))
            assert given <= taken_by(target), f"{line}: {target} does not take {given - taken_by(target)}"


def taken_by(target: str) -> set[str]:
    """The variables that a target of make takes."""
    command = soak if target == "soak" else COMMANDS.get(target)
    return {*INSTALL_VARIABLES, *(OPTIONS[field.name].variable for field in (command.fields if command else []))}


def test_a_target_takes_its_own_variables_only():
    assert {"TEXT", "NAME", "GRPC_PORT", "PYTHON"} <= taken_by("classify")
    assert not {"CACHE", "P99_MS"} & taken_by("classify")
    assert "DURATION" in taken_by("soak")


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [link.partition("#") for link in links if not link.startswith(("http://", "https://"))]
    targets = [(page.parent / path if path else page, anchor) for path, _, anchor in local]
    assert [str(path) for path, _ in targets if not path.exists()] == []
    assert [f"{path}#{anchor}" for path, anchor in targets if anchor and anchor not in anchors(path)] == []


def test_the_chinese_readme_has_the_same_commands_outputs_and_links():
    assert commands(CHINESE) == commands(README)
    assert commands(README)

    def links(page: Path) -> list[str]:
        found = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
        return [link for link in found if not link.startswith("README")]

    assert links(CHINESE) == links(README)
    sections = [len(re.findall(r"^#", page.read_text(encoding="utf-8"), re.MULTILINE)) for page in (README, CHINESE)]
    assert sections[0] == sections[1]


def test_the_readme_has_fewer_than_120_lines():
    for page in (README, CHINESE):
        assert len(page.read_text(encoding="utf-8").splitlines()) < 120


def strings_of_the_code() -> list[str]:
    """Every string of the code that could be printed, with ANYTHING in place of values."""
    found = []
    for file in [*OURS.rglob("*.py"), *(PROJECT / "model_repository").rglob("*.py"), PROJECT / "Makefile"]:
        if file.name == "Makefile":
            found += file.read_text(encoding="utf-8").splitlines()
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(part.value if isinstance(part, ast.Constant) else ANYTHING for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def can_be_printed(message: str, texts: list[str]) -> bool:
    """Whether a string of the code has the message's words in order. Words with digits or gaps count as values."""
    words = [word for word in message.split() if not re.search(rf"[\d={ANYTHING}]", word)]
    return any(re.search(".*".join(map(re.escape, words)), text, re.DOTALL) for text in texts)


def troubleshooting() -> list[tuple[str, str]]:
    """(message, origin) of the table under the heading Troubleshooting, which marks Triton's messages."""
    text = (PROJECT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = text.split("\n## Troubleshooting\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return [(re.match(r"\| `([^`]+)`", row).group(1), "Triton" if "(Triton)" in row else "ours") for row in rows]


def test_every_message_of_the_troubleshooting_table_can_be_printed():
    texts = strings_of_the_code()
    rows = troubleshooting()
    assert len(rows) > 8
    assert not can_be_printed("a message that … nobody prints", texts)
    ours = [message for message, origin in rows if origin == "ours"]
    assert len(ours) > len(rows) / 2
    assert [message for message in ours if not can_be_printed(message, texts)] == []
