"""The documentation says what is there: commands, variables, links, messages, and what the server answers."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from build_scripts.core.options import INSTALL_VARIABLES, OPTIONS
from build_scripts.core.paths import OURS, PROJECT

PAGES = sorted([*PROJECT.glob("README*.md"), *(PROJECT / "docs").glob("*.md"), *(PROJECT / "examples").glob("*.md")])
README, CHINESE = PROJECT / "README.md", PROJECT / "README.zh-CN.md"
MAKEFILE = (PROJECT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):.*?## ", MAKEFILE, re.MULTILINE))
VARIABLES = {*INSTALL_VARIABLES, *(option.variable for option in OPTIONS.values())}
ANYTHING = "…"


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(PROJECT)) for path in paths]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```console\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[tuple[str, str]]:
    """(command, what is shown of its output) of every console block; a command may go on after a backslash."""
    found = []
    for block in blocks(page):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            command = lines.pop(0)
            while command.endswith("\\"):
                command = command[:-1] + lines.pop(0)
            found.append((command, "\n".join(lines)))
    return found


def test_the_makefile_was_read():
    assert {"serve", "classify", "test"} <= TARGETS
    assert {"MODEL", "HTTP_PORT", "PYTHON"} <= VARIABLES


def test_every_target_and_variable_that_exists_is_documented():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in sorted(TARGETS) if not re.search(rf"make {name}\b", text)] == []
    assert [name for name in sorted(VARIABLES) if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_target_and_variable_that_is_documented_exists(page):
    text = page.read_text(encoding="utf-8")
    typed = [command for command, _ in commands(page)] + re.findall(r"`([^`\n]+)`", text)
    makes = [line for line in typed if re.search(r"(^|\s)make [a-z]", line)]
    used = {word for line in makes for word in re.findall(r"(?:^|\s)make ([a-z-]+)", line)}
    assert used <= TARGETS, used - TARGETS
    given = {name for line in makes for name in re.findall(r"(?<=\s)([A-Z][A-Z_]{2,})=", line.split("make ", 1)[1])}
    assert given <= VARIABLES, given - VARIABLES


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [link.split("#")[0] for link in links if not link.startswith(("http://", "https://", "#"))]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_the_chinese_readme_has_the_same_commands_outputs_and_links():
    assert commands(CHINESE) == commands(README)
    assert commands(README)

    def links(page: Path) -> list[str]:
        found = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
        return [link for link in found if not link.startswith("README")]

    assert links(CHINESE) == links(README)
    sections = [len(re.findall(r"^#", page.read_text(encoding="utf-8"), re.MULTILINE)) for page in (README, CHINESE)]
    assert sections[0] == sections[1]


def test_the_readme_is_one_screen_and_a_half():
    for page in (README, CHINESE):
        assert len(page.read_text(encoding="utf-8").splitlines()) < 120


def strings_of_the_code() -> list[str]:
    """Every text that the code can print, with ANYTHING for what is filled in."""
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
    """Whether one text of the code has the message's words in their order; words with digits or gaps are filled in."""
    words = [word for word in message.split() if not re.search(rf"[\d={ANYTHING}]", word)]
    return any(re.search(".*".join(map(re.escape, words)), text, re.DOTALL) for text in texts)


def troubleshooting() -> list[tuple[str, str]]:
    """(message, who says it) of the table under the heading Troubleshooting; Triton's own are marked there."""
    text = (PROJECT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = text.split("\n## Troubleshooting\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return [(re.match(r"\| `([^`]+)`", row).group(1), "Triton" if "(Triton)" in row else "ours") for row in rows]


def test_every_message_of_the_troubleshooting_table_can_be_printed():
    texts = strings_of_the_code()
    rows = troubleshooting()
    assert len(rows) > 8
    assert not can_be_printed("a message that … nobody prints", texts)
    ours = [message for message, who in rows if who == "ours"]
    assert len(ours) > len(rows) / 2
    assert [message for message in ours if not can_be_printed(message, texts)] == []


# What a person may run against the server that runs already. The others start, build or remove something.
ASKED = re.compile(r"^(curl -s 127\.0\.0\.1|make (classify|health|status)\b|examples/)")
EXAMPLES = [
    pytest.param(command, shown, id=f"{page.name}:{command[:50]}")
    for page in PAGES
    if page != CHINESE
    for command, shown in commands(page)
    if ASKED.match(command) and shown and "财经" not in shown and "FILE=" not in command
]


@pytest.mark.server
@pytest.mark.parametrize(("command", "shown"), EXAMPLES)
def test_a_console_example_prints_what_is_shown(command, shown, default_server):
    """Numbers may differ as two precisions do; gaps (…) may hold anything."""
    ports = {"8000": default_server.address.http_port, "8001": default_server.address.grpc_port}
    for usual, port in ports.items():
        command = command.replace(f"127.0.0.1:{usual}", f"127.0.0.1:{port}")
    if command.startswith("make "):
        _, target, *assignments = shlex.split(command)
        options = [f"--{name.lower()}={value}" for name, value in (part.split("=", 1) for part in assignments)]
        port = f"--grpc-port={ports['8001']}" if target == "classify" else f"--http-port={ports['8000']}"
        done = subprocess.run(
            [sys.executable, "-m", "build_scripts", target, *options, port], cwd=PROJECT, capture_output=True, text=True
        )
    else:
        done = subprocess.run(["bash", "-c", command], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert matches(shown, done.stdout), done.stdout


NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"


def matches(shown: str, printed: str) -> bool:
    """Whether `printed` reads like `shown`: the same words, integers exactly, fractions to within 0.05."""
    pattern, wanted = "", []
    for piece in re.split(f"({NUMBER}{ANYTHING}?|{ANYTHING})", " ".join(shown.split())):
        number = re.fullmatch(f"({NUMBER}){ANYTHING}?", piece)
        if number:
            wanted.append(number.group(1))
            pattern += f"({NUMBER})" + ".*?" * piece.endswith(ANYTHING)
        else:
            pattern += ".*?" if piece == ANYTHING else re.escape(piece)
    found = re.fullmatch(pattern, " ".join(printed.split()))
    return found is not None and all(
        abs(float(one) - float(other)) <= 0.05 if "." in one else one == other
        for one, other in zip(wanted, found.groups())
    )


def test_matching_can_fail():
    assert matches("0 finance 0.7992", "0\tfinance\t0.8012\n")
    assert matches(
        '{"CLASS_ID":7,"PROBABILITIES":[0.0097…,0.01]…}', '{"CLASS_ID":7,"PROBABILITIES":[0.009,0.012],"x":1}'
    )
    assert not matches("0 finance 0.7992", "1\tfinance\t0.8012\n")
    assert not matches("0 finance 0.7992", "0\tsports\t0.8012\n")
    assert not matches("0 finance 0.7992", "0\tfinance\t0.2\n")
