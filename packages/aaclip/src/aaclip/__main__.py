"""`python -m aaclip`."""

from aaclip.cli.main import app

app()
