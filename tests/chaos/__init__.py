"""Faults on purpose, on the real program: `python -m tests.chaos [NAME…]`; the short forms are tests/e2e/test_chaos_*.py."""
