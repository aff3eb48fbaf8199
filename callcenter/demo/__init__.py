"""Callers, agents and specialists who play at a hotline: to be watched, and to load a running system."""
