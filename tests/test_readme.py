"""What the README shows is what happens: its program, its refused entry, its picture, its links.

Its two commands are run word for word by .ci/run.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found
    return found.group(1)


@pytest.fixture(scope="module")
def program_output():
    refused = "\n".join(re.findall(r"^>>> (.*)$", block("pycon"), re.MULTILINE))
    launch = block("python").split("    while", 1)[0]
    program = block("python") + launch + "".join(f"    {line}\n" for line in refused.splitlines())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_program_compares_three_cpus(program_output):
    for profile in ("haswell", "skylake_sp", "ice_lake_sp"):
        assert profile in program_output


def test_a_refused_entry_says_what_the_readme_says(program_output):
    said = [line for line in block("pycon").splitlines() if not line.startswith(">>>")]
    assert said
    assert program_output.rstrip().splitlines()[-1] == " ".join(said)


def test_the_picture_is_what_compare_prints():
    command = block("console").splitlines()[0]
    arguments = command.split(".venv/bin/vtx ", 1)[1].split()
    done = subprocess.run(
        [sys.executable, "-m", "vtx", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    printed = [line.rstrip() for line in done.stdout.splitlines()]
    shown = [line for line in block("text").splitlines() if line]
    assert len(shown) > 8
    assert [line for line in shown if line not in printed] == []


def test_the_two_commands_set_up_and_test():
    first, second = block("console").splitlines()
    assert first.startswith("$ python3 -m venv .venv && ")
    assert " vtx compare traces/" in first.replace(".venv/bin/vtx", " vtx").replace("  ", " ")
    assert second.endswith(".venv/bin/python -m pytest -n auto")
    trace = ROOT / first.rsplit(" ", 1)[1]
    assert trace.is_file()


@pytest.mark.parametrize("page", sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]))
def test_links_between_pages_resolve(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("generated/"):  # made, and checked, when the site is built
            assert (page.parent / target).exists(), target
