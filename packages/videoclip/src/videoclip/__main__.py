"""`python -m videoclip`."""

from videoclip.cli.main import app

app()
