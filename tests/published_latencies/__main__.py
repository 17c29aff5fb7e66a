"""Write ``docs/latencies.md`` and its picture: ``python -m tests.published_latencies``."""

from __future__ import annotations

from tests.published_latencies.page import PAGE, PICTURE, page, picture

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    PICTURE.write_text(picture(), encoding="utf-8")
