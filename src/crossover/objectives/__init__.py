"""Objectives as batch transforms, noise schedules, and the one weighted loss."""
