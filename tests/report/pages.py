"""Reads a page as a browser would, as far as tests need it."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from html.parser import HTMLParser
from typing import Any

_VOID = frozenset({"meta", "link", "input", "br", "img", "hr"})
_FORMATS = {"u1": "B", "u2": "H", "u4": "I", "u8": "Q", "f8": "d"}
#: A name that runs if a page forgets to escape it, in an element, an attribute or a script.
EVIL = "</script><script>window.evil=1</script><img src=x onerror=window.evil=2>\"'&"


class Page(HTMLParser):
    """Elements, their attributes and texts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append((dict(attributes), ""))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data
        elif self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def data(self) -> Any:
        return next(json.loads(text) for given, text in self.scripts if given.get("id") == "data")

    @property
    def code(self) -> list[str]:
        return [text for given, text in self.scripts if given.get("type") != "application/json"]

    @property
    def policy(self) -> str:
        found = [a["content"] for t, a in self.tags if t == "meta" and "http-equiv" in a]
        assert found[0] is not None
        return found[0]

    def column(self, key: str) -> list[Any]:
        column = next(c for c in self.data["exits"]["columns"] if c["key"] == key)
        values = unpacked(column)
        return [column["values"][v] for v in values] if "values" in column else values


def unpacked(packed: dict[str, str]) -> list[Any]:
    raw = base64.b64decode(packed["data"])
    letter = _FORMATS[packed["type"]]
    return list(struct.unpack(f"<{len(raw) // struct.calcsize(letter)}{letter}", raw))


def check_self_contained(page: Page) -> None:
    """Nothing is fetched, nothing runs but what was put there, nothing is left open."""
    assert not page.open
    assert "default-src 'none'" in page.policy
    assert "unsafe-inline" not in page.policy.partition("script-src")[2].partition(";")[0]
    for code in page.code:
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in page.policy
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "action", "data", "srcset"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:,")), (tag, target)
