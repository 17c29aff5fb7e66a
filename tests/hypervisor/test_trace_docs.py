"""What docs/traces.md shows is true: its example runs, its keys are those that are read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vtx.errors import InputError
from vtx.hypervisor.expectations import OUTCOMES
from vtx.hypervisor.header import KEYS
from vtx.hypervisor.listing import MAXIMUM_STEPS
from vtx.hypervisor.replay import replay
from vtx.hypervisor.trace import parse_trace

TEXT = (Path(__file__).parents[2] / "docs" / "traces.md").read_text()
EXAMPLE, HANDLERS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


def keys_of(section: str) -> list[str]:
    """Keys in the first column of the section's tables."""
    body = TEXT.split(f"\n{section}\n", 1)[1].split("\n## ", 1)[0].split("\n### ", 1)[0]
    cells = [line.split("|")[1] for line in body.split("\n") if line.startswith("| `")]
    return [key for cell in cells for key in re.findall(r"`(\w+)`", cell)]


def test_the_example_runs_and_holds():
    run = replay(parse_trace(EXAMPLE))
    assert run.holds, run.results
    assert run.console == "A"


def test_the_error_it_shows_is_what_one_gets():
    shown = re.search(r"```\n(greeting.*?)\n```", TEXT)
    assert shown is not None
    wrong = EXAMPLE.replace("  cpuid leaf", "  cpuidd leaf")
    with pytest.raises(InputError) as caught:
        parse_trace(wrong, "greeting.yaml")
    assert str(caught.value) == shown[1]


def test_the_handler_it_shows_is_one():
    trace = parse_trace(f"schema: 1\n{HANDLERS}steps: nop\n")
    assert [step.name for step in trace.header.handlers[32]] == ["wrmsr", "wrmsr", "iret"]


def test_it_lists_every_key():
    assert sorted(keys_of("## Keys")) == sorted(KEYS)
    assert sorted(set(keys_of("### `expect`")) & set(OUTCOMES)) == sorted(OUTCOMES)
    assert f"{MAXIMUM_STEPS:,} steps" in TEXT


@pytest.mark.parametrize("section", ["guest", "ept", "exits", "stream"])
def test_it_lists_every_key_of_a_mapping(section):
    with pytest.raises(InputError) as caught:
        parse_trace(f"schema: 1\n{section}: {{zzz: 1}}\nsteps: nop\n")
    assert f"key of {section}" in str(caught.value)
    for key in keys_of(f"### `{section}`"):
        with pytest.raises(InputError) as caught:
            parse_trace(f"schema: 1\n{section}: {{{key}: {{a: [[]]}}}}\nsteps: nop\n")
        assert f"unknown key of {section} '{key}'" not in str(caught.value)
