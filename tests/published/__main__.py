"""Write ``docs/published.md``: ``python -m tests.published``."""

from __future__ import annotations

from tests.published.page import PAGE, page

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
