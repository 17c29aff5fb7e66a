"""The documentation: its examples run, its schemas fit, its links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    page
    for page in DOCS.rglob("*.md")
    if "generated" not in page.parts and "course" not in page.parts
)
FENCE = re.compile(r"^```(?P<kind>[a-z{}:-]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)

#: Commands that the pages show and no test can run, and why.
NOT_RUN = {
    "dmesg | vtx check -": "reads this machine's kernel log",
    "vtx check dump.txt --profile ice_lake_sp": "a reader's own file",
    "vtx check vmcs.yaml --format json": "a reader's own file",
    "vtx profiles my_host.yaml": "a reader's own file",
    "vtx compare trace.yaml --profiles skylake_sp,my_host.yaml": "a reader's own file",
    "vtx compare trace.yaml --profiles ice_lake_sp,my_host.yaml": "a reader's own file",
    "vtx profile measure -o my_host.yaml --inherits ice_lake_sp": "needs a host with KVM",
    "vtx step traces/02-ept-violation.yaml": "needs a terminal",
    "vtx step traces/03-cr-msr-io.yaml --break rdmsr": "needs a terminal",
    "vtx step traces/01-cpuid.yaml --handlers my_vmm.py --profile haswell": "needs a terminal",
    "vtx sweep plan.yaml -o results.parquet": "a reader's own file",
    "vtx sweep plan.yaml -o results.parquet --scheduler tcp://10.0.0.1:8786": "needs a cluster",
    "pip install 'vtx[dask]'": "changes the environment",
    "python3 -m venv .venv": "changes the environment",
    ".venv/bin/pip install -e .": "changes the environment",
    ".venv/bin/vtx compare traces/01-cpuid.yaml": "runs below as vtx compare",
}


def blocks(page: Path, kind: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return [m["body"] for m in FENCE.finditer(text) if m["kind"] == kind]


def commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for kind in ("", "console"):
            for body in blocks(page, kind):
                for line in body.splitlines():
                    if line.startswith("$ "):
                        yield page.relative_to(DOCS).as_posix(), line[2:].strip()


ALL = list(dict.fromkeys(commands()))
RUN = [(page, line) for page, line in ALL if line not in NOT_RUN]


def test_what_is_not_run_is_still_there() -> None:
    shown = {line for _, line in ALL}
    assert set(NOT_RUN) <= shown, set(NOT_RUN) - shown


@pytest.mark.parametrize(("page", "line"), RUN)
def test_a_command_that_a_page_shows_runs(page: str, line: str) -> None:
    words = shlex.split(line)
    assert words[0] in ("vtx", "git"), f"{page}: {line}"
    command = [sys.executable, "-m", "vtx", *words[1:]] if words[0] == "vtx" else words
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    # 1 is an answer, too: a broken rule was found.
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout


def prepare(page: Path, folder: Path, names: dict[str, Any]) -> None:
    """Make what a page's program takes as given: files and names of the reader's."""
    for shared in ("traces", "tests"):
        (folder / shared).symlink_to(ROOT / shared)
    if page.name == "check.md":
        dump = ROOT / "tests" / "data" / "dumps" / "kvm_sti_shadow_in_smm.txt"
        names["text"] = dump.read_text(encoding="utf-8")
    elif page.name == "streams.md":
        import numpy as np

        from vtx.streams import write_stream

        write_stream(folder / "ls.vtxs", [np.arange(5000, dtype=np.uint64) << 12 | 1 << 48])
    elif page.name == "tlb.md":
        (folder / "plain.yaml").write_text(blocks(page, "yaml")[0], encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_the_programs_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    prepare(page, tmp_path, names)
    for body in blocks(page, "python"):
        if "results.parquet" in body or "\ndef check(lab)" in body:
            continue  # goes on with a file that the reader has made
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(body, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" in target or "generated/" in target:
            continue  # what is generated is checked when the site is built
        assert (page.parent / target).exists(), f"{page.name}: {target}"


# ---- Schemas ----


def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((DOCS / "schemas" / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def plain(path: Path) -> Any:
    """Return a YAML file as JSON has it: keys are text."""

    def keys(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): keys(part) for key, part in value.items()}
        return [keys(part) for part in value] if isinstance(value, list) else value

    return keys(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", sorted((ROOT / "traces").glob("*.yaml")), ids=lambda p: p.name)
def test_every_trace_fits_its_schema(path: Path) -> None:
    validator("trace").validate(plain(path))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "vtx" / "profiles").glob("*.yaml")), ids=lambda p: p.name
)
def test_every_profile_fits_its_schema(path: Path) -> None:
    validator("profile").validate(plain(path))


def test_the_schema_has_the_keys_that_the_reader_has() -> None:
    from vtx.hypervisor.header import KEYS
    from vtx.profiles import schema

    properties = validator("trace").schema["properties"]
    assert set(properties) == set(KEYS)
    profile = validator("profile").schema["properties"]
    assert set(profile) == set(schema._TOP)
    assert set(profile["shape"]["properties"]) == set(schema._SHAPE)
    prices = {*schema.PRICES, *schema.OPTIONAL_PRICES, "walk"}
    assert set(profile["prices"]["properties"]) == prices
    walk = profile["prices"]["properties"]["walk"]["properties"]
    assert set(walk) == {*schema.WALK_PRICES, *schema.OPTIONAL_WALK_PRICES}


@pytest.mark.parametrize(
    "wrong",
    [
        {"schema": 2, "steps": "hlt"},
        {"schema": 1},
        {"schema": 1, "steps": "hlt", "setps": ""},
        {"schema": 1, "steps": "hlt", "ept": {"pages": "3M"}},
        {"schema": 1, "steps": "hlt", "processors": 17},
        {"schema": 1, "steps": "hlt", "expect": {"outcome": "happy"}},
    ],
)
def test_wrong_traces_do_not_fit(wrong: dict[str, Any]) -> None:
    assert not validator("trace").is_valid(wrong)


# ---- Generated pages ----


def test_the_generated_pages_have_everything(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.path.insert(0, 'docs/tools'); import generate, pathlib;"
            f"generate.write_all(pathlib.Path({os.fspath(tmp_path)!r}))",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    from vtx.commands import COMMANDS
    from vtx.rules.check import CHECKS

    checks = (tmp_path / "checks.md").read_text(encoding="utf-8")
    assert all(f"`{id}`" in checks for id in CHECKS)
    pages = (tmp_path / "commands.md").read_text(encoding="utf-8")
    assert all(f"## vtx {command.name}\n" in pages for command in COMMANDS)
    assert (tmp_path / "walk-4k.svg").read_text(encoding="utf-8").startswith("<svg")
