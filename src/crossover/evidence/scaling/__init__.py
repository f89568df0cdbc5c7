"""Scaling laws of repeated text: fitted per family, with intervals, and where one family overtakes another."""
