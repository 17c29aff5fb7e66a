"""The commands as users run them: results on standard output, in every format."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vtx
from vtx.profiles import names


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "40"}
    return subprocess.run(
        [sys.executable, "-m", "vtx", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        **options,
    )


def stdout(*arguments: str) -> str:
    done = run(*arguments)
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def test_version() -> None:
    assert stdout("--version") == f"vtx {vtx.__version__}\n"


def test_help_names_every_command_and_shows_its_docstring() -> None:
    text = stdout("--help")
    for command in ("replay", "compare", "profiles", "explain"):
        assert command in text
        assert "--format {table,json,csv" in stdout(command, "--help")
    assert "perf kvm stat" in stdout("replay", "--help")


def test_help_imports_nothing_that_is_slow() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "vtx", "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    imported = set(re.findall(r"\|\s+([\w.]+)$", done.stderr, re.MULTILINE))
    assert "vtx.cli" in imported
    assert not imported & {"numpy", "yaml", "rich", "cffi", "vtx._core", "vtx.facts.fields"}


def test_profiles_as_a_table_is_plain_and_as_wide_as_it_needs() -> None:
    text = stdout("profiles")
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[2:21]] == list(names())
    assert "\x1b" not in text
    assert "~382" in text
    assert lines[20].count("no data") == 6


def test_profiles_as_json() -> None:
    data = json.loads(stdout("profiles", "--format", "json"))
    assert data["schema"] == "vtx.profiles/1"
    assert [entry["id"] for entry in data["profiles"]] == list(names())
    gracemont = data["profiles"][-1]
    assert {price["cycles"] for price in gracemont["prices"].values()} == {None}
    assert not data["profiles"][0]["ept"]


def test_profiles_as_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(stdout("profiles", "--format", "csv"))))
    by_id = {row["id"]: row for row in rows}
    assert by_id["skylake_sp"]["round_trip_cycles"] == "636"
    assert by_id["skylake_sp"]["entry_status"] == "estimated"
    assert by_id["gracemont_n305"]["round_trip_cycles"] == ""


def test_one_profile_in_every_format() -> None:
    text = stdout("profiles", "skylake_sp")
    assert "0x00da040000000004" in text
    assert "vmlatency" in text
    data = json.loads(stdout("profiles", "skylake_sp", "--format", "json"))
    assert data["profile"]["prices"]["exit"]["status"] == "estimated"
    rows = list(csv.DictReader(io.StringIO(stdout("profiles", "skylake_sp", "--format", "csv"))))
    values = {row["name"]: row for row in rows}
    assert values["price.exit"]["value"] == "254"
    assert values["IA32_VMX_VMFUNC"]["value"] == "0x1"
    assert all(row["source"] for row in rows)
    assert values["L2 unified TLB 4K+2M 12-way"]["status"] == "estimated"


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("schema: 1\ninherits: haswell\nname: Mine\n")
    assert "Mine" in stdout("profiles", str(path))


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (["GUEST_RIP"], "VMCS field"),
        (["0x681e"], "guest_rip"),
        (["error", "7"], "VM entry with invalid control fields"),
        (["EPT", "violation"], "EPT violation"),
        (["enable_ept"], "enable EPT"),
        (["IA32_VMX_BASIC"], "revision"),
    ],
)
def test_explain(query: list[str], words: str) -> None:
    assert words.lower() in stdout("explain", *query).lower()


def test_explain_several_names() -> None:
    text = stdout("explain", "GUEST_RIP", "GUEST_RSP")
    assert "guest_rip" in text.lower()
    assert "guest_rsp" in text.lower()


def test_explain_decodes_a_qualification() -> None:
    data = json.loads(
        stdout("explain", "EPT_VIOLATION", "--qualification", "0x182", "--format", "json")
    )
    assert data["schema"] == "vtx.explain/1"
    (article,) = data["articles"]
    bits = {row["name"]: row["value"] for table in article["tables"] for row in table["rows"]}
    assert (bits["read"], bits["write"], bits["gla_valid"]) == (0, 1, 1)
    rows = csv.DictReader(
        io.StringIO(stdout("explain", "48", "--qualification", "386", "--format", "csv"))
    )
    assert any(row["label"] == "bits 1 write" and row["value"] == "1" for row in rows)
