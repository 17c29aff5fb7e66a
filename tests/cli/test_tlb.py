"""``vtx tlb``: its JSON, its tables, its options, and its exit codes."""

import json

import numpy as np
import pytest

from vtx.cli import main

GEOMETRY = "levels: {l1d: {entries: 4, ways: 4}, l2: {entries: 8, ways: 8}}\n"


@pytest.fixture
def files(tmp_path):
    records = [1 << 62 | 8 << 48 | page << 12 for page in (1, 2, 1, 3)]
    records += [3 << 62 | 8 << 48 | 0x1FFC, 4 << 48 | 0x9000]
    stream, geometry = tmp_path / "s.u64", tmp_path / "small.yaml"
    np.array(records, dtype="<u8").tofile(stream)
    geometry.write_text(GEOMETRY)
    return str(stream), str(geometry)


def run(capsys, *args):
    code = main(["tlb", *args])
    out, err = capsys.readouterr()
    return code, out, err


def test_json_has_the_shape_that_is_promised(files, capsys):
    stream, geometry = files
    code, out, _ = run(capsys, stream, "--geometry", geometry, "--format", "json")
    document = json.loads(out)
    (result,) = document["results"]
    assert (code, document["schema"], result["geometry"]) == (0, "vtx.tlb/1", "small")
    l1d, l2 = result["levels"]["l1d"], result["levels"]["l2"]
    assert (l1d["accesses"], l1d["hits"], l1d["misses"]) == (6, 3, 3)
    assert (l2["accesses"], l2["hits"], l2["misses"]) == (3, 0, 3)
    assert l1d["by_kind"]["hits"] == {"fetch": 0, "load": 1, "store": 0, "modify": 2}
    assert (result["walks"], result["references"], result["cycles"]) == (3, 12, None)
    assert result["records"]["fetch"] == 1


def test_several_geometries_and_ways_of_virtualization(files, capsys):
    stream, geometry = files
    both = ("--geometry", geometry, "--profile", "skylake_sp")
    ways = ("--virtualization", "native,4K+4K,2M+2M", "--threads", "2")
    _, out, _ = run(capsys, stream, *both, *ways, "--format", "json")
    results = json.loads(out)["results"]
    names = [(result["geometry"], result["virtualization"]) for result in results]
    ways = ("native", "4K+4K", "2M+2M")
    assert names == [(name, way) for name in ("small", "skylake_sp") for way in ways]
    assert [result["references"] for result in results[:3]] == [12, 72, 15]
    assert results[3]["cycles"] > 0
    assert results[3]["costs"]["l2"]["status"] == "measured"


def test_table_csv_and_options(files, capsys):
    stream, geometry = files
    code, out, _ = run(capsys, stream, "--geometry", geometry)
    assert code == 0
    assert "l1d" in out and "per walk" in out
    options = ("--crossing", "first", "--modify", "twice", "--pages", "2M", "--stream", "data")
    code, out, _ = run(capsys, stream, "--geometry", geometry, *options, "--format", "csv")
    rows = [line.split(",") for line in out.splitlines()]
    assert rows[1][:6] == ["small", "native", "l1d", "6", "5", "1"]
    assert rows[3][2:4] == ["walks", "1"]


def test_wrong_use_is_2_and_wrong_input_is_3(files, capsys, tmp_path):
    stream, geometry = files
    assert run(capsys, stream)[0] == 2
    assert run(capsys, stream, "--geometry", geometry, "--virtualization", "8K")[0] == 2
    assert run(capsys, stream, "--geometry", geometry, "--threads", "0")[0] == 2
    assert run(capsys, stream, "--geometry", geometry, "--stream", "all")[0] == 3
    assert run(capsys, str(tmp_path / "none.u64"), "--geometry", geometry)[0] == 3
    bad = tmp_path / "bad.yaml"
    bad.write_text("levels:\n  l1: {entries: 64, ways: 0}\n")
    code, out, err = run(capsys, stream, "--geometry", str(bad))
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert "bad.yaml:2" in err
