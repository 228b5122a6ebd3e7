"""`python -m clipse`."""

from clipse.cli.main import app

app()
