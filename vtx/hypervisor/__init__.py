"""What software does: a VMM as Python handlers, guests as traces, and their replay."""
