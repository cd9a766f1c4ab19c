"""The page: nothing from outside, nothing of a user's that becomes markup, readable everywhere."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json

from experiments.finals import summarise_seeds
from experiments.importances import Importances
from experiments.objectives import OBJECTIVES
from experiments.reports.advice import advise
from experiments.reports.axes import make_axis, write_number
from experiments.reports.comparing import compare
from experiments.reports.comparison_page import build_comparison_page
from experiments.reports.document import Page
from experiments.reports.facts import (
    DatasetFacts,
    Failure,
    HistoryPoint,
    ParetoFacts,
    SweepFacts,
)
from experiments.reports.html import to_html
from experiments.reports.markdown import code, escape, to_markdown
from experiments.reports.page import build_page
from experiments.reports.reading import describe_space, thin
from tests.experiments.made_sweeps import study, sweep, trial

EVIL = (
    "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&lt;b&gt; `|` ``` [a](http://b.c) "
    "![x](http://b.c/d.png) http://evil.example www.evil.example <!-- $x$ ~~s~~ **b** _i_ # # \\"
)
NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


def full(name: str = "dnn", word: str = "x") -> SweepFacts:
    """A sweep with something in every part of the page, and a word wherever users name things."""
    param = f"{word} param"
    space = describe_space(
        {
            param: distribution_to_json(CategoricalDistribution([f"{word} choice", "b"])),
            "dropout": distribution_to_json(FloatDistribution(0.0, 0.5)),
        }
    )
    params = {param: f"{word} choice", "dropout": 0.49}
    top = tuple(
        dataclasses.replace(trial(0.9 - number / 100, number, best_epoch=19), params=params)
        for number in range(3)
    )
    members: Any = tuple((at, {"val_accuracy": 0.9, "latency_ms": 5.0 - at}) for at in range(2))
    whole = study(
        name,
        top,
        space=space,
        seeds=summarise_seeds((0.8, 0.9)),
        history=tuple(HistoryPoint(at, at % 2 == 0, 0.5 + at / 20) for at in range(9)),
        n_history=9,
        importances=Importances(((param, 0.99), ("dropout", 0.01)), 6, 60),
        failures=(Failure(f"ValueError: {word}", 20, (1, 2)),),
        n_failed=20,
        gpu_s=7200.0,
        objectives=("val_accuracy", "latency_ms"),
        requirements=("latency_ms<9",),
        pareto=ParetoFacts(
            (OBJECTIVES["val_accuracy"], OBJECTIVES["latency_ms"]),
            members,
            ((2, {"val_accuracy": 0.5, "latency_ms": 500.0}),),
            dict.fromkeys(range(2), params),
        ),
        has_candidate=True,
        candidate=3,
    )
    data = DatasetFacts(
        name=word,
        fingerprint="f" * 64,
        source=word,
        rows=f"rows of 2 {word}",
        counts={"train": 600, "val": 200, "test": 200},
        class_names=(word, "b"),
        class_counts=(500, 100),
    )
    other = dataclasses.replace(whole, architecture=f"{name}2", study=f"{word}-2")
    return sweep(
        whole,
        other,
        sweep_id=f"{word}-1",
        home=f"host:/{word}",
        gpu_price=2.0,
        dataset=data,
        environment={"keras": word},
        commands=(f"python -m registry.promote '{word}'",),
    )


def page_of(facts: SweepFacts) -> Page:
    return build_page(facts, advise(facts), NOW, lambda *words: " ".join(words))


class Elements(HTMLParser):
    """Every element of a page with its attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.comments: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


@pytest.fixture(params=["report", "comparison"])
def page(request: pytest.FixtureRequest) -> Page:
    facts = full(EVIL, EVIL)
    if request.param == "report":
        return page_of(facts)
    second = dataclasses.replace(facts, sweep_id=f"{EVIL} b", config={"fix": [EVIL]})
    return build_comparison_page(compare([facts, second]), NOW)


def test_a_hostile_name_is_text_in_html_and_nothing_is_loaded_from_anywhere(page: Page) -> None:
    elements = Elements(to_html(page))
    tags = {tag for tag, _ in elements.found}
    assert not tags & {"script", "img", "link", "a", "iframe", "object", "embed", "base", "form"}
    names = {name for _, attrs in elements.found for name in attrs}
    assert not names & {"src", "href", "style", "xlink:href", "srcset", "action", "background"}
    assert not [name for name in names if name.startswith("on")]
    assert elements.comments == []
    assert sum(EVIL in text for text in elements.texts) >= 5
    css = elements.texts[elements.texts.index(next(t for t in elements.texts if ":root" in t))]
    assert not re.search(r"url\(|@import|@font-face|//", css)


def test_the_policy_of_the_page_lets_nothing_in_but_its_own_style() -> None:
    text = to_html(page_of(full()))
    style = re.search(r"<style>(.*)</style>", text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1].startswith(f"default-src 'none'; style-src 'sha256-{digest}'")
    assert text.index("Content-Security-Policy") < text.index("<style>")


def test_a_hostile_name_is_text_in_markdown(page: Page) -> None:
    renderer = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    elements = Elements(renderer.render(to_markdown(page)))
    expected = {"h1", "h2", "h3", "p", "ul", "li", "strong", "code", "pre", "blockquote"}
    table = {"table", "thead", "tbody", "tr", "th", "td"}
    assert {tag for tag, _ in elements.found} <= expected | table
    assert elements.comments == []
    text = "".join(elements.texts)
    assert text.count(EVIL) >= 5


def test_no_bare_address_is_left_of_which_github_would_make_a_link() -> None:
    assert "http://" not in escape(EVIL) and "www." not in escape(EVIL)


@pytest.mark.parametrize(
    "text", [EVIL, "- a", "1. b", "# c", "2026-01-01 0.5 a-b", "=", "a\nb", "&#60;"]
)
def test_escaped_text_comes_back_from_a_renderer_as_it_was(text: str) -> None:
    html = MarkdownIt("commonmark", {"html": True}).render(escape(text))
    (tag, _), *more = Elements(html).found
    assert (tag, more) == ("p", [])
    assert "".join(Elements(html).texts).strip() == " ".join(text.split())
    assert "".join(Elements(MarkdownIt().render(code(text))).texts).strip() == " ".join(
        text.split()
    )


def test_plain_numbers_and_times_are_not_cluttered() -> None:
    assert escape("0.9751, 2026-11-26 17:28") == "0.9751, 2026-11-26 17:28"


def test_the_page_says_all_that_it_is_asked_for() -> None:
    for text in (to_html(page_of(full())), to_markdown(page_of(full()))):
        flat = text.replace("\\", "")
        for part in (
            "0.8500 [0.2147, 1.4853], 2 seeds",
            "40 failed",
            "2 h 0 min",
            "8.00",
            "200 to validate",
            "x (500), b (100)",
            "version 3",
            "ValueError: x",
            "--epochs 40",
            "registry.promote",
            "--warm-start x-1",
            "latency_ms&lt;9",
        ):
            assert part in flat, part


def test_a_sweep_without_seeds_says_that_its_values_have_no_interval() -> None:
    facts = sweep(study())
    assert "one value, no interval" in to_html(page_of(facts))
    unfinished = sweep(study(n_complete=2), state="interrupted")
    assert "unfinished, and nobody works on it now. 2 of 60 trials" in to_html(page_of(unfinished))
    short = to_html(page_of(sweep(study(n_complete=2))))
    assert "ended before all trials were finished: dnn 2 of 60" in short


def test_of_many_trials_some_are_drawn_and_all_that_were_best_so_far() -> None:
    points = [HistoryPoint(at, at % 7 != 0, (at * 37 % 1000) / 1000) for at in range(10_000)]
    drawn = thin(points, 1000)
    assert len(drawn) < 1100
    best, expected = -1.0, set()
    for one in points:
        if one.counts and one.value > best:
            best = one.value
            expected.add(one.number)
    assert expected <= {one.number for one in drawn}


def test_ticks_are_round_lie_inside_and_are_few() -> None:
    for values in ([0.9, 0.91], [-30.0, -25.0], [0.5], [1e-4, 5e3], [0, 10_000]):
        for log in (False, min(values) > 0):
            axis = make_axis(values, 0, 100, log=log)
            ticks = axis.ticks()
            assert 2 <= len(ticks) <= 7
            assert all(axis.low <= tick <= axis.high for tick in ticks)
            assert 0 <= axis.place(values[0]) <= 100
    assert [write_number(one) for one in (0.95, 20, 50_000, 2e6)] == ["0.95", "20", "50k", "2M"]


@pytest.mark.system
def test_a_browser_asks_nobody_for_anything_and_the_page_fits_a_telephone(tmp_path: Path) -> None:
    from tests.e2e.pictures import open_page

    file = tmp_path / "report.html"
    file.write_text(to_html(page_of(full("dnn", "a name that is long " * 3))), encoding="utf-8")
    with open_page() as browser:
        asked: list[str] = []
        said: list[str] = []
        browser.on("request", lambda request: asked.append(request.url))
        browser.on("console", lambda message: said.append(message.text))
        browser.context.set_offline(True)
        for width in (400, 1100):
            browser.set_viewport_size({"width": width, "height": 900})
            for scheme in ("light", "dark"):
                browser.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
                browser.goto(file.as_uri())
                root = "document.documentElement"
                assert browser.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
                colours = browser.evaluate(
                    "['color', 'backgroundColor'].map(k => getComputedStyle(document.body)[k])"
                )
                is_dark = scheme == "dark"
                assert brightness(colours[0]) > 600 if is_dark else brightness(colours[0]) < 200
                assert brightness(colours[1]) < 200 if is_dark else brightness(colours[1]) > 600
        browser.screenshot(path=str(tmp_path / "report.png"), full_page=True)
        assert {*asked} == {file.as_uri()}
        assert said == []  # the policy refused nothing
    assert (tmp_path / "report.png").stat().st_size > 20_000


def brightness(colour: str) -> int:
    return sum(int(part) for part in re.findall(r"\d+", colour)[:3])
