"""HTML pages of a report: one self-contained file without scripts, pictures embedded."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from frcnn_jax.files import write_text

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --link: #1a5fb4 }
@media (prefers-color-scheme: dark) { :root { --link: #8ab4f8 } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1120px; margin: 0 auto; padding: 1rem }
h1, h2, h3 { line-height: 1.2 } h2 { margin: 3rem 0 .5rem; border-top: 1px solid var(--line); padding-top: 1rem }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem }
a { color: var(--link) } p { max-width: 90ch } .wide { overflow-x: auto }
details { margin-bottom: 1rem }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .5rem; text-align: right; border-bottom: 1px solid var(--line) }
th { font-weight: 600 } thead { white-space: nowrap } th:first-child { text-align: left } tfoot { font-weight: 600 }
.bar { display: flex; width: 9rem; margin-left: auto; height: .9rem; background: var(--soft) }
dt { font-weight: 600; margin-top: .4rem } dd { margin-left: 0; max-width: 90ch }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .3em }
.class { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: center }
.pictures { display: flex; flex-wrap: wrap; gap: .8rem; align-items: flex-end }
figure { margin: 0; width: 256px } figcaption { font-size: .8rem; line-height: 1.35; overflow-wrap: anywhere }
img { display: block; max-width: 100%; height: auto } svg { width: 240px; height: 180px }
</style>
</head>
<body>"""


def write_page(path: Path, title: str, body: Sequence[str]) -> None:
    """Write a page atomically.

    Args:
        path: The file to create or replace.
        title: Its title.
        body: HTML elements.
    """
    page = [_HEAD.replace("TITLE", escape(title)), *body, "</body>\n</html>\n"]
    write_text(path, "\n".join(page), errors="backslashreplace")


def figure(picture: Image.Image, *lines: str) -> str:
    """Return a picture as an HTML element, with lines of text below it."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85, subsampling=0)
    source = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return f"""<figure><img src="{source}" width="{picture.width}" height="{picture.height}" alt="">
<figcaption>{"<br>".join(map(escape, lines))}</figcaption></figure>\n"""
