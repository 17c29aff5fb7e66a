"""Random geometries and streams."""

import numpy as np
from hypothesis import strategies as st

from vtx.tlb import Array, Geometry, Level, PageSizes
from vtx.tlb.geometry import Range

SIZES = ("4K", "2M", "1G")


@st.composite
def arrays(draw, pages):
    replacement = draw(st.sampled_from(("lru", "lru", "lru", "tree-plru", "random")))
    index = draw(st.sampled_from(("modulo", "modulo", "xor")))
    ways = draw(st.sampled_from((1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 64)))
    if replacement == "tree-plru":
        ways = draw(st.sampled_from((1, 2, 4, 8, 64, 128)))
    sets = draw(st.sampled_from((1, 2, 4, 16, 64, 128)))
    if index == "modulo":
        sets = draw(st.sampled_from((1, 2, 3, 5, 8, 12, 16, 96, 128)))
    return Array(sets * ways, ways, pages, replacement, index, draw(st.integers(0, 5)))


@st.composite
def levels(draw, name):
    split = draw(
        st.sampled_from(((SIZES,), (("4K",), ("2M",)), (("4K", "2M"), ("1G",)), (("4K",),)))
    )
    return Level(name, tuple(draw(arrays(pages)) for pages in split))


@st.composite
def page_sizes(draw):
    if draw(st.booleans()):
        return PageSizes.of(draw(st.sampled_from(SIZES)))
    ranges = []
    for start in sorted(draw(st.sets(st.integers(0, 7), max_size=3))):
        size = draw(st.sampled_from(SIZES))
        ranges.append(Range(start << 30, (start + 1) << 30, size))
    default = draw(st.sampled_from(SIZES))
    return PageSizes(draw(st.sampled_from(SIZES)), default, tuple(ranges))


@st.composite
def geometries(draw):
    names = draw(
        st.sampled_from(
            (
                ("l1", "l2"),
                ("l1i", "l1d", "l2"),
                ("l1i", "l1d", "l2"),
                ("l1",),
                ("l1i", "l1d", "l2i", "l2d", "l3"),
                ("l1i", "l1d", "l2d"),
            )
        )
    )
    return Geometry(
        "drawn",
        tuple(draw(levels(name)) for name in names),
        stream=draw(st.sampled_from(("all", "all", "data", "instructions"))),
        crossing=draw(st.sampled_from(("both", "first"))),
        modify=draw(st.sampled_from(("once", "twice"))),
        pages=draw(page_sizes()),
        ept=draw(st.none() | page_sizes()),
    )


def stream(seed, count=3000, spread=8 << 30):
    """References with locality: runs in a page, hops among few, jumps to many; some cross."""
    random = np.random.default_rng(seed)
    kinds = random.choice(4, count, p=(0.5, 0.3, 0.15, 0.05)).astype(np.uint64)
    few = random.integers(0, spread >> 12, 40)
    many = random.integers(0, spread >> 12, count)
    near = random.integers(0, 1 << 9, count)  # pages next to each other: sets fill up
    pages = np.where(random.random(count) < 0.5, few[random.integers(0, 40, count)], near)
    pages = np.where(random.random(count) < 0.1, many, pages)
    again = random.random(count) < 0.4
    for i in range(1, count):
        if again[i]:
            pages[i] = pages[i - 1]
    offsets = np.where(
        random.random(count) < 0.05,
        4096 - random.integers(1, 8, count),
        random.integers(0, 4088, count),
    )
    sizes = random.choice((1, 2, 4, 8, 16, 64), count)
    addresses = (pages.astype(np.uint64) << np.uint64(12)) + offsets.astype(np.uint64)
    return kinds << np.uint64(62) | sizes.astype(np.uint64) << np.uint64(48) | addresses
