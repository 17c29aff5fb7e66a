"""Profiles that users write: inheritance, and what is refused and how."""

import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vtx.rules
from vtx.errors import InputError
from vtx.lab.profile import Status, load_profile
from vtx.machine.shape import Shape
from vtx.profiles import load_raw

HEAD = "schema: 1\ninherits: skylake_sp\n"
SHIPPED = Path(load_raw("skylake_sp")["file"]).read_text()


def write(tmp_path: Path, text: str, name: str = "mine.yaml") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def refusal(tmp_path: Path, text: str) -> InputError:
    with pytest.raises(InputError) as caught:
        load_profile(write(tmp_path, text))
    return caught.value


def test_inherits_everything_but_what_it_says(tmp_path: Path) -> None:
    text = HEAD + (
        "name: My host\n"
        "prices:\n"
        "  vmread: {cycles: 11.5, status: measured, source: rdtsc loop on host a}\n"
    )
    mine, parent = load_profile(write(tmp_path, text)), load_profile("skylake_sp")
    assert (mine.id, mine.name) == ("mine", "My host")
    assert mine.prices["vmread"].cycles == Fraction(23, 2)
    assert mine.prices["vmread"].status is Status.MEASURED
    assert mine.prices["vmwrite"] == parent.prices["vmwrite"]
    assert mine.shape_key == parent.shape_key


def test_inherits_from_a_file_beside_it(tmp_path: Path) -> None:
    write(tmp_path, HEAD + "id: base\nname: Base\n", "base.yaml")
    child = write(tmp_path, "schema: 1\ninherits: base.yaml\nid: child\n")
    assert load_profile(child).name == "Base"
    assert load_profile(child).id == "child"


def test_a_new_shape(tmp_path: Path) -> None:
    text = HEAD + (
        "shape:\n  tlb:\n    arrays:\n"
        "      - {level: 1, kind: unified, pages: [4K], entries: 8, ways: 8,"
        " status: estimated, source: what if}\n"
    )
    shape = Shape.of(write(tmp_path, text))
    assert [array.entries for array in shape.tlb.arrays] == [8]
    assert shape.tlb.pd == 32


def test_an_inherited_msr_can_be_taken_away(tmp_path: Path) -> None:
    text = HEAD + (
        "shape:\n  capability_msrs:\n    status: estimated\n    source: what if there were no EPT\n"
        "    values:\n"
        "      IA32_VMX_PROCBASED_CTLS2: 0x0000004100000000\n"
        "      IA32_VMX_EPT_VPID_CAP: null\n"
        "      IA32_VMX_VMFUNC:\n"
    )
    profile = load_profile(write(tmp_path, text))
    assert not profile.shape.has_ept
    assert (
        profile.provenance["capability_msrs"]["IA32_VMX_PROCBASED_CTLS2"]["status"] == "estimated"
    )
    assert profile.provenance["capability_msrs"]["IA32_VMX_MISC"]["status"] == "reported"


def test_optional_prices(tmp_path: Path) -> None:
    text = HEAD + "prices:\n  injection: {cycles: 300, status: estimated, source: a guess}\n"
    profile = load_profile(write(tmp_path, text))
    assert profile.prices["injection"].cycles == 300
    assert profile.prices["invalidation"].cycles is None


def test_features_that_rules_ask_for_can_be_given(tmp_path: Path) -> None:
    asked = set()
    for source in Path(vtx.rules.__file__).parent.glob("*.py"):
        text = source.read_text()
        asked |= set(re.findall(r'feature\("(\w+)"\)', text))
        asked |= set(re.findall(r'"(\w+)" (?:not )?in (?:processor\.)?shape\.features', text))
    assert {"nx", "tdx", "sgx"} <= asked
    features = ", ".join([*asked, "general_counters_8", "fixed_counters_4"])
    text = HEAD + f"shape:\n  features: {{values: [{features}], status: estimated, source: s}}\n"
    assert asked < load_profile(write(tmp_path, text)).shape.features


PRICE = "status: estimated, source: s"
MSRS = "shape:\n  capability_msrs:\n    status: estimated\n    source: s\n    values:\n"
ARRAYS = "shape:\n  tlb:\n    arrays:\n"
IMPOSSIBLE = {  # text after HEAD, line, words of the sentence
    "zero ways": (
        ARRAYS + "      - {level: 1, kind: data, pages: [4K], entries: 64, ways: 0, " + PRICE + "}",
        6,
        "ways is 0",
    ),
    "more ways than entries": (
        ARRAYS + "      - {level: 1, kind: data, pages: [4K], entries: 4, ways: 8, " + PRICE + "}",
        6,
        "cannot have 8 ways",
    ),
    "sets that are no power of two": (
        ARRAYS + "      - {level: 1, kind: data, pages: [4K], entries: 96, ways: 4, " + PRICE + "}",
        6,
        "power of two",
    ),
    "unknown page size": (
        ARRAYS + "      - {level: 1, kind: data, pages: [4M], entries: 4, ways: 4, " + PRICE + "}",
        6,
        "unknown page size '4M'",
    ),
    "a page size twice": (
        ARRAYS
        + "      - {level: 1, kind: data, pages: [4K, 4K], entries: 4, ways: 4, "
        + PRICE
        + "}",
        6,
        "each of its page sizes once",
    ),
    "unknown kind": (
        ARRAYS + "      - {level: 1, kind: date, pages: [4K], entries: 4, ways: 4, " + PRICE + "}",
        6,
        "did you mean data?",
    ),
    "level 3": (
        ARRAYS + "      - {level: 3, kind: data, pages: [4K], entries: 4, ways: 4, " + PRICE + "}",
        6,
        "level of a TLB array is 3",
    ),
    "no arrays": ("shape:\n  tlb:\n    arrays: []\n", 5, "at least one TLB array"),
    "negative price": (f"prices:\n  vmread: {{cycles: -1, {PRICE}}}\n", 4, "cannot be below 0"),
    "infinite price": (f"prices:\n  vmread: {{cycles: .inf, {PRICE}}}\n", 4, "finite"),
    "huge price": (
        f"prices:\n  vmread: {{cycles: 1.0e+300, {PRICE}}}\n",
        4,
        "cannot be above 1e+09",
    ),
    "text for a price": (f"prices:\n  vmread: {{cycles: many, {PRICE}}}\n", 4, "must be a number"),
    "true for a price": (f"prices:\n  vmread: {{cycles: true, {PRICE}}}\n", 4, "must be a number"),
    "plain number for a price": ("prices:\n  vmread: 20\n", 4, "must be a mapping"),
    "price without status": (
        "prices:\n  vmread: {cycles: 1, source: s}\n",
        4,
        "price 'vmread' has no status",
    ),
    "half a range": (
        f"prices:\n  vmread: {{cycles: 9, low: 8, {PRICE}}}\n",
        4,
        "has 'low' alone",
    ),
    "price below its range": (
        f"prices:\n  vmread: {{cycles: 9, low: 10, high: 11, {PRICE}}}\n",
        4,
        "is 9, which is not within 10 to 11",
    ),
    "price above its range": (
        f"prices:\n  vmread: {{cycles: 9, low: 7, high: 8, {PRICE}}}\n",
        4,
        "is 9, which is not within 7 to 8",
    ),
    "a range without a figure": (
        "prices:\n  vmread: {cycles: null, low: 1, source: s}\n",
        4,
        "has a bound but no figure",
    ),
    "price without source": (
        "prices:\n  vmread: {cycles: 1, status: measured}\n",
        4,
        "price 'vmread' has no source",
    ),
    "price without cycles": (f"prices:\n  vmread: {{{PRICE}}}\n", 4, "has no 'cycles'"),
    "status of a price that has no figure": (
        f"prices:\n  vmread: {{cycles: null, {PRICE}}}\n",
        4,
        "a status but no figure",
    ),
    "no figure and no reason": ("prices:\n  vmread: {cycles: null}\n", 4, "say why"),
    "unknown status": (
        "prices:\n  vmread: {cycles: 1, status: measurd, source: s}\n",
        4,
        "did you mean measured?",
    ),
    "reported is no status of a price": (
        "prices:\n  vmread: {cycles: 1, status: reported, source: s}\n",
        4,
        "unknown status",
    ),
    "unknown price": (f"prices:\n  vmred: {{cycles: 1, {PRICE}}}\n", 4, "did you mean vmread"),
    "unknown walk price": (
        f"prices:\n  walk:\n    fixd: {{cycles: 1, {PRICE}}}\n",
        5,
        "did you mean fixed?",
    ),
    "entry alone": (f"prices:\n  entry: {{cycles: 1, {PRICE}}}\n", None, "do not add up"),
    "exit unknown alone": (
        "prices:\n  exit: {cycles: null, source: s}\n",
        None,
        "together or not at all",
    ),
    "unknown MSR": (MSRS + "      IA32_VMX_BASICS: 1\n", 8, "did you mean IA32_VMX_BASIC or"),
    "an MSR that is no capability": (MSRS + "      IA32_EFER: 1\n", 8, "unknown capability MSR"),
    "an MSR of 65 bits": (
        MSRS + "      IA32_VMX_MISC: 0x10000000000000000\n",
        8,
        "IA32_VMX_MISC is 0x1",
    ),
    "a required control that is not allowed": (
        MSRS + "      IA32_VMX_PINBASED_CTLS: 0x0000001600000017\n",
        8,
        "requires bit 0 to be 1 but does not allow it",
    ),
    "a TRUE MSR that contradicts": (
        MSRS + "      IA32_VMX_TRUE_PINBASED_CTLS: 0x0000007f00000016\n",
        8,
        "contradicts IA32_VMX_PINBASED_CTLS",
    ),
    "CR0 bits that must be 1 and 0": (
        MSRS + "      IA32_VMX_CR0_FIXED1: 0xfffffffe\n",
        None,
        "IA32_VMX_CR0_FIXED0 requires bit 0 to be 1",
    ),
    "bit 31 of BASIC": (
        MSRS + "      IA32_VMX_BASIC: 0x00da040080000004\n",
        8,
        "bit 31 of IA32_VMX_BASIC",
    ),
    "a VMCS of no bytes": (MSRS + "      IA32_VMX_BASIC: 0x00da000000000004\n", 8, "region size"),
    "an MSR that must exist": (
        MSRS + "      IA32_VMX_EPT_VPID_CAP: null\n",
        1,
        "the profile has no IA32_VMX_EPT_VPID_CAP",
    ),
    "an MSR that must not exist": (
        MSRS + "      IA32_VMX_PROCBASED_CTLS3: 1\n",
        8,
        "exists only if IA32_VMX_PROCBASED_CTLS[49] is 1",
    ),
    "MSRs without a status": (
        "shape:\n  capability_msrs:\n    values:\n      IA32_VMX_MISC: 1\n",
        4,
        "capability_msrs has no status",
    ),
    "57 bits without LA57": (
        f"shape:\n  address_widths: {{maxphyaddr: 46, linear_bits: 57, {PRICE}}}\n",
        4,
        "CR4.LA57",
    ),
    "50 linear bits": (
        f"shape:\n  address_widths: {{maxphyaddr: 46, linear_bits: 50, {PRICE}}}\n",
        4,
        "linear_bits is 50",
    ),
    "53 physical bits": (
        f"shape:\n  address_widths: {{maxphyaddr: 53, linear_bits: 48, {PRICE}}}\n",
        4,
        "maxphyaddr is 53",
    ),
    "unknown feature": (
        f"shape:\n  features: {{values: [page_1gb], {PRICE}}}\n",
        4,
        "did you mean page_1g?",
    ),
    "too many counters": (
        f"shape:\n  features: {{values: [fixed_counters_17], {PRICE}}}\n",
        4,
        "unknown CPU feature",
    ),
    "unknown key": ("nominal_mhz: 3\n", 3, "did you mean nominal_ghz?"),
    "clock of 0": (f"nominal_ghz: {{value: 0, {PRICE}}}\n", 3, "cannot be below 0.01"),
    "clock without provenance": ("nominal_ghz: {value: 2}\n", 3, "nominal_ghz has no status"),
    "empty shape": ("shape:\n", 3, "shape must be a mapping"),
    "list for prices": ("prices: []\n", 3, "prices must be a mapping"),
    "a key twice": ("name: a\nname: b\n", 4, "'name' stands twice"),
    "a key that is a list": ("[a]: b\n", 3, "plain name"),
    "an alias": ("name: &a x\nid: *a\n", None, "aliases are not supported"),
    "a date": ("name: 2020-01-01\n", 3, "no values of type 'timestamp'"),
    "an object": ("name: !!python/object:os.system x\n", 3, "no values of type"),
    "a tab": ("prices:\n\tvmread: 1\n", 4, "not YAML"),
    "a number of 5000 digits": (
        f"prices:\n  vmread: {{cycles: {'9' * 5000}}}\n",
        4,
        "not a number",
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_refused_with_line_and_reason(tmp_path: Path, case: str) -> None:
    text, line, words = IMPOSSIBLE[case]
    error = refusal(tmp_path, HEAD + text)
    assert words in str(error)
    assert error.file is not None
    assert "\n" not in str(error)
    if line is not None:
        assert error.line == line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("# nothing\n", "empty"),
        ("just text", "must be a mapping"),
        ("- a\n- b\n", "must be a mapping"),
        ("id: x\n", "schema: 1"),
        ("schema: 2\n", "schema 2 is not known"),
        ("schema: one\n", "must be an integer"),
        ("schema: 1\nname: x\n", "has no 'microarchitecture'"),
        ("schema: 1\ninherits: skylake\n", "did you mean skylake_sp"),
        ("schema: 1\ninherits: mine.yaml\n", "inherits from this profile in turn"),
        ("schema: 1\ninherits: missing.yaml\n", "No such file"),
        ("schema: 1\n--- \nschema: 1\n", "not YAML"),
        ("{" * 100, "too deeply nested"),
        ("[" * 30 + "]" * 30, "too deeply nested"),
        ("[" * 50_000, "too deeply nested"),
        ("\x01\x02", "not YAML"),
    ],
)
def test_files_that_are_no_profiles(tmp_path: Path, text: str, words: str) -> None:
    assert words in str(refusal(tmp_path, text))


def test_a_circle_of_two(tmp_path: Path) -> None:
    write(tmp_path, "schema: 1\ninherits: mine.yaml\n", "other.yaml")
    assert "in turn" in str(refusal(tmp_path, "schema: 1\ninherits: other.yaml\n"))


def test_what_is_no_file(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"schema: 1\n\xff\xfe\x00garbage")
    long = tmp_path / "long.yaml"
    long.write_text("#" * (1 << 21))
    for path, words in (
        (tmp_path / "none.yaml", "No such file"),
        (tmp_path, "unknown profile" if tmp_path.suffix else "directory"),
        (binary, "not UTF-8"),
        (long, "too long"),
    ):
        with pytest.raises(InputError) as caught:
            load_profile(str(path))
        assert words in str(caught.value)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean haswell"):
        load_profile("haswel")


@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_profile_is_refused_or_read_but_never_breaks(
    tmp_path: Path, data: st.DataObject
) -> None:
    raw = bytearray(SHIPPED.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(raw) - 1))
        length = data.draw(st.integers(0, 30))
        raw[start : start + length] = data.draw(st.binary(max_size=6))
    path = tmp_path / "damaged.yaml"
    path.write_bytes(bytes(raw))
    try:
        load_profile(str(path))
    except InputError as error:
        assert "\n" not in str(error)
