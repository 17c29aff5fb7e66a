"""Tests of reading and judging VMCS dumps."""
