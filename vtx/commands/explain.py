"""``vtx explain``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vtx.commands.base import FINE, Command
from vtx.commands.output import Output, add_output_arguments
from vtx.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from vtx.explanation import Explanation

__all__ = ["Explain"]

SCHEMA = "vtx.explain/1"


class Explain(Command):
    """Explain a field, exit reason, control, error, MSR, instruction, event, check or EPT entry.

    QUERY is a name (the manual's or KVM's, in any case) or a number, which is explained
    as everything it fits. A leading word chooses one kind: field, exit, control, error,
    msr, instruction, event, check or ept. A trailing number is decoded bit by bit. Words
    that name nothing are searched for. Examples:

    vtx explain GUEST_RIP
    vtx explain error 7
    vtx explain EPT_VIOLATION --qualification 0x182
    vtx explain instruction rdmsr
    vtx explain guest.rflags.if_external_interrupt
    vtx explain interruption information 0x80000b0e
    vtx explain ept pte 0x80000037
    vtx explain secondary controls
    """

    name = "explain"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        parser.add_argument("query", metavar="QUERY", nargs="+", help="name or number")
        parser.add_argument(
            "--qualification", metavar="X", help="exit qualification to decode bit by bit"
        )
        add_output_arguments(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Print what the query can mean."""
        output = Output(args)
        qualification = _number(args.qualification)
        explanations = _explain(args.query, qualification)
        if output.format == "json":
            articles = [article for e in explanations for article in e.as_dict()["articles"]]
            query = " ".join(args.query)
            output.write_json({"schema": SCHEMA, "query": query, "articles": articles})
        elif output.format == "csv":
            output.write(_csv(explanations))
        else:
            output.write("\n\n".join(map(str, explanations)) + "\n")
        return FINE


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise UsageError(f"--qualification wants a number of 64 bits, not {text!r}")
    return value


def _explain(words: list[str], qualification: int | None) -> list[Explanation]:
    """Explain all words together (``EPT violation``), or else each of them."""
    from vtx.explanation import explain

    try:
        return [explain(" ".join(words), qualification=qualification)]
    except UnknownName as unknown:
        if len(words) == 1:
            raise
        try:
            return [explain(word, qualification=qualification) for word in words]
        except UnknownName:
            raise unknown from None


def _csv(explanations: list[Explanation]) -> str:
    import csv
    import io

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["kind", "name", "number", "label", "value", "meaning"])
    for article in (article for e in explanations for article in e.articles):
        start = [article.kind, article.name, article.number]
        writer.writerow([*start, "title", "", article.title])
        writer.writerow([*start, "summary", "", article.summary])
        for label, fact in article.facts.items():
            writer.writerow([*start, label, "", fact])
        for table in article.tables:
            for row in table.rows:
                writer.writerow([*start, f"bits {row.bits} {row.name}", row.value, row.meaning])
    return out.getvalue()
