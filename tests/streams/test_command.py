"""``vtx import``: what it writes, what it says, and how it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vtx.cli import main
from vtx.commands.imports import FORMATS
from vtx.streams import FORMATS as ALL
from vtx.streams import open_stream

from .writers import LOAD, Ref, entry, head

TRUE = Path(__file__).parents[1] / "data" / "streams" / "true.lackey.txt.xz"
LACKEY = b"==1== Lackey\nI  0401ab70,3\nhello\n L 1ffe,8\n"


def vtx(capsys, *args) -> tuple[int, str, str]:
    code = main(list(map(str, args)))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_formats_are_those_of_the_library():
    assert tuple(ALL) == FORMATS


def test_a_real_trace(tmp_path, capsys):
    out = tmp_path / "true.vtxs"
    code, said, err = vtx(capsys, "import", TRUE, "-o", out, "--format", "json")
    assert (code, err) == (0, "")
    document = json.loads(said)
    assert document["schema"] == "vtx.import/1"
    assert document["records"] == 167_440
    assert document["references"] == {
        "fetch": 127_771, "load": 27_899, "store": 10_266, "modify": 1_504,
    }  # fmt: skip
    assert document["inputs"][0]["skipped"] == {"message": 24}
    assert (open_stream(out).array() == open_stream(TRUE).array()).all()
    assert out.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_several_inputs_are_joined(tmp_path, capsys):
    (tmp_path / "a").write_bytes(LACKEY)
    (tmp_path / "b").write_bytes(head() + entry("READ", 4, 8))
    out = tmp_path / "o"
    code, said, _ = vtx(capsys, "import", tmp_path / "a", tmp_path / "b", out, "-o", out)
    assert code == 3  # the output cannot be an input: it is not there yet
    code, said, _ = vtx(capsys, "import", tmp_path / "a", tmp_path / "b", "-o", out)
    assert code == 0
    assert open_stream(out).array()[2] == Ref(LOAD, 4, 8).record
    assert "3 references" in said
    assert "lines read (lackey)" in said
    assert "skipped: headers and footers" in said


def test_standard_input(tmp_path):
    out = tmp_path / "o.vtxs"
    done = subprocess.run(
        [sys.executable, "-m", "vtx", "import", "-", "-o", out], input=LACKEY, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert len(open_stream(out).array()) == 2


def test_malformed_lines(tmp_path, capsys):
    bad, out = tmp_path / "t", tmp_path / "o"
    bad.write_bytes(LACKEY + b" L 12x4,8\n S 10,4\n")
    code, said, err = vtx(capsys, "import", bad, "-o", out)
    assert (code, said) == (3, "")
    assert f"{bad}:5: " in err
    assert "' L 12x4,8'" in err
    assert list(tmp_path.iterdir()) == [bad]
    code, said, err = vtx(capsys, "import", bad, "-o", out, "--skip-malformed")
    assert code == 0
    assert f"{bad}:5: " in err
    assert len(open_stream(out).array()) == 3


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["{t}"], 2, "required"),
        (["{t}", "-o", "-"], 2, "wants a file"),
        (["{t}", "-o", "{d}"], 2, "is a directory"),
        (["{t}", "-o", "{d}/no/o"], 2, "no directory"),
        (["{t}", "-o", "{t}"], 2, "--force"),
        (["{t}", "-o", "/dev/null", "--force"], 2, "is no file"),
        (["-", "-", "-o", "{d}/o"], 2, "only once"),
        (["{t}", "-o", "{d}/o", "--tid", "x"], 2, "wants a number"),
        (["{t}", "-o", "{d}/o", "--tid", "7"], 2, "no process and no thread"),
        (["{t}", "-o", "{d}/o", "--from", "perf"], 2, "invalid choice"),
        (["{t}", "-o", "{d}/o", "--from", "u64"], 3, "no multiple of 8"),
        (["{d}/none", "-o", "{d}/o"], 3, "No such file"),
        (["{d}", "-o", "{d}/o"], 3, "directory"),
    ],
)
def test_what_can_go_wrong(tmp_path, capsys, args, code, says):
    trace = tmp_path / "t"
    trace.write_bytes(LACKEY)
    filled = [arg.format(t=trace, d=tmp_path) for arg in args]
    got, out, err = vtx(capsys, "import", *filled)
    assert (got, out) == (code, "")
    assert says in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [trace]


def test_an_interrupted_import_leaves_nothing(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTIBLE, "import", "-", "-o", str(tmp_path / "o")],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdin is not None
    deadline = time.monotonic() + 60
    try:
        # More than a chunk, so that records have been written; the end of the input never comes.
        child.stdin.write(LACKEY * 600_000)
        while not any(file.stat().st_size > 64 for file in tmp_path.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        assert child.stderr is not None
        err = child.stderr.read()
        assert child.wait(timeout=60) == 130, err
    finally:
        child.kill()
        child.stdin.close()
        child.stderr.close()
    assert b"interrupted" in err
    assert list(tmp_path.iterdir()) == []


#: A shell's background jobs ignore SIGINT, and so would the command.
_INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from vtx.cli import main
sys.exit(main(sys.argv[1:]))
"""
