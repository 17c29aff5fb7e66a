"""Published figures on translation, beside what vtx simulates: makes ``docs/published.md``."""
