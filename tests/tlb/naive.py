"""The rules of docs/tlb.md restated as plainly as Python can: one dict for each set."""

from collections import OrderedDict

SHIFTS = {"4K": 12, "2M": 21, "1G": 30}
SIZES = tuple(SHIFTS)
KINDS = ("fetch", "load", "store", "modify")


class Cache:
    """True LRU sets; `Xorshift` and `Tree` stand in for the other replacements."""

    def __init__(self, array):
        self.array = array
        self.sets = array.entries // array.ways
        self.lines = {}
        self.ways = {}
        self.trees = {}
        self.state = (array.seed + 1) * 0x9E3779B97F4A7C15 % 2**64 or 1

    def set_of(self, page):
        if self.array.index == "xor":
            page ^= page >> (self.sets.bit_length() - 1)
        return page % self.sets

    def touch(self, page, size):
        index, tag = self.set_of(page), (page, size)
        if self.array.replacement == "lru":
            lines = self.lines.setdefault(index, OrderedDict())
            hit = tag in lines
            lines[tag] = True
            lines.move_to_end(tag)
            if len(lines) > self.array.ways:
                lines.popitem(last=False)
            return hit
        ways = self.ways.setdefault(index, [None] * self.array.ways)
        hit = tag in ways
        if hit:
            way = ways.index(tag)
        elif None in ways:
            way = ways.index(None)
        elif self.array.replacement == "random":
            way = self.draw()
        else:
            way = self.victim(index)
        ways[way] = tag
        if self.array.replacement == "tree-plru":
            self.point_away(index, way)
        return hit

    def draw(self):
        x = self.state
        x ^= x >> 12
        x ^= x << 25 & 2**64 - 1
        x ^= x >> 27
        self.state = x
        return ((x * 0x2545F4914F6CDD1D % 2**64 >> 32) * self.array.ways) >> 32

    def victim(self, index):
        """Follow the halves that were used longer ago: True is the right one."""
        tree = self.trees.get(index, {})
        low, high = 0, self.array.ways
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if tree.get((low, high)) else (low, middle)
        return low

    def point_away(self, index, way):
        tree = self.trees.setdefault(index, {})
        low, high = 0, self.array.ways
        while high - low > 1:
            middle = (low + high) // 2
            tree[low, high] = way < middle
            low, high = (low, middle) if way < middle else (middle, high)


def size_at(pages, address, side):
    for part in pages.ranges:
        if part.start <= address < part.stop:
            return part.size
    return pages.instruction if side == 0 else pages.data


def effective(geometry, address, side):
    size = size_at(geometry.pages, address, side)
    if geometry.ept is not None:
        size = min(size, size_at(geometry.ept, address, 1), key=SIZES.index)
    return size


class Naive:
    def __init__(self, geometry):
        self.geometry = geometry
        self.caches = {level.name: [Cache(a) for a in level.arrays] for level in geometry.levels}
        self.hits = {level.name: [0] * 4 for level in geometry.levels}
        self.misses = {level.name: [0] * 4 for level in geometry.levels}
        self.walks = [0] * 4
        self.crossings = 0

    def run(self, records):
        for record in records:
            self.refer(int(record))

    def refer(self, record):
        kind, bytes_, address = record >> 62, record >> 48 & 0x3FFF, record & 2**48 - 1
        side = 0 if kind == 0 else 1
        if self.geometry.stream == ("data", "instructions")[side]:
            return
        last = (address + bytes_ - 1) % 2**48
        shift = SHIFTS[effective(self.geometry, address, side)]
        crosses = address >> shift != last >> shift
        self.crossings += crosses
        places = [address, last] if crosses and self.geometry.crossing == "both" else [address]
        times = 2 if kind == 3 and self.geometry.modify == "twice" else 1
        for place in places * times:
            self.look_up(kind, side, place)

    def look_up(self, kind, side, address):
        size = effective(self.geometry, address, side)
        for level in self.geometry.levels:
            if level.sides >> side & 1:
                if self.touch(level, address, size):
                    self.hits[level.name][kind] += 1
                    return
                self.misses[level.name][kind] += 1
        self.walks[kind] += 1

    def touch(self, level, address, size):
        """In the array that holds the size, or else the next smaller one; no array, no hit."""
        for smaller in reversed(SIZES[: SIZES.index(size) + 1]):
            for cache in self.caches[level.name]:
                if smaller in cache.array.pages:
                    return cache.touch(address >> SHIFTS[smaller], smaller)
        return False
