"""What pyproject.toml cannot say: the description on an index page is the README without links into the checkout."""

import re
from pathlib import Path

from setuptools import setup


def description() -> str:
    """Return the README with relative links replaced by their texts, and without pictures of the checkout."""
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    text = re.sub(r'<img [^>]*src="(?!https?:)[^>]*>\n*', "", text)
    text = re.sub(r"<!--.*?-->\n?", "", text)
    return re.sub(r"\[([^\]]*)\]\((?!https?:)([^)]*)\)", lambda link: _text(*link.groups()), text)


def _text(text: str, target: str) -> str:
    """Return a link's text, and its file where that is not the text."""
    return f"`{text}`" if text == target else f"{text} (`{target}`)"


setup(long_description=description(), long_description_content_type="text/markdown")
