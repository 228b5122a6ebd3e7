"""`edgeglass`: the commands. Each parses its arguments, calls the API and prints the result."""

from clip_common import cli
from edgeglass.cli.data import data
from edgeglass.cli.index import add_index_verbs

app = cli.Application("edgeglass", help="Images, text and audio in one nested space: align, embed, search.")
add_index_verbs(app)
app.add_typer(data, name="data")
cli.add_prefetch_verb(app, package="edgeglass", example="sentence-transformers/all-MiniLM-L6-v2")
cli.add_config_verb(app, package="edgeglass", example="--config tiny > my.yaml")
