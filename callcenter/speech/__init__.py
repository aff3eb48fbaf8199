"""Prompts rendered from text."""
