"""Replaying one corpus, and the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vtx.errors import InputError, NotSupported
from vtx.hypervisor.verify.corpus import Case, Corpus, open_corpus
from vtx.hypervisor.verify.deviations import deviations_of
from vtx.hypervisor.verify.judgement import Judgement, Skip, Verdict, difference

__all__ = ["SCHEMA", "Replayer", "Verification", "judge", "judgements", "replayer", "verify"]

SCHEMA = "vtx.verify/1"


class Replayer(Protocol):
    """Replays cases of one format."""

    def replay(self, case: Mapping[str, Any]) -> tuple[Verdict, Verdict]:
        """Return what comes of a case here, and what came of it there."""


@dataclass
class Verification:
    """What came of the cases of one corpus so far.

    Attributes
    ----------
    corpus : str
        Name of the file.
    format : str
        Its format.
    expected : int
        Cases that the header announces; 0 if it does not.
    cases : int
        Cases that were read.
    agree : int
        Both sides are the same.
    differ : list of (id, ours, theirs)
        Differences that no deviation explains, with what differs on each side.
    sdm_side : int
        A named deviation of the other implementation explains the difference, and the manual's
        words are on our side.
    other : list of ids
        Tagged with a deviation, and the manual's words are not on our side.
    deviations : dict of str to int
        How often each deviation decided.
    skipped : dict of str to list of ids
        Not replayed, by reason.
    """

    corpus: str
    format: str
    expected: int = 0
    cases: int = 0
    agree: int = 0
    differ: list[tuple[Any, Verdict, Verdict]] = field(default_factory=list)
    sdm_side: int = 0
    other: list[Any] = field(default_factory=list)
    deviations: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def explained(self) -> bool:
        """There is no difference without an explanation."""
        return not self.differ and not self.other

    def add(self, name: Any, judged: Judgement | Skip) -> None:
        """Count one case."""
        self.cases += 1
        if isinstance(judged, Skip):
            self.skipped.setdefault(judged.why, []).append(name)
        elif judged.agree:
            self.agree += 1
        elif not judged.deviations:
            self.differ.append((name, *difference(judged.ours, judged.theirs)))
        elif judged.sdm_side:
            self.sdm_side += 1
            for deviation in judged.deviations:
                self.deviations[deviation] = self.deviations.get(deviation, 0) + 1
        else:
            self.other.append(name)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as the JSON document of one corpus."""
        return {
            "schema": SCHEMA,
            "corpus": self.corpus,
            "cases": self.cases,
            "agree": self.agree,
            "differ": [
                {"id": name, "ours": _plain(ours), "theirs": _plain(theirs)}
                for name, ours, theirs in self.differ
            ],
            "deviations": {"sdm_side": self.sdm_side, "other": self.other},
            "skipped": self.skipped,
        }


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: fields become four hexadecimal digits."""
    if isinstance(value, Mapping):
        return {
            f"{key:04x}" if isinstance(key, int) else key: _plain(item)
            for key, item in value.items()
        }
    return value


def replayer(corpus: Corpus) -> Replayer:
    """Return what replays the cases of a corpus.

    Raises
    ------
    InputError
        The header is malformed.
    """
    match corpus.format:
        case "bochs-entry-1":
            from vtx.hypervisor.verify.entry import EntryReplayer

            return EntryReplayer(corpus)
        case "bochs-walk-1":
            from vtx.hypervisor.verify.walk import WalkReplayer

            return WalkReplayer(corpus)
        case "bochs-insn-1":
            from vtx.hypervisor.verify.insn import InstructionReplayer

            return InstructionReplayer(corpus)
        case _:
            from vtx.hypervisor.verify.root import RootReplayer

            return RootReplayer(corpus)


def judge(replay: Replayer, form: str, case: Case, file: str) -> Judgement | Skip:
    """Replay one case and compare.

    Raises
    ------
    InputError
        The case is malformed.
    """
    try:
        ours, theirs = replay.replay(case.data)
    except Skip as skip:
        return skip
    except NotSupported as error:
        return Skip(f"not modelled: {error}")
    except InputError as error:
        raise error.at(file, case.line) from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        why = f"malformed case: {type(error).__name__} {error}"
        raise InputError(why, file=file, line=case.line) from error
    if ours == theirs:
        return Judgement(ours, theirs)
    names, sdm_side = deviations_of(form, case.data, ours, theirs)
    return Judgement(ours, theirs, names, sdm_side)


def judgements(corpus: Corpus) -> Iterator[tuple[Case, Judgement | Skip]]:
    """Replay a corpus case by case."""
    replay = replayer(corpus)
    for case in corpus.cases:
        yield case, judge(replay, corpus.format, case, corpus.file)


def verify(
    path: str | Path,
    progress: Callable[[Verification], None] | None = None,
    result: Verification | None = None,
) -> Verification:
    """Replay a corpus and count.

    Parameters
    ----------
    path : str or Path
        The corpus, plain or .xz.
    progress : callable, optional
        Called with the result so far after every case.
    result : Verification, optional
        Where to count: what it holds when something interrupts is what was done so far.

    Raises
    ------
    InputError
        The file, or a line of it, is malformed; says which.
    """
    corpus = open_corpus(path)
    if result is None:
        result = Verification(corpus.file, corpus.format)
    result.corpus, result.format = corpus.file, corpus.format
    announced = corpus.header.get("n")
    result.expected = announced if isinstance(announced, int) else 0
    for case, judged in judgements(corpus):
        result.add(case.data.get("id", case.line), judged)
        if progress is not None:
            progress(result)
    return result
