"""Measuring the CPU that vtx runs on: a tiny guest under KVM, timed with the time-stamp counter."""
