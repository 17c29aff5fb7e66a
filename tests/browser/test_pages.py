"""Pages in a real browser: read, walked by keyboard, seen in the dark, with 100,000 exits."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from tests.browser.conftest import Tab, make
from tests.report.pages import EVIL, Page
from tests.report.test_exits_page import recording
from vtx.facts.exits import ExitReason
from vtx.facts.layout import UNNAMED, decode
from vtx.facts.qualifications import qualification_layout

TRACES = Path(__file__).parents[2] / "traces"
DATA = Path(__file__).parents[1] / "data" / "kvm"


@pytest.fixture
def replay(made: Path) -> Path:
    return make(made / "replay.html", "replay", TRACES / "03-cr-msr-io.yaml")


def calm(tab: Tab) -> None:
    """The page has drawn itself, complained of nothing and asked for nothing."""
    until = time.monotonic() + 20
    while tab.run("return document.documentElement.dataset.charts") != "drawn":
        assert time.monotonic() < until, "the charts are not drawn"
        time.sleep(0.05)
    assert tab.complaints() == []
    assert tab.requests() == []


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("replay", ["replay", TRACES / "03-cr-msr-io.yaml"]),
        ("violations", ["replay", TRACES / "02-ept-violation.yaml", "--profile", "haswell"]),
        ("recording", ["exits", DATA / "01.txt"]),
        ("table", ["exits", DATA / "17_perf_kvm_stat.txt"]),
        ("profiles", ["compare", TRACES / "01-cpuid.yaml"]),
        ("recorded", ["compare", DATA / "01.txt"]),
    ],
)
def test_every_kind_of_page_loads(tab: Tab, made: Path, name: str, arguments: list[object]) -> None:
    dark = name in ("replay", "recorded")
    tab.open(make(made / f"{name}.html", *arguments), dark=dark)
    calm(tab)
    charts = tab.run("return document.querySelectorAll('.chart .main-svg').length")
    assert charts > 0
    background = tab.run("return getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")
    paper = tab.run("return getComputedStyle(document.querySelector('.main-svg')).background")
    assert ("rgb(22, 27, 34)" in paper) is dark


def test_colours_follow_the_reader_while_the_page_is_open(tab: Tab, replay: Path) -> None:
    tab.open(replay)
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    tab.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    script = "return getComputedStyle(document.querySelector('.main-svg')).background"
    until = time.monotonic() + 5
    while "rgb(22, 27, 34)" not in tab.run(script):
        assert time.monotonic() < until
    calm(tab)


def test_nothing_sticks_out_of_the_window(tab: Tab, replay: Path) -> None:
    tab.open(replay)
    for width in (400, 700, 1300):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        tab.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        until = time.monotonic() + 5  # charts follow the window a moment later
        while not tab.run("return document.documentElement.scrollWidth <= window.innerWidth"):
            assert time.monotonic() < until, width


def test_keyboard_walks_the_exits(tab: Tab, replay: Path) -> None:
    tab.open(replay)
    tab.run("document.getElementById('list').focus()")
    chosen = "return document.querySelector('.row.active').getAttribute('aria-posinset')"
    assert tab.run(chosen) == "1"
    tab.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert tab.run(chosen) == "3"
    active = tab.run("return document.getElementById('list').getAttribute('aria-activedescendant')")
    assert tab.run("return document.getElementById(arguments[0]) !== null", active)
    tab.press(Keys.END)
    count = Page(replay.read_text()).data["exits"]["count"]
    assert tab.run(chosen) == str(count)
    tab.press(Keys.HOME, Keys.ARROW_DOWN, Keys.ENTER)
    assert tab.run("return document.activeElement.id") == "detail"
    assert "CR_ACCESS" in tab.text("#detail")
    first = tab.text("#detail")
    tab.press(Keys.ARROW_RIGHT)
    assert tab.text("#detail") != first
    tab.press(Keys.ESCAPE)
    assert tab.run("return document.activeElement.id") == "list"
    assert tab.text("#detail") == "Choose an exit."
    calm(tab)


def test_the_list_is_reached_with_tab_alone(tab: Tab, replay: Path) -> None:
    tab.open(replay)
    for _ in range(40):
        tab.press(Keys.TAB)
        if tab.run("return document.activeElement.id") == "list":
            return
    pytest.fail("40 times Tab did not come to the list of exits")


def test_clicking_shows_what_python_decodes(tab: Tab, made: Path, replay: Path) -> None:
    violations = make(
        made / "violations.html",
        *("replay", TRACES / "02-ept-violation.yaml", "--profile", "haswell"),
    )
    for path in (replay, violations):
        page = Page(path.read_text())
        tab.open(path)
        reasons = page.data["exits"]["reasons"]
        numbers = {reason["name"]: reason["number"] for reason in reasons}
        for row, (name, word) in enumerate(
            zip(page.column("reason"), page.column("qualification"), strict=True)
        ):
            tab.run("document.getElementById('row-' + arguments[0]).click()", row)
            shown = tab.run(
                "return [...document.querySelectorAll('#detail h4 + table')].slice(0, 1)"
                ".flatMap(t => [...t.tBodies[0].rows].map(r => [...r.cells].map(c => "
                "c.textContent)))"
            )
            layout = qualification_layout(ExitReason(numbers[name]))
            if layout is None:
                continue
            expected = [
                [
                    part.range.label,
                    part.range.name,
                    str(part.value) if part.range.high == part.range.low else hex(part.value),
                    part.means,
                ]
                for part in decode(layout, int(word, 16))
                if part.value or part.range.name not in UNNAMED
            ]
            assert shown == expected
        assert "VMCS differences" in tab.text("#detail")
        calm(tab)


def test_filter_and_order(tab: Tab, replay: Path) -> None:
    page = Page(replay.read_text())
    tab.open(replay)
    script = "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
    tab.run(script + "e.dispatchEvent(new Event('change'))", "reason-filter", "MSR_READ")
    count = page.column("reason").count("MSR_READ")
    assert tab.text("#count") == f"{count} of {page.data['exits']['count']} exits"
    assert tab.run("return document.querySelectorAll('.row').length") == count
    tab.run(script + "e.dispatchEvent(new Event('change'))", "reason-filter", "")
    tab.run(script + "e.dispatchEvent(new Event('change'))", "order", "dearest first")
    at = page.data["exits"]["shown"].index("cycles")
    costs = tab.run(
        "return [...document.querySelectorAll('.row')].map(r => "
        "Number(r.children[arguments[0]].textContent.replaceAll(',', '')))",
        at,
    )
    assert costs == sorted(costs, reverse=True)
    rip = page.column("rip")[0]
    tab.run(script + "e.dispatchEvent(new Event('input'))", "address", rip)
    assert tab.run("return document.querySelectorAll('.row').length") >= 1
    calm(tab)


def test_strings_of_a_trace_do_not_run(tab: Tab, tmp_path: Path) -> None:
    evil = EVIL.replace("'", "''")
    letters = "".join(f"  out dx, al port=0x3f8 value={ord(c):#x}\n" for c in EVIL)
    trace = tmp_path / "trace.yaml"
    trace.write_text(
        f"schema: 1\nname: '{evil}'\ndescription: '{evil}'\nsteps: |\n{letters}  hlt\n"
    )
    profile = tmp_path / "evil.yaml"
    profile.write_text(f"schema: 1\ninherits: skylake_sp\nid: evil\nname: '{evil}'\n")
    tab.open(make(tmp_path / "evil.html", "replay", trace, "--profile", profile))
    assert tab.run("return window.evil === undefined")
    assert tab.text("h1") == f"Replay of {EVIL}"
    assert tab.run("return document.querySelectorAll('main img').length") == 0
    calm(tab)


def test_a_hundred_thousand_exits_are_usable(
    tab: Tab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording(tmp_path / "trace.txt", 100_000)
    page = make(tmp_path / "page.html", "exits", tmp_path / "trace.txt")
    started = time.monotonic()
    tab.open(page)
    loaded = time.monotonic() - started
    calm(tab)
    assert tab.text("#count") == "100,000 exits"
    rows = "return document.querySelectorAll('.row').length"
    assert 0 < tab.run(rows) < 100
    tab.run("document.getElementById('list').focus()")
    started = time.monotonic()
    tab.press(Keys.END)
    moved = time.monotonic() - started
    chosen = "return document.querySelector('.row.active').getAttribute('aria-posinset')"
    assert tab.run(chosen) == "100000"
    assert tab.run(rows) < 100
    started = time.monotonic()
    tab.run(
        "const e = document.getElementById('order'); e.selectedIndex = 1; "
        "e.dispatchEvent(new Event('change'))"
    )
    ordered = time.monotonic() - started
    ready = float(tab.run("return document.documentElement.dataset.ready"))
    with capsys.disabled():
        print(
            f"\n100,000 exits: page {page.stat().st_size / 1e6:.1f} MB loaded in {loaded:.2f} s, "
            f"list ready in {ready:.0f} ms, End in {moved:.2f} s, ordered in {ordered:.2f} s"
        )
    assert loaded < 30
