"""Published figures on translation hold, and ``docs/published.md`` says what a run says."""

from __future__ import annotations

import pytest

from tests.published.caches import STREAMS, per_walk, runs
from tests.published.page import PAGE, page, walk_rows


def test_every_walk_makes_the_published_number_of_references() -> None:
    simulated = 0
    for guest, nested, published, references in walk_rows():
        if references is not None:
            simulated += 1
            assert references == published, (guest, nested)
    assert simulated == 17


@pytest.mark.parametrize("stream", STREAMS)
def test_without_caches_every_walk_is_a_whole_one(stream: str) -> None:
    for pages, references in {"native": 4, "4K+4K": 24, "4K+2M": 19, "2M+2M": 15}.items():
        result = runs(stream)["nothing", pages]
        assert result.walks
        assert per_walk(result) == references


def test_the_published_averages_lie_between_small_and_scattered_programs() -> None:
    """Park 2022: 1.5 references native and 4.4 virtualized; Bhargava 2008: 4.53."""
    for (name, pages), published in {
        ("skylake_sp", "native"): 1.5,
        ("skylake_sp", "4K+4K"): 4.4,
        ("both", "4K+4K"): 4.53,
    }.items():
        figures = [per_walk(runs(stream)[name, pages]) for stream in STREAMS]
        assert min(figures) < published < max(figures), (name, pages, figures)


@pytest.mark.parametrize("stream", STREAMS)
def test_every_cache_saves_references(stream: str) -> None:
    found = runs(stream)
    assert per_walk(found["walker", "4K+4K"]) < per_walk(found["nothing", "4K+4K"])
    assert per_walk(found["nested", "4K+4K"]) < per_walk(found["nothing", "4K+4K"])
    assert per_walk(found["both", "4K+2M"]) < per_walk(found["walker", "4K+2M"])
    assert per_walk(found["both", "4K+2M"]) < per_walk(found["both", "4K+4K"])


def test_the_page_is_up_to_date() -> None:
    """Write it with ``python -m tests.published``."""
    assert PAGE.read_text(encoding="utf-8") == page()
