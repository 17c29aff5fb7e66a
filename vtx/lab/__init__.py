"""What it costs: CPU profiles, the ledger of priced events, comparisons and reports."""
