"""A judgement as text to read, as data for programs, and as rows for a spreadsheet."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from vtx.explanation.causes import cause_of
from vtx.facts.exits import EXITS, ExitReason
from vtx.facts.fields import FIELDS, FieldInfo
from vtx.facts.instruction_errors import INSTRUCTION_ERRORS, InstructionError
from vtx.hypervisor.check import BrokenRule, Judgement, Undecidable, is_settled
from vtx.hypervisor.check_bits import bits_that_matter, hexadecimal, short
from vtx.hypervisor.dumps.model import Verdict

__all__ = ["COLUMNS", "as_dict", "as_line", "rows", "text"]

_WIDTH = 100
_FORMS = {"kvm": "KVM dump", "xen": "Xen dump", "yaml": "VMCS in YAML"}
_FEW_IDS, _MANY_NEEDS = 6, 24


class _Shown(NamedTuple):
    """A field that a broken rule looks at."""

    info: FieldInfo
    value: int
    bits: str
    line: int | None


def _fields(judgement: Judgement, rule: BrokenRule) -> Iterator[_Shown]:
    dump = judgement.dump
    for name, bits in rule.check.reads.items():
        if name in dump.values:
            value = dump.values[name]
            info = FIELDS[name]
            yield _Shown(info, value, bits_that_matter(info, value, bits), dump.lines.get(name))


# ---- Words ---------------------------------------------------------------------------------


def verdict_words(verdict: Verdict) -> str:
    """Return a verdict as words."""
    if verdict.kind == "vmfail_valid" and verdict.error is not None:
        known = verdict.error in INSTRUCTION_ERRORS
        what = INSTRUCTION_ERRORS[InstructionError(verdict.error)].text if known else "unknown"
        return f"VMfail, VM-instruction error {verdict.error} ({what})"
    basic = verdict.basic_reason
    if basic is None:
        return "none is shown"
    title = EXITS[ExitReason(basic)].sdm_title if basic in EXITS else "unknown"
    words = f"exit reason {basic} ({title}; the field holds {verdict.exit_reason:#010x})"
    if verdict.kind != "entry_failure":
        return f"an ordinary VM exit, {words}"
    if verdict.qualification is not None:
        words += f", exit qualification {short(verdict.qualification)}"
    return f"VM-entry failure, {words}"


_ASSUMED_WORDS = {
    "maxphyaddr": ("MAXPHYADDR {}", "--profile or --maxphyaddr"),
    "linear_bits": ("linear addresses of {} bits", "--profile or --linear-bits"),
    "ia32_vmx_basic.56": ("IA32_VMX_BASIC[56] = {}", "--profile"),
    "ia32_vmx_basic.58": ("IA32_VMX_BASIC[58] = {}", "--profile"),
    "ia32_efer.lma": ("the VMM runs in IA-32e mode", ""),
    "smm": ("the processor is not in SMM", ""),
}


def _assumed_words(assumed: dict[str, int]) -> str:
    words = [_ASSUMED_WORDS[name][0].format(value) for name, value in assumed.items()]
    options = {_ASSUMED_WORDS[name][1] for name in assumed} - {""}
    known = "--profile, --maxphyaddr and --linear-bits say what is not in a dump"
    return f"Assumed: {', '.join(words)}." + (f" {known[0].upper()}{known[1:]}." if options else "")


def _wrapped(text_: str, indent: int = 0, hanging: int = 0) -> str:
    return textwrap.fill(
        text_,
        _WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + hanging),
        break_on_hyphens=False,
    )


def _source(judgement: Judgement, source: str) -> str:
    dump = judgement.dump
    place = source
    if dump.last_line > dump.first_line:
        place += f", lines {dump.first_line}-{dump.last_line}"
    label = f" {dump.label}," if dump.label else ""
    count = len(dump.values)
    return f"{place}:{label} {_FORMS[dump.form]} with {count} field{'s' if count != 1 else ''}"


# ---- Text ----------------------------------------------------------------------------------


def text(judgement: Judgement, source: str) -> str:
    """Return a judgement for people, without a final newline.

    Parameters
    ----------
    judgement : Judgement
        What to say.
    source : str
        Name of the file.
    """
    parts = [_source(judgement, source), _verdict_text(judgement)]
    parts += [_rule_text(judgement, rule) for rule in judgement.failures]
    if not judgement.failures:
        parts.append(_nothing_found(judgement))
    parts += filter(None, (_undecidable_text(judgement), _otherwise_text(judgement)))
    if judgement.dump.unreadable:
        parts.append(_unreadable_text(judgement))
    parts.append(_wrapped(_assumed_words(judgement.assumed)) if judgement.assumed else "")
    return "\n\n".join(filter(None, parts))


def _verdict_text(judgement: Judgement) -> str:
    shown = judgement.dump.verdict
    lines = [_wrapped(f"The processor's verdict: {verdict_words(shown)}.")]
    if judgement.verdict_source == "rules":
        lines.append(
            _wrapped(f"What the broken rules lead to: {verdict_words(judgement.verdict)}.")
        )
        if shown.kind == "vmexit":
            lines.append("The exit that the dump shows is an older one, or no entry was tried.")
    lines += [_wrapped(f"{remark}.") for remark in judgement.dump.remarks]
    if judgement.dump.tangled:
        lines.append(
            _wrapped(
                "Lines of another dump are mixed into this one: only what a single line shows is "
                "judged."
            )
        )
    return "\n".join(lines)


def _nothing_found(judgement: Judgement) -> str:
    words = "No broken rule found."
    if judgement.verdict.kind in ("entry_failure", "vmfail_valid"):
        words = (
            "No broken rule found in what the dump shows: the one that led to the verdict is among "
            "those that cannot be judged."
        )
        if judgement.suspects:
            ids = ", ".join(check.id for check in judgement.suspects)
            words += f" There are CPUs on which these are broken: {ids}."
    return _wrapped(words)


def _rule_text(judgement: Judgement, rule: BrokenRule) -> str:
    check = rule.check
    heading = "Broken rule" if rule.explains_verdict is not False else "Also broken"
    lines = [f"{heading}: {check.id}", _wrapped(check.rule, 2)]
    shown = list(_fields(judgement, rule))
    width = max((len(field.info.name) for field in shown), default=0)
    for field in shown:
        value = hexadecimal(field.info, field.value)
        place = f" (line {field.line})" if field.line else ""
        bits = f"  {field.bits}" if field.bits else ""
        lines.append(f"    {field.info.name.ljust(width)}  {value}{place}{bits}")
    if rule.detail:
        lines.append(_wrapped(f"{rule.detail}.", 4))
    lines.append(_wrapped(f"Leads to {check.consequence}. {check.section.citation}.", 2))
    if cause := cause_of(check):
        lines.append(_wrapped(f"Likely cause: {cause}.", 2))
    if rule.hangs_on:
        words = " or ".join(rule.hangs_on)
        lines.append(_wrapped(f"This hangs on an assumption: with {words} the rule holds.", 2))
    if check.note:
        lines.append(_wrapped(f"Note: {check.note}.", 2))
    return "\n".join(lines)


def _grouped(undecidable: list[Undecidable]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for rule in undecidable:
        groups.setdefault(", ".join(rule.needs), []).append(rule.check.id)
    return groups


def _undecidable_text(judgement: Judgement) -> str:
    open_ = [rule for rule in judgement.undecidable if not judgement.is_settled(rule)]
    settled = len(judgement.undecidable) - len(open_)
    lines = []
    if open_:
        groups = _grouped(open_)
        rules = f"{len(open_)} rules" if len(open_) > 1 else "1 rule"
        lines.append(f"Cannot be judged: {rules}, for want of")
        if len(groups) > _MANY_NEEDS:
            counted = (f"{need} ({len(ids)})" for need, ids in groups.items())
            lines.append(_wrapped(", ".join(counted), 2))
        else:
            lines += [_wrapped(_group_words(*group), 2, 2) for group in groups.items()]
    if settled:
        rules = f"{settled} more rules" if settled > 1 else "1 more rule"
        lines.append(
            _wrapped(
                f"{rules} cannot be judged from the dump, but the processor has gone past them."
            )
        )
    return "\n".join(lines)


def _group_words(need: str, ids: list[str]) -> str:
    more = f" and {len(ids) - _FEW_IDS} more" if len(ids) > _FEW_IDS else ""
    return f"- {need}: {', '.join(ids[:_FEW_IDS])}{more}"


def _otherwise_text(judgement: Judgement) -> str:
    by_words: dict[str, list[str]] = {}
    for check, words in judgement.otherwise:
        by_words.setdefault(words, []).append(check.id)
    return "\n".join(
        _wrapped(f"With {words} these rules would be broken, too: {', '.join(ids)}.")
        for words, ids in by_words.items()
    )


def _unreadable_text(judgement: Judgement) -> str:
    lines = ["Could not be read, and is taken as unknown:"]
    for place in judgement.dump.unreadable:
        lines.append(_wrapped(f"- line {place.line}, {place.what}: {place.why}", 2, 2))
    return "\n".join(lines)


# ---- Data ----------------------------------------------------------------------------------


def as_dict(judgement: Judgement) -> dict[str, Any]:
    """Return a judgement as plain values, without the schema."""
    open_ = [_open(rule, judgement.is_settled(rule)) for rule in judgement.undecidable]
    return {**_findings(judgement), "undecidable": open_}


def as_line(judgement: Judgement, source: str) -> str:
    """Return a judgement as one line of JSON.

    The same few rules are undecidable in thousands of dumps, so they are written but once.
    """
    head = json.dumps({"file": source, **_findings(judgement)}, allow_nan=False)
    open_ = _open_lines(tuple(judgement.undecidable), judgement.dump.verdict)
    return f'{head[:-1]}, "undecidable": [{open_}]}}'


def _open(rule: Undecidable, settled: bool) -> dict[str, Any]:
    return {
        "id": rule.check.id,
        "needs": list(rule.needs),
        "on_some_cpus": rule.on_some_cpus,
        "settled": settled,
    }


@lru_cache(maxsize=1024)
def _open_lines(rules: tuple[Undecidable, ...], verdict: Verdict) -> str:
    return ", ".join(json.dumps(_open(rule, is_settled(rule, verdict))) for rule in rules)


def _findings(judgement: Judgement) -> dict[str, Any]:
    """Return everything but the undecidable rules."""
    dump, verdict = judgement.dump, judgement.verdict
    return {
        "form": dump.form,
        "label": dump.label,
        "lines": [dump.first_line, dump.last_line],
        "fields_read": len(dump.values),
        "verdict": {
            "kind": verdict.kind,
            "error": verdict.error,
            "exit_reason": verdict.exit_reason,
            "qualification": verdict.qualification,
            "source": judgement.verdict_source,
        },
        "failures": [_failure(judgement, rule) for rule in judgement.failures],
        "assumed": dict(judgement.assumed),
        "otherwise": [
            {"id": check.id, "broken_with": words} for check, words in judgement.otherwise
        ],
        "profile": judgement.profile,
        "tangled": dump.tangled,
        "unreadable": [
            {"line": place.line, "what": place.what, "why": place.why} for place in dump.unreadable
        ],
        "remarks": list(dump.remarks),
    }


def _failure(judgement: Judgement, rule: BrokenRule) -> dict[str, Any]:
    check, consequence = rule.check, rule.check.consequence
    return {
        "id": check.id,
        "rule": check.rule,
        "fields": [
            {
                "name": field.info.name,
                "value": hexadecimal(field.info, field.value),
                "bits": field.bits,
                "line": field.line,
            }
            for field in _fields(judgement, rule)
        ],
        "section": check.section.title,
        "error": consequence.error,
        "exit_reason": consequence.reason,
        "qualification": consequence.qualification,
        "explains_verdict": rule.explains_verdict,
        "cause": cause_of(check),
        "holds_with": list(rule.hangs_on),
        "detail": rule.detail,
        "note": check.note,
    }


#: Columns of :func:`rows`.
COLUMNS = (
    "file", "line", "label", "verdict", "error", "exit_reason", "qualification", "finding", "check",
    "section", "fields", "needs", "cause",
)  # fmt: skip


def rows(judgement: Judgement, source: str) -> Iterator[list[str]]:
    """Return one row for each finding, or one that says that there is none."""
    dump, verdict = judgement.dump, judgement.verdict
    shown = [
        source, dump.first_line, dump.label, verdict.kind, verdict.error,
        verdict.exit_reason, verdict.qualification,
    ]  # fmt: skip
    start = ["" if value is None else str(value) for value in shown]
    for rule in judgement.failures:
        fields = "; ".join(
            f"{field.info.name}={hexadecimal(field.info, field.value)}"
            for field in _fields(judgement, rule)
        )
        title = rule.check.section.title
        yield [*start, "broken", rule.check.id, title, fields, "", cause_of(rule.check) or ""]
    for open_ in judgement.undecidable:
        title = open_.check.section.title
        yield [*start, "undecidable", open_.check.id, title, "", ", ".join(open_.needs), ""]
    if not judgement.failures and not judgement.undecidable:
        yield [*start, "none", "", "", "", "", ""]
