"""Decisions: standard library only; no async, no clock, no logging."""
