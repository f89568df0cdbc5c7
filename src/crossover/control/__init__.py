"""Numbers in, decisions out; never imports torch."""
