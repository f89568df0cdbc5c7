"""What happened and what it proves; never imports torch."""
