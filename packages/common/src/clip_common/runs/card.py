"""The model card: a run's README.md, in the format of the Hugging Face hub."""

from collections.abc import Mapping, Sequence
from typing import Any

from clip_common.tables import markdown_table


def format_model_card(
    *,
    title: str,
    summary: str,
    results: Mapping[str, Any],
    usage: str,
    sections: Mapping[str, str],
    tags: Sequence[str],
    licence: str,
    config_yaml: str,
    environment: Mapping[str, Any],
) -> str:
    """Return the card as Markdown; see `Run.write_model_card`."""
    tag_lines = "\n".join(f"- {tag}" for tag in tags)
    parts = [f"---\nlicense: {licence}\ntags:\n{tag_lines}\n---", f"# {title}", summary.strip()]
    if results:
        rows = [[name, _show(value)] for name, value in results.items()]
        parts += ["## Results", markdown_table(["", ""], rows)]
    if usage:
        parts += ["## Use", f"```python\n{usage.strip()}\n```"]
    for heading, text in sections.items():
        parts += [f"## {heading}", text.strip()]
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
    parts += ["## Configuration", f"```yaml\n{config_yaml.strip()}\n```"]
    parts += ["## Environment", f"Python {environment.get('python', '')}; {versions}."]
    return "\n\n".join(parts) + "\n"


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
