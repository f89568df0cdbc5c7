"""Readings turned into a mix; pure functions of what they are given."""
