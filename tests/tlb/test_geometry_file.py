"""What a geometry file can say, and what one sentence it gets if it says the impossible."""

import pytest

from vtx.errors import InputError
from vtx.tlb import Array, load_geometry, profile_geometry
from vtx.tlb.geometry import PAGES, Range

L1 = "levels:\n  l1: "


def read(tmp_path, text):
    path = tmp_path / "g.yaml"
    path.write_text(text)
    return load_geometry(path)


def test_the_plain_model_needs_nothing_but_sizes(tmp_path):
    text = "levels:\n  l2: {sets: 128, ways: 12}\n  l1d: {entries: 64, ways: 4}\n"
    geometry = read(tmp_path, text)
    assert (geometry.name, geometry.stream, geometry.crossing) == ("g", "data", "both")
    assert [level.name for level in geometry.levels] == ["l1d", "l2"]
    assert geometry.levels[1].arrays == (Array(1536, 12, PAGES),)
    assert geometry.virtualization == "native"


def test_ways_full_and_defaults_for_all_arrays(tmp_path):
    text = (
        "replacement: random\nseed: 7\nname: n\nlevels:\n"
        "  l1i: {entries: 64, ways: full}\n  l1d:\n"
        "    - {entries: 64, sets: 16, pages: 4K, replacement: lru}\n"
        "    - {entries: 32, ways: 4, pages: [1G, 2M]}\n"
    )
    l1i, l1d = read(tmp_path, text).levels
    assert l1i.arrays == (Array(64, 64, PAGES, "random", "modulo", 7),)
    assert l1d.arrays[0] == Array(64, 4, ("4K",), "lru", "modulo", 7)
    assert l1d.arrays[1] == Array(32, 4, ("2M", "1G"), "random", "modulo", 7)


def test_mixed_pages_caches_and_cycles(tmp_path):
    text = (
        "levels: {l1: {entries: 8, ways: 8}}\n"
        "pages: {default: 2M, ranges: [{start: 0x1000, stop: 0x3000, size: 4K}]}\n"
        "ept: 2M\npaging_structure_caches: {pd: 32}\nguest_physical: 16\n"
        "cycles: {l1: 1, reference: 20.5}\n"
    )
    geometry = read(tmp_path, text)
    assert geometry.pages.ranges == (Range(0x1000, 0x3000, "4K"),)
    assert geometry.virtualization == "mixed+2M"
    assert geometry.caches == {"pd": 32, "guest_physical": 16}
    costs = {name: cost.cycles for name, cost in geometry.costs.items()}
    assert costs == {"l1": 1, "walk": 0, "reference": 20.5}


def test_a_profile_as_the_base(tmp_path):
    base = profile_geometry("skylake_sp")
    assert [level.name for level in base.levels] == ["l1i", "l1d", "l2"]
    assert base.costs["l2"].cycles == 9
    changed = read(tmp_path, "profile: skylake_sp\npages: 2M\n")
    assert (changed.levels, changed.costs) == (base.levels, base.costs)
    assert changed.pages.data == "2M"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (L1 + "{entries: 64, ways: 0}", 2, "ways is 0"),
        (L1 + "{entries: 0, ways: 1}", 2, "entries is 0"),
        (L1 + "{entries: -64, ways: 4}", 2, "entries is -64"),
        (L1 + "{entries: 1000000000000, ways: 4}", 2, "entries is 0x"),
        (L1 + "{entries: 64, ways: 5}", 2, "64 entries cannot be divided"),
        (L1 + "{entries: 64}", 2, "no ways"),
        (L1 + "{ways: 4}", 2, "no entries"),
        (L1 + "{entries: 64, ways: 4, sets: 8}", 2, "not 8 sets of 4 ways"),
        (L1 + "{sets: 16777216, ways: 16}", 2, "268435456 entries"),
        (L1 + "{sets: 16, ways: 12, replacement: tree-plru}", 2, "12 ways cannot be replaced"),
        (L1 + "{sets: 12, ways: 4, index: xor}", 2, "12 sets cannot be indexed by xor"),
        (L1 + "{entries: 64, ways: 4, replacement: mru}", 2, "unknown replacement 'mru'"),
        (L1 + "{entries: 64, ways: 4, pages: 8K}", 2, "unknown page size '8K'"),
        (L1 + "{entries: 64, wais: 4}", 2, "did you mean ways"),
        ("levls: {}", 1, "did you mean levels"),
        ("levels: {}", 1, "no levels"),
        ("levels:\n  tlb: {entries: 4, ways: 4}", 2, "unknown level 'tlb'"),
        ("levels:\n  l2: {entries: 4, ways: 4}", 1, "no level 1 before it"),
        (L1 + "{entries: 4, ways: 4}\n  l1d: {entries: 4, ways: 4}", 1, "meet l1d and l1"),
        ("stream: all\nlevels:\n  l1d: {entries: 4, ways: 4}", 2, "no first level"),
        (L1 + "[{entries: 4, ways: 4}, {entries: 4, ways: 4, pages: 2M}]", 2, "two arrays"),
        (L1 + "{entries: 4, ways: 4}\npages: {default: 3M}", 3, "unknown page size '3M'"),
        (
            L1 + "{entries: 4, ways: 4}\npages:\n  ranges:\n    - {start: 1, stop: 2, size: 4K}",
            5,
            "does not start and stop at a 4K page",
        ),
        (L1 + "{entries: 4, ways: 4}\ncycles: {l2: 4}", 3, "unknown key of cycles 'l2'"),
        (L1 + "{entries: 4, ways: 4}\npaging_levels: 3", 3, "paging_levels is 3"),
        ("schema: 2\nlevels: {l1: {entries: 4, ways: 4}}", 1, "schema is 2"),
        ("name: x", 1, "no levels"),
        ("profile: skylake_sq", None, "skylake_sp"),
    ],
)
def test_the_impossible_gets_a_sentence(tmp_path, text, line, words):
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert line is None or f"g.yaml:{line}" in message


def test_arrays_made_in_python_are_checked_too():
    with pytest.raises(InputError, match="ways"):
        Array(64, 0)
    with pytest.raises(InputError, match="entries"):
        Array(10**12, 4)
    with pytest.raises(InputError, match="page size"):
        Array(4, 4, ("8K",))
    with pytest.raises(InputError, match="'8K'"):
        profile_geometry("haswell").virtualized("4K+8K")
