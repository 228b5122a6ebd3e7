"""Compatibility with the original CLIPSE: its files and column names."""
