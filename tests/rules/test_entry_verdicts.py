"""VM entries that another implementation judged reach most of the checks.

What becomes of each entry is verified with the other corpora (``tests/verify``).
"""

from __future__ import annotations

import pytest

from tests.verify.corpora import cases, header, path
from vtx.hypervisor.verify.corpus import open_corpus
from vtx.hypervisor.verify.entry import EntryReplayer
from vtx.rules.check import CHECKS, failing_checks


@pytest.fixture(scope="module")
def replayer() -> EntryReplayer:
    return EntryReplayer(open_corpus(path("entry")))


@pytest.mark.parametrize("guest", header("entry")["goldens"])
def test_the_guests_around_which_it_was_made_are_sound(guest: str, replayer: EntryReplayer) -> None:
    cpu = replayer.prepare({"base": guest, "delta": {}})
    assert cpu.vmcs is not None
    assert failing_checks(cpu.vmcs, cpu) == []


def test_many_checks_fail_somewhere_in_the_sample(replayer: EntryReplayer) -> None:
    seen = set()
    for case in cases("entry"):
        if case["verdict"]["kind"] in ("vmfail_valid", "entry_failure"):
            cpu = replayer.prepare(case)
            assert cpu.vmcs is not None
            seen |= {check.id for check in failing_checks(cpu.vmcs, cpu)}
    assert len(seen & set(CHECKS)) > 150


def test_the_sample_has_every_outcome() -> None:
    verdicts = [case["verdict"] for case in cases("entry")]
    assert {verdict["kind"] for verdict in verdicts} >= {
        "vmexit", "entry_failure", "vmfail_valid", "vmabort", "idle",
    }  # fmt: skip
    assert {verdict.get("error") for verdict in verdicts} >= {7, 8}
    assert {verdict.get("exit_reason", 0) & 0xFFFF for verdict in verdicts} >= {10, 33, 34, 48, 52}
