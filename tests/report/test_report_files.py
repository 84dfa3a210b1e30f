"""The report as files: complete, self-contained, safe against hostile names."""

import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from prune2deploy.errors import InputError, StorageError
from prune2deploy.report.content import ReportContent
from prune2deploy.report.html import html_report, json_for_script
from prune2deploy.report.junit import junit_report
from prune2deploy.report.markdown import escape, markdown_report
from prune2deploy.report.tables import report_tables
from prune2deploy.report.write import write_report

HOSTILE = '<script>alert("x")</script>&|`*[a](javascript:b)'
VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})


class Page(HTMLParser):
    """What a browser would make of a page: open elements, text, and everything that could be fetched or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.count[tag] += 1
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids[value or ""] += 1
            if name in ("href", "src", "action", "xlink:href", "data", "poster"):
                self.references.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)
        if tag == "script":
            self.scripts.append((dict(attributes), ""))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            attributes, before = self.scripts[-1]
            self.scripts[-1] = (attributes, before + data)
        elif "style" not in self.open:
            self.text += data


@pytest.fixture
def content(make_manifest: Any, make_result: Any) -> ReportContent:
    return ReportContent(manifest=make_manifest(), result=make_result(claim=2.0))


def check_markdown_tables(markdown: str) -> int:
    """How many tables there are, after checking that all rows of each have as many cells as its rule."""
    lines = markdown.splitlines()
    rules = [number for number, line in enumerate(lines) if line.startswith("| ---")]
    for rule in rules:
        row = rule - 1
        while row < len(lines) and lines[row].startswith("|"):
            assert re.sub(r"\\.", "", lines[row]).count("|") == lines[rule].count("|")
            row += 1
    return len(rules)


def rendered(markdown: str) -> str:
    """What a GitHub-like renderer makes of Markdown: CommonMark, tables, and HTML as it stands."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)


def test_page_is_well_formed_and_fetches_nothing(content: ReportContent) -> None:
    text = html_report(content)
    page = Page(text)
    assert page.open == []
    assert all(reference.startswith("#") or reference == "data:," for reference in page.references)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src &#39;none&#39;" in text
    assert page.handlers == []
    assert [attributes["type"] for attributes, _ in page.scripts] == ["application/json"]


def test_page_shows_every_plot_with_title_and_description(content: ReportContent) -> None:
    text = html_report(content)
    page = Page(text)
    # Speed-ups, two settings with accuracy and distribution each, widths, training.
    assert page.count["svg"] == page.count["figure"] == 7
    assert page.count["desc"] == 7
    assert max(page.ids.values()) == 1
    references = set(re.findall(r"url\(#([^)]+)\)", text)) | {name[1:] for name in page.references if name[:1] == "#"}
    assert references
    assert references <= page.ids.keys()


def test_plots_take_their_colours_from_the_page(content: ReportContent) -> None:
    drawings = re.findall(r"<svg.*?</svg>", html_report(content), flags=re.DOTALL)
    for drawing in drawings:
        assert "var(--" in drawing
        assert not re.search(r"#[0-9a-fA-F]{6}\b", drawing)


def test_page_is_the_same_bytes_for_the_same_run(content: ReportContent) -> None:
    assert html_report(content) == html_report(content)


def test_page_begins_with_the_verdict_in_words(content: ReportContent) -> None:
    page = Page(html_report(content))
    headline = page.text.index("The pruned model is 2.9")
    assert headline < page.text.index("2.00× claimed: CONFIRMED") < page.text.index("In pictures")
    assert "slower than the plainly narrower network" in page.text


def test_embedded_data_reads_back_as_the_report_document(content: ReportContent) -> None:
    assert content.result is not None
    ((_, data),) = Page(html_report(content)).scripts
    document = json.loads(data)
    assert document["result"] == json.loads(json.dumps(content.result.to_document()))
    assert document["run"] == json.loads(json.dumps(content.manifest.to_document()))


def test_json_in_a_script_cannot_end_it() -> None:
    document = {"name": "</script><!--<script>&"}
    text = json_for_script(document)
    assert "<" not in text
    assert json.loads(text) == document


def test_hostile_names_stay_text(make_manifest: Any, make_result: Any) -> None:
    manifest = replace(
        make_manifest(names=("dense", HOSTILE)), model=HOSTILE, notes=(HOSTILE,), command=("p2d", HOSTILE), data=HOSTILE
    )
    manifest.pruning["layers"][0]["name"] = HOSTILE
    manifest.pruning["frozen"][0]["reason"] = HOSTILE
    result = make_result(latencies_ns={"dense": 1_000_000, HOSTILE: 400_000}, claim=2.0)
    content = ReportContent(manifest=manifest, result=result)
    page = Page(html_report(content))
    assert page.open == []
    assert page.count["script"] == 1
    assert page.handlers == []
    assert HOSTILE in page.text
    markdown = markdown_report(content)
    check_markdown_tables(markdown)
    shown = Page(rendered(markdown))
    assert shown.open == []
    assert shown.count["script"] == shown.count["a"] == 0
    assert HOSTILE in shown.text
    assert ElementTree.fromstring(junit_report(content)).find(".//testcase") is not None


def test_every_markdown_table_has_as_many_cells_as_headings(content: ReportContent) -> None:
    assert check_markdown_tables(markdown_report(content)) >= 8


def test_rendered_markdown_has_every_table_and_folds_the_long_ones(content: ReportContent) -> None:
    markdown = markdown_report(content)
    page = Page(rendered(markdown))
    assert page.open == []
    assert page.count["table"] == check_markdown_tables(markdown) == len(report_tables(content))
    assert page.count["details"] == page.count["summary"] >= 3
    assert "|" not in page.text


@pytest.mark.parametrize(
    ("text", "shown"), [("a|b", "a\\|b"), ("<b>", "&lt;b&gt;"), ("a\n b", "a b"), ("x_y", "x\\_y")]
)
def test_markdown_shows_text_as_it_stands(text: str, shown: str) -> None:
    assert escape(text) == shown


def test_all_four_files_are_written(run_folder: Any, make_result: Any) -> None:
    document = json.loads(json.dumps(make_result().to_document()))
    paths = write_report(ReportContent.from_documents(run_folder.manifest, document), run_folder.report_path)
    assert [path.name for path in paths] == ["report.html", "report.md", "report.json", "junit.xml"]
    assert all(path.parent == run_folder.report_path and path.stat().st_size > 100 for path in paths)
    assert json.loads(paths[2].read_text())["summary"]["verdict"] == "REFUTED"


def test_a_run_without_measurement_is_reported_as_such(run_folder: Any, tmp_path: Path) -> None:
    paths = write_report(ReportContent(manifest=run_folder.manifest, result=None), tmp_path / "elsewhere")
    page = Page(paths[0].read_text())
    assert "Nothing has been measured yet" in page.text
    assert page.count["svg"] == 2
    assert json.loads(paths[2].read_text())["result"] is None
    assert ElementTree.fromstring(paths[3].read_text()).get("tests") == "0"


def test_a_run_without_data_has_no_accuracy_anywhere(make_manifest: Any, make_result: Any) -> None:
    result = make_result(accurate=False, batches=(1,))
    page = Page(html_report(ReportContent(manifest=make_manifest(data=None, layers=60), result=result)))
    assert "There was no data" in page.text
    assert page.count["svg"] == 3


def test_a_manifest_with_nothing_but_its_head_is_reported(make_manifest: Any) -> None:
    manifest = replace(make_manifest(), pruning={}, variants={}, notes=(), options={})
    page = Page(html_report(ReportContent(manifest=manifest, result=None)))
    assert page.count["svg"] == 0
    assert "small-wide" in page.text


def test_a_damaged_result_is_told(run_folder: Any) -> None:
    with pytest.raises(InputError):
        ReportContent.from_documents(run_folder.manifest, {"schema_version": 1})


def test_a_place_that_cannot_be_written_is_told(run_folder: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        write_report(ReportContent(manifest=run_folder.manifest, result=None), tmp_path / "file" / "report")
