"""Tasks of lm-evaluation-harness: where their data stand on a disk, and what becomes of their answers."""
