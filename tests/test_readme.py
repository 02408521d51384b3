"""Every README of the tree: the tools accept its commands, its links lead somewhere, and the first is short."""

from __future__ import annotations

import functools
import importlib.util
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("registry", "model_zoo", "pckd", "tools", "tests")
READMES = [ROOT / "README.md", *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("README.md"))]
TOOLS = ("train_net", "benchmark", "benchmark_speed", "profile_net", "plot", "predict", "export", "transfer")
LONGEST = 200
"""Lines that a newcomer reads."""
CHEAP = ("--list", "--help")
"""Commands with these are run."""
HOW_LONG = re.compile(r"second|minute|hour|slow|GPU", re.IGNORECASE)
OF_OTHERS = {
    *("--backend-store-uri", "--logdir"),
    *("--max-restarts", "--nproc-per-node", "--nnodes", "--node-rank", "--master-addr", "--master-port"),
}
"""Options that are not the tools'."""

# Bash itself expands variables, braces and loops. It finds no program: python and torchrun say how they are called.
STUBS = r"""
PATH=/nowhere
python() { printf '%s\037' "$@"; printf '\036'; }
torchrun() { while [[ $1 == --* ]]; do shift; done; python "$@"; }
"""

each = pytest.mark.parametrize("readme", READMES, ids=[str(path.relative_to(ROOT)) for path in READMES])


def blocks(readme: Path) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", readme.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(block: str, folder: Path) -> list[list[str]]:
    """Each call of python in a block: its arguments, as bash would pass them."""
    # Restricted, bash writes no file and leaves the folder for no other.
    shell = ["bash", "--norc", "--noprofile", "-c", f"{STUBS}set -r\n{block}"]
    done = subprocess.run(shell, cwd=folder, capture_output=True, text=True, timeout=20, check=False)
    return [call.split("\037")[:-1] for call in done.stdout.split("\036")[:-1]]


@functools.cache
def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"readme_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_or_parse(name: str, arguments: list[str]) -> None:
    """Run what only prints; the others are held to the tool's own parser."""
    tool = load_tool(name)
    try:
        if any(argument in CHEAP for argument in arguments):
            assert tool.main(arguments) == 0
        else:
            tool.make_parser().parse_args(arguments)
    except SystemExit as error:
        if error.code:
            pytest.fail(f"{name}.py refuses {shlex.join(arguments)}")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@each
def test_commands_are_accepted(readme: Path, tmp_path: Path) -> None:
    for block in blocks(readme):
        found = commands(block, tmp_path)
        # No line was lost on the way; a loop has more calls than lines.
        assert len(found) >= len(re.findall(r"^\s*(?:python|torchrun) ", block, re.MULTILINE)), block
        for first, *rest in found:
            if match := re.fullmatch(r"tools/(\w+)\.py", first):
                run_or_parse(match[1], rest)
            else:
                assert [first, *rest[:1]] == ["-m", "pytest"]
                assert [path for path in rest if "/" in path and not (ROOT / path.partition("::")[0]).exists()] == []


@each
def test_slow_commands_say_so(readme: Path) -> None:
    """Each in its own comment, or a whole block in the one that it begins with."""
    for block in blocks(readme):
        lines = block.replace("\\\n", " ").splitlines()
        if lines[0].startswith("#") and HOW_LONG.search(lines[0]):
            continue
        calls = [line for line in lines if re.match(r"\s*(?:python|torchrun) ", line)]
        silent = [line for line in calls if not HOW_LONG.search(line.partition(" # ")[2])]
        assert [line for line in silent if not any(word in line.split() for word in CHEAP)] == []


@each
def test_options_in_the_text_exist(readme: Path) -> None:
    known = {name for tool in TOOLS for name in load_tool(tool).make_parser()._option_string_actions}
    named = re.findall(r"(?<![\w-])--[a-z][a-z-]+", readme.read_text(encoding="utf-8"))
    assert set(named) - known - OF_OTHERS == set()


@each
def test_links_lead_somewhere(readme: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", readme.read_text(encoding="utf-8")):
        file, _, heading = link.partition("#")
        if "://" in link:
            continue
        target = readme.parent / file if file else readme
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
        assert heading in ["", *(re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings)], link


def test_the_first_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < LONGEST


def test_bash_expands_what_a_block_says(tmp_path: Path) -> None:
    block = "A='--x 1'\nfor s in 0 1; do python tools/a.py $A {b,c} \\\n  'd e' --seed $s   # why\ndone\n"
    assert commands(block, tmp_path) == [["tools/a.py", "--x", "1", "b", "c", "d e", "--seed", s] for s in "01"]
    lines = "git clone <this repository> there && cd there\ntouch file\npython -m pytest >file\n"
    assert commands(lines, tmp_path) == []
    assert list(tmp_path.iterdir()) == []
