"""Views of a run in the tools that people watch runs with; the run folder stays the truth."""
