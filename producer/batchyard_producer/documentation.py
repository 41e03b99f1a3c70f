"""The OpenAPI document as one plain page: no script, nothing fetched from elsewhere. Pure."""

from __future__ import annotations

import json
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
code, pre { font: 14px/1.45 ui-monospace, monospace; background: #f2f4f6; border-radius: 4px }
code { padding: .1em .3em } pre { padding: .8rem; overflow-x: auto }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #d5dae0 } details { margin: .6rem 0 }
summary { cursor: pointer } table { border-collapse: collapse; margin: .5rem 0 }
td, th { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0 } .method { font-weight: 600 }
@media (prefers-color-scheme: dark) { body { background: #16191d; color: #d8dde3 } code, pre { background: #23282f } }
"""


def page(document: dict[str, Any]) -> str:
    """The whole page as HTML."""
    info = document["info"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}</p>",
        "<p>For programs: <a href='/openapi.json'>openapi.json</a></p>",
    ]
    for tag in document["tags"]:
        parts.append(f"<h2>{escape(tag['name'])}</h2>")
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if tag["name"] in operation["tags"]:
                    parts.append(_operation(method, path, operation))
    parts.append("<h2>Schemas</h2>")
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts.append(f"<details id='schema-{escape(name)}'><summary><code>{escape(name)}</code> ")
        parts.append(f"{escape(_first_line(schema.get('description', '')))}</summary>")
        parts.append(f"<pre>{escape(json.dumps(schema, indent=2, ensure_ascii=False))}</pre></details>")
    return "".join(parts)


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    head = f"<span class=method>{escape(method.upper())}</span> <code>{escape(path)}</code>"
    parts = [f"<details><summary>{head} {escape(operation['summary'])}</summary>"]
    if "description" in operation:
        parts.append(f"<p>{escape(operation['description'])}</p>")
    if "x-batchyard-scope" in operation:
        parts.append(f"<p>Scope of the key: <code>{escape(operation['x-batchyard-scope'])}</code></p>")
    if "parameters" in operation:
        rows = (
            f"<tr><td><code>{escape(p['name'])}</code><td>{escape(p['in'])}<td>{escape(p.get('description', ''))}"
            for p in operation["parameters"]
        )
        parts.append(f"<table><tr><th>Parameter<th>in<th>{''.join(rows)}</table>")
    if "requestBody" in operation:
        parts.append(f"<p>Body: {_content(operation['requestBody']['content'])}</p>")
    answers = (
        f"<tr><td>{escape(status)}<td>{escape(response['description'])}<td>{_content(response.get('content', {}))}"
        for status, response in operation["responses"].items()
    )
    parts.append(f"<table><tr><th>Status<th>Meaning<th>Content{''.join(answers)}</table></details>")
    return "".join(parts)


def _content(content: dict[str, Any]) -> str:
    shown = []
    for media, entry in content.items():
        name = entry.get("schema", {}).get("$ref", "").rpartition("/")[2]
        link = f" <a href='#schema-{escape(name)}'>{escape(name)}</a>" if name else ""
        shown.append(f"<code>{escape(media)}</code>{link}")
    return ", ".join(shown)


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
