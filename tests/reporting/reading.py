"""Read a report's page back: what is on it, as a reader takes it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element, fromstring


class ReadPage:
    """The elements of a page.

    Attributes:
        root: the html element.
    """

    def __init__(self, page: str) -> None:
        self.root: Element = fromstring(page)

    def section(self, title: str) -> Element:
        """The section under this heading."""
        return next(s for s in self.root.iter("section") if text(s.find("h2")) == title)

    def titles(self) -> list[str]:
        return [text(section.find("h2")) for section in self.root.iter("section")]

    def rows(self) -> list[Element]:
        """The layers' rows."""
        return [] if "Layer by layer" not in self.titles() else self.section("Layer by layer").findall("ol/li")

    def tiles(self) -> dict[str, Element]:
        """What the summary says, by title."""
        return {text(tile.find("dt")): tile for tile in self.root.findall("body/main/dl/div")}


def text(element: Element | None) -> str:
    assert element is not None
    return re.sub(r"[ \n\t]+", " ", "".join(element.itertext())).strip()


def numbers(element: Element | None) -> list[float]:
    """The unrounded numbers in it."""
    assert element is not None
    return [float(data.attrib["value"]) for data in element.iter("data")]


def facts(row: Element) -> dict[str, Element]:
    """The folded facts of one layer, by title."""
    return {text(fact.find("dt")): fact.find("dd") for fact in row.iter("div") if fact.find("dt") is not None}


def by_class(element: Element, name: str) -> Iterator[Element]:
    return (found for found in element.iter() if name in found.get("class", "").split())


def histogram(table: Element) -> list[tuple[int, list[float], list[float]]]:
    """Non-zeros, groups as stored, groups after pruning; an empty list for what is not known."""
    return [(int(numbers(first)[0]), numbers(stored), numbers(planned)) for first, stored, planned in _body(table)]


def _body(table: Element) -> list[Element]:
    return table.findall("tbody/tr")


def bar_lengths(svg: Element) -> list[float]:
    """The lengths of a bar's parts, 0 to 1."""
    return [float(rect.attrib["width"].rstrip("%")) / 100 for rect in svg.iter("rect")]


def mask(svg: Element) -> tuple[str, ...]:
    """The picture's squares as a mask, from where they lie."""
    places = {
        (float(y), float(x)): sign
        for kind, sign in (("kept", "#"), ("cut", "."))
        for path in by_class(svg, kind)
        for x, y in re.findall(r"M([\d.]+) ([\d.]+)h", path.attrib["d"])
    }
    rows = sorted({y for y, _ in places})
    return tuple("".join(sign for (y, _), sign in sorted(places.items()) if y == row) for row in rows)


def columns_of(svg: Element) -> list[float]:
    """Where the columns of a mask's picture begin."""
    return sorted({float(x) for path in svg.iter("path") for x in re.findall(r"M([\d.]+) ", path.attrib["d"])})
