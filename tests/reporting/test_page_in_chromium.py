"""The page in a real browser: nothing is loaded, nothing complains, everything can be read on a desk and on a phone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import samples
from chromium import MISSING, REQUIRED, Chromium, executable

from sparsekit.reporting.page import page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(executable() is None and not os.environ.get(REQUIRED), reason=MISSING),
]

DESK, PHONE = (1280, 900), (390, 844)
EVERY_REPORT = pytest.mark.parametrize("name", [*samples.ALL, "many"])

# The contrast of every visible element of a kind with what lies behind it, as WCAG 2 defines it: its lowest by name.
CONTRASTS = """
(() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = colour => {
    const [r, g, b] = numbers(colour).map(v => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor, parts = numbers(colour);
      if (parts.length < 4 || parts[3] === 1) return colour;
      if (parts[3] !== 0) throw new Error('a translucent ground: ' + colour);
    }
    throw new Error('no ground');
  };
  const holdsText = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  const found = {};
  for (const e of document.querySelectorAll('SELECTOR')) {
    const drawn = e.tagName === 'rect';
    if (!e.checkVisibility() || !(drawn || holdsText(e))) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(drawn ? style.fill : style.color), light(ground(e))].sort((a, b) => b - a);
    const key = [e.tagName.toLowerCase(), ...e.classList].join('.');
    found[key] = Math.min(found[key] ?? 99, (a + 0.05) / (b + 0.05));
  }
  return found;
})()
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    if executable() is None:
        pytest.fail(MISSING)
    tab = Chromium(tmp_path_factory.mktemp("chromium") / "profile")
    yield tab
    tab.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    files = {}
    for name, make in {**samples.ALL, "many": samples.many}.items():
        files[name] = folder / f"{name.replace(' ', '_')}.html"
        files[name].write_text(page(make()), encoding="utf-8")
    return files


def open_all(browser: Chromium) -> None:
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")


def complaints(browser: Chromium) -> list[dict]:
    loud = {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Page.javascriptDialogOpening"}
    return [event for event in browser.events if event["method"] in loud]


@EVERY_REPORT
def test_nothing_else_is_loaded_and_nothing_complains(browser, pages, name):
    browser.open(pages[name], *DESK)
    open_all(browser)
    browser.run("document.querySelectorAll('a').forEach(a => a.click())")
    assert complaints(browser) == []
    requests = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert {url.partition("#")[0] for url in requests} == {pages[name].as_uri()}
    assert browser.run("performance.getEntriesByType('resource').length") == 0


def test_the_pages_own_policy_refuses_what_would_be_smuggled_in(browser, pages, tmp_path):
    """Were a name ever written without escaping, the browser would still run and load nothing."""
    broken = tmp_path / "broken.html"
    smuggled = (
        "<script>document.title = 'owned'</script><img src='http://localhost:9/x'><p style='color: red'>x</p></h1>"
    )
    broken.write_text(pages["hostile"].read_text(encoding="utf-8").replace("</h1>", smuggled, 1), encoding="utf-8")
    browser.open(broken, *DESK)
    assert browser.run("document.title") != "owned"
    failed = {e["params"]["requestId"]: e["params"] for e in browser.events if e["method"] == "Network.loadingFailed"}
    wanted = {
        e["params"]["requestId"]: e["params"] for e in browser.events if e["method"] == "Network.requestWillBeSent"
    }
    foreign = [id_ for id_, params in wanted.items() if params["request"]["url"] != broken.as_uri()]
    assert len(foreign) == 1
    assert failed[foreign[0]]["blockedReason"] == "csp"
    refusals = [e["params"]["entry"]["text"] for e in complaints(browser)]
    assert sum("Content Security Policy" in refusal for refusal in refusals) >= 3


@EVERY_REPORT
@pytest.mark.parametrize("size", [DESK, PHONE, (320, 640)], ids=["desk", "phone", "small phone"])
def test_nothing_is_wider_than_the_window(browser, pages, name, size):
    browser.open(pages[name], *size)
    for unfolded in (False, True):
        if unfolded:
            open_all(browser)
        assert browser.run("document.documentElement.scrollWidth") <= size[0]
        assert browser.run("window.innerWidth") == size[0]
        # What sticks out of its own box is cut off or lies over something else.
        wide = (
            "[...document.querySelectorAll('main *')]"
            ".filter(e => e.checkVisibility() && !e.closest('svg, .label, thead'))"
            ".filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 200))"
        )
        assert browser.run(wide) == []


@pytest.mark.parametrize("name", ["residual network", "odd cases", "hostile", "without gain"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_all_text_stands_out_from_its_ground(browser, pages, name, scheme, size):
    browser.open(pages[name], *size, scheme)
    open_all(browser)
    contrasts = browser.run(CONTRASTS.replace("SELECTOR", "body *:not(rect)"))
    assert {"p", "p.lead", "dt", "span.muted", "span.beside", "span.chip", "th", "caption"} <= set(contrasts)
    assert {key: ratio for key, ratio in contrasts.items() if ratio < 4.5} == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_bars_stand_out_from_their_ground(browser, pages, scheme):
    """3 to 1, as WCAG asks of what is drawn."""
    browser.open(pages["residual network"], *DESK, scheme)
    contrasts = browser.run(CONTRASTS.replace("SELECTOR", ".bar .kept, .bar .neutral"))
    assert set(contrasts) == {"rect.kept", "rect.neutral"}
    assert min(contrasts.values()) >= 3


def test_light_and_dark_differ(browser, pages, tmp_path):
    grounds = {}
    for scheme in ("light", "dark"):
        browser.open(pages["residual network"], *DESK, scheme)
        grounds[scheme] = browser.run("getComputedStyle(document.body).backgroundColor")
        browser.screenshot(tmp_path / f"{scheme}.png")
    assert grounds["light"] == "rgb(255, 255, 255)"
    assert max(int(part) for part in grounds["dark"][4:-1].split(",")) < 40
    assert (tmp_path / "light.png").read_bytes() != (tmp_path / "dark.png").read_bytes()


def test_layers_open_by_mouse_and_keyboard(browser, pages):
    browser.open(pages["residual network"], *DESK)
    shown = "[...document.querySelectorAll('.details')].filter(e => e.checkVisibility()).length"
    assert browser.run(shown) == 0
    browser.run("document.querySelectorAll('summary')[3].scrollIntoView()")
    place = browser.run("(r => [r.x + 40, r.y + 10])(document.querySelectorAll('summary')[3].getBoundingClientRect())")
    for kind in ("mousePressed", "mouseReleased"):
        browser.send("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)
    assert browser.run(shown) == 1
    browser.run("document.querySelectorAll('summary')[4].focus()")
    for kind in ("keyDown", "keyUp"):
        browser.send(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
        )
    assert browser.run(shown) == 2


@pytest.mark.parametrize("name", ["residual network", "odd cases"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_mask_pictures_have_a_square_for_every_weight(browser, pages, name, size):
    browser.open(pages[name], *size)
    open_all(browser)
    report = samples.ALL[name]()
    masks = [layer.mask for layer in report.layers if layer.mask]
    drawn = browser.run(
        "[...document.querySelectorAll('.mask')].map(svg => ({"
        "cells: [...svg.querySelectorAll('path')].map(p => p.getAttribute('d').split('M').length - 1),"
        "length: [...svg.querySelectorAll('path')].map(p => p.getTotalLength()),"
        "box: [svg.getBoundingClientRect().width, svg.getBoundingClientRect().height]}))"
    )
    assert len(drawn) == len(masks)
    for picture, mask in zip(drawn, masks, strict=True):
        signs = "".join(mask)
        assert picture["cells"] == [signs.count("."), signs.count("#")]
        assert picture["length"] == pytest.approx([10 * cells for cells in picture["cells"]])
        assert picture["box"][0] > 4 * len(mask[0])
        assert picture["box"][1] > 4 * len(mask)


def test_bars_are_as_long_on_the_screen_as_the_facts_say(browser, pages):
    browser.open(pages["residual network"], *PHONE)
    layers = [layer for layer in samples.residual_network().layers if layer.decision.pruned]
    drawn = browser.run(
        "[...document.querySelectorAll('.pruned summary')].map(s => [...s.querySelectorAll('.bar')].map(b =>"
        "b.lastChild.getBoundingClientRect().width / b.getBoundingClientRect().width))"
    )
    assert drawn == [pytest.approx([layer.planned.density, layer.retained], abs=0.02) for layer in layers]


def test_hostile_names_change_nothing_around_them(browser, pages):
    browser.open(pages["hostile"], *DESK)
    assert browser.run("document.querySelectorAll('script, img, iframe, main style').length") == 0
    assert browser.run("document.querySelectorAll('.layers > li').length") == len(samples.HOSTILE_NAMES)
    names = browser.run("[...document.querySelectorAll('.what code')].map(e => e.textContent)")
    assert names[:3] == list(samples.HOSTILE_NAMES[:3])
    heights = browser.run("[...document.querySelectorAll('summary')].map(e => e.getBoundingClientRect().height)")
    assert max(heights) < 150  # a name of 5,000 characters is folded


def test_printed_it_is_light_and_some_pages_long(browser, pages, tmp_path):
    browser.open(pages["residual network"], *DESK, "dark")
    browser.send(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    browser.send("Emulation.setEmulatedMedia", media="", features=[])
    assert ground == "rgb(255, 255, 255)"
    browser.print(tmp_path / "printed.pdf")
    printed = (tmp_path / "printed.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    assert 2 <= printed.count(b"/Type /Page\n") <= 8


@pytest.mark.parametrize("name", ["residual network", "many"])
def test_screenshots_to_look_at(browser, pages, tmp_path, name):
    for look, (size, scheme) in {
        "light": (DESK, "light"),
        "dark": (DESK, "dark"),
        "phone": (PHONE, "light"),
        "phone-dark": (PHONE, "dark"),
    }.items():
        browser.open(pages[name], *size, scheme)
        browser.run("document.querySelectorAll('details')[1].open = true")
        picture = tmp_path / f"{look}.png"
        browser.screenshot(picture)
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 20_000  # a blank one has 5 to 10 kB
