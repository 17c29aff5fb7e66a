"""``vtx verify``: output, exit codes, bad input, interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.verify.corpora import cases, first, header, path, write
from vtx.cli import main
from vtx.hypervisor.verify import verification


def _some(tmp_path: Path, form: str = "root", count: int = 3, name: str = "some.jsonl") -> Path:
    return write(tmp_path / name, form, cases(form)[:count])


def test_one_corpus_gives_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _some(tmp_path)
    assert main(["verify", str(file), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema": "vtx.verify/1",
        "corpus": str(file),
        "cases": 3,
        "agree": 3,
        "differ": [],
        "deviations": {"sdm_side": 0, "other": []},
        "skipped": {},
    }


def test_several_corpora_give_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(_some(tmp_path)), str(_some(tmp_path, "walk", 2, "walks"))]
    assert main(["verify", *files, "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "vtx.verify/1"
    assert [(one["corpus"], one["cases"]) for one in data["results"]] == [
        (files[0], 3),
        (files[1], 2),
    ]


def test_a_difference_is_shown_and_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = first("entry", lambda case: case["verdict"].get("error") == 7)
    case["verdict"]["error"] = 8
    file = str(write(tmp_path / "entries", "entry", [case]))
    assert main(["verify", file]) == 1
    out = capsys.readouterr().out
    assert f"case {case['id']}" in out
    assert "error=0x7" in out
    assert "error=0x8" in out
    assert main(["verify", file, "--format", "json"]) == 1
    differ = json.loads(capsys.readouterr().out)["differ"]
    assert [set(one) for one in differ] == [{"id", "ours", "theirs"}]
    assert main(["verify", file, "--format", "csv"]) == 1
    assert "differ,error,0x7,0x8" in capsys.readouterr().out


def test_code_that_is_not_in_the_table_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = first("insn", lambda case: case["insn"] == "nop")
    case["code"] = "0f58c1"  # ADDPS
    file = str(write(tmp_path / "insn", "insn", [case]))
    assert main(["verify", file, "--format", "json"]) == 0
    (ids,) = json.loads(capsys.readouterr().out)["skipped"].values()
    assert ids == [case["id"]]


BAD = {
    "empty": (b"", "", "empty"),
    "no json": (b"hello\n", ":1", "no JSON"),
    "no object": (b"[1]\n", ":1", "object"),
    "no header": (b'{"id": 1}\n', ":1", "no header"),
    "unknown format": (b'{"format": "bochs-entry-9"}\n', ":1", "bochs-entry-1"),
    "no text": (b'{"format": "\xff\xfe"}\n', ":1", "no text"),
    "header without goldens": (b'{"format": "bochs-entry-1"}\n', ":1", "goldens"),
    "cut xz": (path("root").read_bytes()[:-900], ":", "damaged"),
    "spoilt xz": (path("root").read_bytes()[:40] + b"x" * 40, ":", "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_with_its_place(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, place, words = BAD[name]
    file = tmp_path / "bad"
    file.write_bytes(content)
    assert main(["verify", str(file)]) == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert f"{file}{place}" in printed.err
    assert words in printed.err


@pytest.mark.parametrize("form", ["entry", "walk", "insn", "root"])
@pytest.mark.parametrize(
    "line",
    ['{"id": 4}', "{", '{"verdict": 4, "code": "zz", "delta": [], "base": "g64", "type": "r"}'],
)
def test_a_bad_case_is_named_by_its_line(
    form: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad"
    good = json.dumps(cases(form)[0])
    file.write_text(f"{json.dumps(header(form))}\n{good}\n{line}\n")
    assert main(["verify", str(file)]) == 3
    assert f"{file}:3" in capsys.readouterr().err


def test_there_is_no_such_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path / "none")]) == 3
    assert "none: cannot read it" in capsys.readouterr().err


def test_interruption_shows_what_was_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = verification.judge

    def interrupted(replay: object, form: str, case: object, file: str) -> object:
        if case.line == 4:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return sound(replay, form, case, file)  # type: ignore[arg-type]

    monkeypatch.setattr(verification, "judge", interrupted)
    assert main(["verify", str(_some(tmp_path, count=9)), "--format", "json"]) == 130
    printed = capsys.readouterr()
    assert json.loads(printed.out)["cases"] == 2
    assert "interrupted" in printed.err
