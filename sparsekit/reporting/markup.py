"""HTML from Python values: text is escaped unless it was made here."""

from __future__ import annotations

import html
import re

# Shown as escapes: what HTML and XML cannot hold (control characters but for tab and newline, lone surrogates of file
# names that are not UTF-8, noncharacters), and what turns the direction of the text that follows.
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\u202a-\u202e\u2066-\u2069]"
)
_VOID = frozenset({"meta"})


class Markup(str):
    """Text that is markup already: `element` takes it as it is."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | int | None) -> Markup:
    """One element, well-formed as HTML and as XML.

    Args:
        tag: its name.
        children: what it holds, in order; a plain string is text and is escaped.
        attributes: ``aria_label`` is written ``aria-label`` and ``class_`` is ``class``; None leaves one out.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_escaped(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Markup(f"<{tag}{written}/>")
    return Markup(f"<{tag}{written}>{joined(*children)}</{tag}>")


def joined(*parts: str) -> Markup:
    """The parts side by side; a plain string is text and is escaped."""
    return Markup("".join(part if isinstance(part, Markup) else _escaped(part) for part in parts))


def _escaped(text: str) -> str:
    return html.escape(_UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text))
