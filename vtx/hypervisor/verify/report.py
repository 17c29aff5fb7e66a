"""The result of a verification as text and as rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vtx.hypervisor.verify.verification import Verification

__all__ = ["rows", "text"]

#: So many differences are shown; the JSON document has them all.
_SHOWN = 20
#: So many ids of a list are shown.
_IDS = 12


def text(result: Verification) -> str:
    """Return the result of one corpus as text."""
    sides = result.sdm_side + len(result.other)
    skipped = sum(map(len, result.skipped.values()))
    lines = [
        f"{result.corpus} ({result.format}): {_cases(result.cases)}",
        f"  agree      {result.agree:7}",
        f"  differ     {len(result.differ):7}",
        f"  deviations {sides:7}",
    ]
    if sides:
        lines[-1] += f"   the manual is on our side in {result.sdm_side}"
    lines += [f"    {count:7}  {name}" for name, count in sorted(result.deviations.items())]
    if result.other:
        lines.append(f"    not on our side: {_ids(result.other)}")
    if skipped:
        lines.append(f"  skipped    {skipped:7}")
        lines += [f"    {len(ids):7}  {why}: {_ids(ids)}" for why, ids in result.skipped.items()]
    for name, ours, theirs in result.differ[:_SHOWN]:
        lines += ["", f"case {name}", f"  ours    {_side(ours)}", f"  theirs  {_side(theirs)}"]
    if len(result.differ) > _SHOWN:
        rest = len(result.differ) - _SHOWN
        lines += ["", f"{rest} more differ; --format json has them all"]
    return "\n".join(lines)


def _cases(count: int) -> str:
    return f"{count} case{'' if count == 1 else 's'}"


def _ids(ids: list[Any]) -> str:
    more = f" ... ({len(ids) - _IDS} more)" if len(ids) > _IDS else ""
    return " ".join(map(str, ids[:_IDS])) + more


def _side(side: Mapping[Any, Any]) -> str:
    return " ".join(f"{key}={_value(value)}" for key, value in _flat(side)) or "nothing of this"


def _flat(side: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what a side says, fields by name."""
    from vtx.facts.fields import FIELDS, Field

    for key, value in side.items():
        name = FIELDS[Field(key)].name if isinstance(key, int) and key in FIELDS else str(key)
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + " ".join(map(_value, value)) + "]"
    return f"{value:#x}" if isinstance(value, int) else str(value)


def rows(result: Verification) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Yield one row a difference, a case on the other side, and a skipped case."""
    for name, ours, theirs in result.differ:
        left, right = dict(_flat(ours)), dict(_flat(theirs))
        for key in {**left, **right}:
            sides = (_value(left.get(key, "")), _value(right.get(key, "")))
            yield result.corpus, str(name), "differ", key, *sides
    for name in result.other:
        yield result.corpus, str(name), "other", "", "", ""
    for why, names in result.skipped.items():
        for name in names:
            yield result.corpus, str(name), "skipped", why, "", ""
