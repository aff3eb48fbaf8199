"""Recordings of calls, and later what is judged by them."""
