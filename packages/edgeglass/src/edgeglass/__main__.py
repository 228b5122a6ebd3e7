"""`python -m edgeglass`."""

from edgeglass.cli.main import app

app()
