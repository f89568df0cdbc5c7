"""What a recipe will cost and should reach, before anything is trained: sizes, memory, hours, expected losses."""
