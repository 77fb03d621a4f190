"""Sphinx extension: what search engines and link previews read of a page, and a sitemap.

A page is described by its first paragraph. The address of the published book is one setting,
`html: baseurl` of `_config.yml`.
"""

import html
from pathlib import Path

from docutils import nodes

LONGEST = 200  # characters of a description


def description(doctree: nodes.document) -> str:
    """The first paragraph of a page outside of figures, as plain text on one line."""
    for paragraph in doctree.findall(nodes.paragraph):
        text = " ".join(paragraph.astext().split())
        if isinstance(paragraph.parent, nodes.section) and text:
            cut = text[:LONGEST].rpartition(" ")[0]
            return text if len(text) <= LONGEST else f"{cut} ..."
    return ""


def describe(app, page: str, template: str, context: dict, doctree) -> None:
    """Add description and link preview; the first page's title is the book's, once."""
    if doctree is None:
        return
    if page == app.config.root_doc:
        context["docstitle"] = ""
    title = (
        html.unescape(context["title"]) if page != app.config.root_doc else app.config.html_title
    )
    tags = {"og:type": "website", "og:title": title, "og:site_name": app.config.html_title}
    if address := app.config.html_baseurl:
        tags["og:url"] = address + app.builder.get_target_uri(page)
    lines = [f'<meta property="{k}" content="{html.escape(v)}" />' for k, v in tags.items()]
    if text := html.escape(description(doctree)):
        lines.append(f'<meta name="description" content="{text}" />')
        lines.append(f'<meta property="og:description" content="{text}" />')
    context["metatags"] = "\n".join([context.get("metatags", ""), *lines])


def write_sitemap(app, error) -> None:
    """List the addresses of all pages in `sitemap.xml`, where it is known what they will be."""
    if error or app.builder.format != "html" or not app.config.html_baseurl:
        return
    pages = sorted(app.builder.get_target_uri(name) for name in app.env.found_docs)
    rows = [f"<url><loc>{html.escape(app.config.html_baseurl + p)}</loc></url>" for p in pages]
    lines = ['<?xml version="1.0" encoding="utf-8"?>']
    lines += ['<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">', *rows, "</urlset>"]
    Path(app.outdir, "sitemap.xml").write_text("\n".join(lines) + "\n")


def setup(app) -> dict:
    """Called by sphinx."""
    app.connect("html-page-context", describe)
    app.connect("build-finished", write_sitemap)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
