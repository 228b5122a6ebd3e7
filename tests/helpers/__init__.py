"""What tests of several packages share; `pythonpath` in the root's pyproject.toml makes it importable."""
