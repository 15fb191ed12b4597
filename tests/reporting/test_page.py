"""The page says what the facts say, and nothing else can get onto it."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import samples
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import ReadPage, bar_lengths, by_class, columns_of, facts, histogram, mask, numbers, text

from sparsekit.config import PruneConfig
from sparsekit.layer_sensitivity import LayerSensitivity, Sensitivity
from sparsekit.pattern import Pattern
from sparsekit.planning import LayerDecision, Plan
from sparsekit.reporting.facts import Estimate, GroupFacts, LayerFacts, Report
from sparsekit.reporting.numerals import count, quantity, share, short
from sparsekit.reporting.page import page
from sparsekit.result import LayerAccount
from sparsekit.target import TargetVerdict

UNHURRIED = settings(deadline=None)
EVERY_REPORT = pytest.mark.parametrize("make", samples.ALL.values(), ids=samples.ALL)


# Reports made up by hypothesis: whatever facts say, alike or not.

TEXTS = st.text(max_size=40) | st.sampled_from(samples.HOSTILE_NAMES)
SHARES = st.floats(0, 1)
PATTERNS = st.sampled_from([Pattern(2, 4), Pattern(1, 4), Pattern(4, 8), Pattern(3, 40)])


@st.composite
def group_facts(draw: st.DrawFn, m: int) -> GroupFacts | None:
    numbers_ = draw(st.none() | st.lists(st.integers(0, 10**9), min_size=m + 1, max_size=m + 1))
    return None if numbers_ is None else GroupFacts(draw(SHARES), tuple(numbers_), draw(st.integers(0, 10**9)))


@st.composite
def layer_facts(draw: st.DrawFn) -> LayerFacts:
    pattern = draw(PATTERNS)
    pruned = draw(st.booleans())
    verdict = TargetVerdict(True, conditions=(samples.INT8,))
    decision = LayerDecision(
        name=draw(TEXTS),
        op_type=draw(TEXTS),
        status="prune" if pruned else "skip",
        reason="eligible" if pruned else draw(st.sampled_from(["axis-too-short", "skip-layers"])),
        message=draw(TEXTS),
        shape=draw(st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9))),
        axis=draw(st.none() | st.integers(0, 1)),
        weight=draw(TEXTS),
        uses=tuple(draw(st.lists(TEXTS, max_size=3))),
        pattern=pattern,
        criterion="magnitude",
        verdict=draw(st.sampled_from([None, verdict])) if pruned else None,
    )
    columns = draw(st.integers(1, 12))
    return LayerFacts(
        decision,
        weights=draw(st.integers(0, 10**12)),
        stored=draw(group_facts(pattern.m)),
        planned=draw(group_facts(pattern.m)),
        retained=draw(st.none() | SHARES),
        mask=tuple(draw(st.lists(st.text("#.", min_size=columns, max_size=columns), max_size=5))),
        multiply_adds=draw(st.none() | st.integers(0, 10**15)),
        note=draw(TEXTS),
    )


ERRORS = st.none() | st.floats(0) | st.just(math.nan)
ACCOUNTS = st.builds(
    LayerAccount,
    TEXTS,
    TEXTS,
    error_before=ERRORS,
    error_after=ERRORS,
    retained=st.none() | SHARES,
    damping=st.floats(0, 1),
    iterations=st.integers(0, 99),
    seconds=st.floats(0, 1e6),
    shifted=st.booleans(),
    note=TEXTS,
)
MEASURED = st.builds(
    LayerSensitivity,
    TEXTS,
    TEXTS,
    st.just(()),
    st.just((4, 4)),
    PATTERNS,
    weights=st.just(16),
    multiply_adds=st.none() | st.integers(0, 10**15),
    error=ERRORS,
    output_error=ERRORS,
    note=TEXTS,
)
SENSITIVITIES = st.builds(
    Sensitivity,
    st.lists(MEASURED, max_size=3).map(tuple),
    ERRORS,
    st.sampled_from([(), ("out:0",)]),
    st.integers(1, 99),
    st.just(PruneConfig()),
)


@st.composite
def reports(draw: st.DrawFn) -> Report:
    layers = draw(st.lists(layer_facts(), max_size=4))
    estimates = draw(st.lists(st.builds(Estimate, TEXTS, TEXTS, st.floats(0, 1e18), st.floats(0, 1e18)), max_size=2))
    plan = Plan(tuple(layer.decision for layer in layers), draw(st.sampled_from([None, samples.TARGET])))
    accounts = draw(st.lists(ACCOUNTS, max_size=3))
    return Report(draw(TEXTS), plan, tuple(layers), tuple(estimates), tuple(accounts), draw(st.none() | SENSITIVITIES))


def visible(name: str) -> str:
    """How a name has to look: what cannot be shown, as an escape."""
    shown = re.sub(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\u202a-\u202e\u2066-\u2069]",
        lambda found: f"\\u{ord(found[0]):04x}",
        name,
    )
    return re.sub("[ \n\t]+", " ", shown).strip()


# What is on it


@UNHURRIED
@given(reports())
def test_the_numbers_of_every_layer_are_those_of_the_facts(report):
    rows = ReadPage(page(report)).rows()
    assert len(rows) == len(report.layers)
    for row, layer in zip(rows, report.layers, strict=True):
        shown = facts(row)
        assert text(shown["name"]) == visible(layer.decision.name)
        assert numbers(shown["weights"]) == ([layer.weights] if layer.weights else [])
        assert numbers(shown["multiply-adds"]) == known(layer.multiply_adds)
        assert numbers(shown["retained |w|"]) == known(layer.retained)
        assert numbers(shown["group axis"]) == known(layer.decision.axis)
        sides = [side for side in (layer.stored, layer.planned) if side]
        assert numbers(shown["density"]) == [side.density for side in sides]
        assert numbers(shown["groups over the pattern"]) == [side.violations for side in sides]
        for unknown, title in ((layer.multiply_adds, "multiply-adds"), (layer.retained, "retained |w|")):
            assert ("not known" in text(shown[title])) == (unknown is None)


def known(value: float | None) -> list[float]:
    return [] if value is None else [value]


@UNHURRIED
@given(reports())
def test_the_histograms_of_every_layer_are_those_of_the_facts(report):
    for row, layer in zip(ReadPage(page(report)).rows(), report.layers, strict=True):
        tables = list(by_class(row, "histogram"))
        assert bool(tables) == bool(layer.stored or layer.planned)
        if tables:
            assert_shows(tables[0], layer.stored and layer.stored.histogram, layer.planned and layer.planned.histogram)


@UNHURRIED
@given(reports())
def test_the_histograms_of_the_model_are_the_sums_of_its_layers(report):
    read = ReadPage(page(report))
    tables = list(by_class(read.section("Non-zeros per group"), "histogram")) if report.layers else []
    sides = [[layer.stored for layer in report.layers], [layer.planned for layer in report.layers]]
    lengths = sorted({len(side.histogram) - 1 for found in sides for side in found if side})
    assert [text(table.find("caption")) for table in tables] == [f"Groups of {m}" for m in lengths]
    for m, table in zip(lengths, tables, strict=True):
        histograms = [[side.histogram for side in found if side and len(side.histogram) == m + 1] for found in sides]
        assert_shows(table, *(tuple(map(sum, zip(*found, strict=True))) for found in histograms))


def assert_shows(table, stored, planned):
    """Every count that occurs, in order; of short groups also those that do not."""
    rows = {nonzeros: sides for nonzeros, *sides in histogram(table)}
    assert list(rows) == sorted(rows)
    for side, groups in enumerate((stored, planned)):
        if groups:
            assert {nonzeros: sides[side] for nonzeros, sides in rows.items() if sides[side] != [0]} == {
                nonzeros: [found] for nonzeros, found in enumerate(groups) if found
            }
        else:
            assert all(sides[side] == [] for sides in rows.values())
    if len(stored or planned) <= 17:
        assert list(rows) == list(range(len(stored or planned)))


@UNHURRIED
@given(reports())
def test_the_pictures_of_masks_are_the_masks_with_their_groups_apart(report):
    for row, layer in zip(ReadPage(page(report)).rows(), report.layers, strict=True):
        pictures = list(by_class(row, "mask"))
        assert [mask(picture) for picture in pictures] == ([layer.mask] if layer.mask else [])
        for picture in pictures:
            places = columns_of(picture)
            gaps = [after - before for before, after in pairwise(places)]
            m = layer.decision.pattern.m
            assert all((gap > min(gaps)) == ((place + 1) % m == 0) for place, gap in enumerate(gaps) if len(gaps) >= m)
            kept = "".join(layer.mask).count("#")
            assert f" {kept} of {len(''.join(layer.mask))} weights" in picture.get("aria-label")


@UNHURRIED
@given(reports())
def test_the_bars_are_as_long_as_the_facts_say(report):
    for row, layer in zip(ReadPage(page(report)).rows(), report.layers, strict=True):
        bars = list(by_class(row.find("details/summary"), "bar"))
        stored, planned = (side.density if side else None for side in (layer.stored, layer.planned))
        expected = []
        if layer.stored or layer.planned:
            expected.append([*known(stored), *(known(planned) if layer.decision.pruned else [])])
        if layer.retained is not None:
            expected.append([layer.retained])
        assert len(bars) == len(expected)
        for drawn, lengths in zip(bars, expected, strict=True):
            assert bar_lengths(drawn) == pytest.approx(lengths, abs=1e-3)


@UNHURRIED
@given(reports())
def test_the_summary_is_that_of_the_totals(report):
    read, totals = ReadPage(page(report)), report.totals
    tiles = read.tiles()
    assert visible(report.plan.summary()) == text(next(by_class(read.root, "lead")))
    assert text(read.root.find("body/header/h1")) == visible(report.source)
    assert numbers(tiles["Layers pruned"]) == [len(report.plan.pruned), len(report.plan.decisions)]
    for title, part, whole in (
        ("Weights covered", totals.weights_pruned, totals.weights),
        ("Multiply-adds covered", totals.multiply_adds_pruned, totals.multiply_adds),
    ):
        assert numbers(tiles[title]) == ([part / whole] if whole else []) + [part, whole]
    assert numbers(tiles["Density"]) == known(totals.density) + known(totals.density_planned)
    assert "for one example" in text(tiles["Multiply-adds covered"])
    unknown = re.findall(r"(\d+) layers? not known", text(tiles["Multiply-adds covered"]))
    assert unknown == ([str(totals.multiply_adds_unknown)] if totals.multiply_adds_unknown else [])
    assert ("Eligible on the target" in tiles) == (report.plan.target is not None)


@UNHURRIED
@given(reports())
def test_the_estimates_stand_beside_their_sources(report):
    read = ReadPage(page(report))
    assert ("Estimates" in read.titles()) == bool(report.estimates)
    if report.estimates:
        rows = read.section("Estimates").findall("table/tbody/tr")
        for row, estimate in zip(rows, report.estimates, strict=True):
            source, quantity_, *_ = row
            assert (text(source), text(quantity_)) == (visible(estimate.source), visible(estimate.quantity))
            ratio = [estimate.pruned / estimate.dense] if estimate.dense else []
            assert numbers(row) == [estimate.dense, estimate.pruned, *filter(math.isfinite, ratio)]


@UNHURRIED
@given(reports())
def test_what_stays_dense_is_grouped_by_reason_with_its_sentence(report):
    dense = [(place, layer) for place, layer in enumerate(report.layers) if not layer.decision.pruned]
    read = ReadPage(page(report))
    bodies = read.section("Left dense, and why").findall("table/tbody") if report.layers else []
    reasons = list(dict.fromkeys(layer.decision.reason for _, layer in dense))
    assert [text(body.find("tr/th/code")) for body in bodies] == reasons
    for reason, body in zip(reasons, bodies, strict=True):
        heading, *rows = body
        members = [(place, layer) for place, layer in dense if layer.decision.reason == reason]
        assert text(heading).startswith(f"{reason} {len(members)} layer")
        for row, (place, layer) in zip(rows, members, strict=True):
            link, weights, multiply_adds, why = row
            assert link.find("a").get("href") == f"#{read.rows()[place].get('id')}"
            assert text(link) == visible(layer.decision.name)
            assert numbers(weights) == ([layer.weights] if layer.weights else [])
            assert numbers(multiply_adds) == known(layer.multiply_adds)
            assert text(why) == visible(layer.decision.message)


@EVERY_REPORT
def test_every_layer_says_what_is_done_to_it_and_why(make):
    report = make()
    for row, layer in zip(ReadPage(page(report)).rows(), report.layers, strict=True):
        decision = layer.decision
        words = text(row)
        for said in (
            decision.op_type,
            decision.message,
            decision.dtype,
            decision.weight,
            decision.criterion,
            layer.note,
        ):
            assert visible(said) in words
        assert " × ".join(map(str, decision.shape or ())) in words
        summary = text(row.find("details/summary"))
        assert (str(decision.pattern) in summary) if decision.pruned else f"dense {decision.reason}" in summary
        assert all(visible(use) in words for use in decision.uses)


@EVERY_REPORT
def test_the_verdict_on_every_pruned_layer_stands_there_with_its_sources(make):
    report = make()
    read = ReadPage(page(report))
    verdicts = [layer.decision.verdict for layer in report.layers]
    for row, verdict in zip(read.rows(), verdicts, strict=True):
        assert ("On the target:" in text(row)) == (verdict is not None)
        if verdict:
            assert ("not eligible" in text(row.find("details/summary"))) == (not verdict.eligible)
            for rule in (*verdict.objections, *verdict.conditions):
                assert f"{rule.message} Source: {rule.source}" in text(row)
            assert ("not met" in text(row)) == bool(verdict.objections)
            assert ("decided at conversion" in text(row)) == bool(verdict.conditions)
    eligible = sum(bool(verdict and verdict.eligible) for verdict in verdicts)
    if report.plan.target:
        assert numbers(read.tiles()["Eligible on the target"])[:2] == [eligible, len(report.plan.pruned)]


def test_the_target_is_named_with_its_reason_its_sources_and_how_many_layers_each_rule_concerns():
    section = ReadPage(page(samples.odd_cases())).section("Target")
    target = samples.TARGET
    for said in (target.title, target.vendor, target.name, target.reason, *target.sources, "Gains from 2:4."):
        assert said in text(section)
    rules = {text(row[0]): (text(row[1]), numbers(row[2])) for row in section.findall("table/tbody/tr")}
    assert rules == {
        "decided at conversion Weights must be int8.": (samples.INT8.source, [6]),
        "not met The input channels must be a multiple of 16.": (samples.ALIGNED.source, [2]),
        "not met The pattern must be 2:4.": ("; ".join(target.sources), [2]),
    }
    assert "Of 8 pruned layers: 4 eligible on conditions, 4 not eligible." in text(section)


def test_a_target_without_a_gain_says_so():
    section = ReadPage(page(samples.without_gain())).section("Target")
    assert f"No gain from 2:4. {samples.GAINLESS.reason}" in text(section)
    assert "Of 1 pruned layer: 1 not eligible." in text(section)


def test_without_a_target_there_is_no_verdict():
    read = ReadPage(page(samples.residual_network(None)))
    assert "No target was named" in text(read.section("Target"))
    assert "eligible" not in text(read.root.find("body"))


@EVERY_REPORT
def test_no_page_promises_speed(make):
    assert not re.search("faster|speed|accelerat", text(ReadPage(page(make())).root.find("body")), re.IGNORECASE)


def test_figures_of_others_are_called_so():
    assert "none of the figures is sparsekit's own" in text(
        ReadPage(page(samples.residual_network())).section("Estimates")
    )


def test_nan_is_not_known():
    read = ReadPage(page(samples.odd_cases()))
    row = next(row for row in read.rows() if "dead/MatMul" in text(row))
    assert text(facts(row)["retained |w|"]) == "not known"
    assert "nan" not in text(row).lower()


# How it is made


@EVERY_REPORT
def test_html_and_xml_parsers_see_the_same_elements(make):
    seen: list[tuple[str, dict[str, str | None]]] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attributes):
            seen.append((tag, dict(attributes)))

    text_ = page(make())
    Tags().feed(text_)
    read = [(e.tag, {k.lower(): v for k, v in e.attrib.items()}) for e in ReadPage(text_).root.iter()]
    assert seen == read
    assert text_.startswith("<!DOCTYPE html>\n<html")
    text_.encode("utf-8")


@UNHURRIED
@given(reports())
def test_nothing_but_the_pages_own_elements(report):
    """Whatever names and sentences hold, they add no element and no attribute."""
    root = ReadPage(page(report)).root
    assert {e.tag for e in root.iter()} <= OWN_ELEMENTS
    assert {name for e in root.iter() for name in e.attrib} <= OWN_ATTRIBUTES


OWN_ELEMENTS = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "footer", "nav", "section"),
    *("h1", "h2", "h3", "p", "ul", "ol", "li", "dl", "div", "dt", "dd", "a", "code", "span", "strong", "data"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "details", "summary", "figure", "figcaption"),
    *("svg", "rect", "path"),
}
OWN_ATTRIBUTES = {
    *("lang", "dir", "charset", "http-equiv", "content", "name", "class", "id", "href", "value", "data-column"),
    *("role", "aria-label", "aria-hidden", "scope", "colspan", "width", "height", "viewBox", "d", "stroke-width"),
}


@EVERY_REPORT
def test_it_needs_nothing_else(make):
    text_ = page(make())
    root = ReadPage(text_).root
    style = root.find("head/style").text
    assert not re.search(r"url\(|@import|@font-face|://", style)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(meta for meta in root.iter("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.get("content").startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    links = {e.get("href") for e in root.iter() if e.get("href") is not None}
    assert links <= {f"#{id_}" for id_ in ids}


@EVERY_REPORT
def test_the_same_report_gives_the_same_page(make):
    assert page(make()) == page(make())


@EVERY_REPORT
def test_what_is_drawn_has_a_name_and_tables_have_captions_and_heads(make):
    root = ReadPage(page(make())).root
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in root.iter("svg"))
    for table in root.iter("table"):
        assert text(table.find("caption"))
        assert all(th.get("scope") for th in table.iter("th"))
        columns = len(table.findall("thead/tr/th"))
        assert all(sum(int(cell.get("colspan", 1)) for cell in row) == columns for row in table.iter("tr"))


def test_names_cannot_turn_the_text_after_them_around():
    """An override of the writing direction would let the rest of the sentence read backwards."""
    text_ = page(samples.hostile())
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", text_)
    assert "\\u202egnp.exe שלום" in text_


# Numbers as people read them


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0%"),
        (1e-9, "<0.1%"),
        (0.0005, "0.1%"),
        (0.5, "50.0%"),
        (0.9994, "99.9%"),
        (0.9999, ">99.9%"),
        (1.0, "100%"),
    ],
)
def test_shares(value, shown):
    assert share(value) == shown


@given(st.floats(0, 1))
def test_only_none_and_all_read_so(value):
    shown = share(value)
    assert (shown in ("0%", "0.0%")) == (value == 0)
    assert (shown in ("100%", "100.0%")) == (value == 1)
    assert float(shown.strip("<>%")) == pytest.approx(100 * value, abs=0.1)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (999_499, "999,499"),
        (999_500, "1.00M"),
        (23_445_504, "23.4M"),
        (999_600_000, "1.00G"),
        (4_089_184_256, "4.09G"),
        (5 * 10**15, "5,000T"),
    ],
)
def test_short_numbers(value, shown):
    assert short(value) == shown


@given(st.integers(0, 10**16))
def test_short_numbers_are_near_the_number(value):
    digits = short(value).replace(",", "")
    factor = {"T": 1e12, "G": 1e9, "M": 1e6}.get(digits[-1], 1)
    assert float(digits.rstrip("TGM")) * factor == pytest.approx(value, rel=0.005)


def test_long_numbers():
    assert count(1_234_567) == "1,234,567"
    assert [quantity(v) for v in (0.0, 12.0, 12.413, 0.00123456, 4_089_184_256.0)] == [
        "0",
        "12",
        "12.41",
        "0.001235",
        "4,089,184,256",
    ]


def test_samples_are_what_the_facts_promise():
    """The tests above are worth what their samples are."""
    for make in samples.ALL.values():
        report = make()
        assert [layer.decision for layer in report.layers] == list(report.plan.decisions)
    pruned = [layer for layer in samples.residual_network().layers if layer.decision.pruned]
    assert all(layer.planned.violations == 0 and layer.planned.histogram[4] == 0 for layer in pruned)


def test_what_is_worth_leaving_dense_is_said_on_top() -> None:
    report = samples.ALL[next(iter(samples.ALL))]()
    assert "Worth leaving dense" not in page(report)
    hint = Plan(report.plan.decisions, report.plan.target, ("first", "head"))
    shown = page(Report(report.source, hint, report.layers))
    assert "first, head" in shown and shown.index("Worth leaving dense") < shown.index("<nav")


# --- sensitivity and calibration ---


def test_sensitivity_is_a_bar_per_layer_the_worst_the_longest_and_every_number_whole():
    report = samples.calibrated()
    assert report.sensitivity is not None
    section = ReadPage(page(report)).section("Sensitivity")
    rows = section.findall("table/tbody/tr")
    assert len(rows) == len(report.sensitivity.layers)
    for place, (row, layer) in enumerate(zip(rows, report.sensitivity.layers, strict=True)):
        error, own, work = row.findall("td")[:3]
        # Bars are relative to the longest.
        assert [bar_lengths(svg) for svg in error.iter("svg")] == (
            [] if layer.output_error is None else [[pytest.approx(layer.output_error / 1.5, rel=1e-3)]]
        )
        assert numbers(error) == ([] if layer.output_error is None else [layer.output_error])
        assert numbers(own) == ([] if layer.error is None else [layer.error])
        assert numbers(work) == ([] if layer.multiply_adds is None else [layer.multiply_adds])
        assert row.find("th/a").attrib["href"] == f"#layer-{place}"
        assert layer.note in text(row)
    assert report.sensitivity.summary() in text(section)


def test_calibration_is_a_table_of_accounts_that_names_the_layers_it_made_worse_and_the_way_out():
    report = samples.calibrated()
    read = ReadPage(page(report))
    section = read.section("Calibration")
    rows = section.findall("table/tbody/tr")
    assert len(rows) == len(report.accounts)
    for row, account in zip(rows, report.accounts, strict=True):
        error = row.find("td")
        assert numbers(error) == ([] if account.error_before is None else [account.error_before, account.error_after])
        assert len(list(error.iter("svg"))) == (account.error_before is not None)
        shown = [account.damping, account.iterations, account.seconds]
        assert numbers(row)[-3:] == shown
    worse = [account.name for account in report.accounts if (account.error_after or 0) > (account.error_before or 0)]
    assert worse and all(re.sub(r"\s+", " ", name).strip() in text(section) for name in worse[:1])
    assert "skip_layers" in text(section)


def test_a_layers_details_hold_its_whole_account():
    report = samples.calibrated()
    read = ReadPage(page(report))
    told = facts(read.rows()[1])
    account = report.accounts[1]
    for title, value in account.told().items():
        if title not in ("layer", "retained |w|") and value:
            assert title in told, title
    assert numbers(told["error by magnitude"]) == [account.error_before]
    assert numbers(told["steps"]) == [account.iterations]
    assert text(told["bias moved"]) == "yes" and text(told["chosen by"]) == "admm"


def test_without_calibration_there_are_no_such_sections():
    assert not {"Sensitivity", "Calibration"} & set(ReadPage(page(samples.residual_network())).titles())
