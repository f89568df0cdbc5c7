"""The backbone: shapes and counts, attention patterns and their back ends, transformers' models."""
