"""Walks of another emulator through the TLB: the same outcome the first and the second time.

What the walks themselves come to is verified with the other corpora (``tests/verify``).
"""

from __future__ import annotations

from tests.verify.corpora import cases, path
from vtx.hypervisor.verify.corpus import open_corpus
from vtx.hypervisor.verify.walk import ACCESSES, WalkReplayer, context_of, verdict_of
from vtx.machine.mmu import Mmu


def test_translations_through_the_tlb_end_alike_the_first_and_the_second_time() -> None:
    replayer = WalkReplayer(open_corpus(path("walk")))
    walked = 0
    for case in cases("walk"):
        with replayer.tables(case) as memory:
            mmu, context = Mmu(memory, replayer.shape), context_of(case)
            access = ACCESSES[case["type"]]
            fresh = verdict_of(Mmu(memory, replayer.shape).walk(context, case["gva"], access))
            for _ in range(2):
                ours = verdict_of(mmu.translate(context, case["gva"], access))
                for known in ("kind", "hpa", "ec", "addr", "qual"):
                    assert ours.get(known) == fresh.get(known), case["id"]
            walked += 1
    assert walked >= 250
