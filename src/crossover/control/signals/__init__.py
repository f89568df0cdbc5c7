"""Streams of numbers turned into readings."""
