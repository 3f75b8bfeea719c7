"""Markdown, LaTeX and the page."""

import html.parser
import re
import shutil

import pytest

from recplug.adapters.compare import show
from recplug.adapters.compare.tables.content import p_value, tables
from recplug.adapters.compare.tables.formats import escaped


@pytest.fixture(scope="module")
def found(lasting, tmp_path_factory):
    lasting.behave("amazon-scientific_GRU4Rec_mars_1", "wrong")
    options = {"models": "SASRec,GRU4Rec", "grid": {"prism.scale": ["0.3", "1.0"]}, "controls": "no_losses"}
    return lasting.compare(tmp_path_factory.mktemp("found"), "prism,mars", **options)


def test_every_table_is_rectangular_in_every_form(found):
    made = tables(found)
    assert [table.name for table in made] == ["results", "tests", "cost", "metrics", "validation", "failures"]
    markdown, latex = found.to_markdown(), found.to_latex()
    for table in made:
        assert all(len(row) == len(table.columns) for row in table.rows)
        block = latex[latex.index(rf"\label{{tab:{table.name}}}") :]
        lines = [line for line in block[: block.index(r"\end{tabular}")].splitlines() if line.endswith(r" \\")]
        assert len(lines) == len(table.rows) + 1
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(table.columns) - 1}
        assert f"## {table.title}\n" in markdown
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_the_files_hold_what_the_methods_say(found):
    for name, text in (
        ("table.md", found.to_markdown()),
        ("table.tex", found.to_latex()),
        ("index.html", found.to_html()),
    ):
        assert (found.output / name).read_text(encoding="utf-8") == text
    assert found.table().num_rows == 2 * 2 * (1 + 2 + 1 + 2)
    assert show(found.output, groups=False).to_html() == found.to_html()


def test_only_data_set_and_model_are_not_repeated(standin, tmp_path, found):
    single = standin.compare(tmp_path / "single", controls="none", seeds=1)
    assert tables(single)[0].columns[0] == "variant"
    assert tables(found)[0].columns[:2] == ["model", "variant"]


def test_what_latex_would_take_for_its_own():
    assert escaped("a_b & 50 % #1 {x} ~^\\ $5 ±") == (
        r"a\_b \& 50 \% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \$5 $\pm$"
    )


def test_p_values_are_not_told_finer_than_they_are():
    assert [p_value(p).text for p in (None, 0.0, 0.00099, 0.0123, 1.0)] == ["", "< 0.001", "< 0.001", "0.012", "1.000"]


CHROMIUM = shutil.which("chromium")


class Reader(html.parser.HTMLParser):
    """Checks that what is opened is closed, in order, and notes what would be fetched."""

    VOID = ("meta", "line", "circle", "link", "img", "input")

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.ids, self.links = [], [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.fetched += [
            value
            for key, value in attributes.items()
            if key in ("src", "href") and value[0] != "#" and value != "data:,"
        ]
        self.links += [value[1:] for key, value in attributes.items() if key == "href" and value[0] == "#"]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(found):
    page = found.to_html()
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.fetched == []
    assert set(reader.links) <= set(reader.ids)
    assert len(set(reader.ids)) == len(reader.ids)
    assert "url(" not in page
    assert "@import" not in page


def test_a_failures_words_are_no_html(standin, tmp_path):
    name = "amazon-scientific_SASRec_prism_1"
    standin.behave(name, "wrong")
    standin.script.write_text(standin.script.read_text().replace("no such thing", "<script>alert(1)</script> | x"))
    found = standin.compare(tmp_path / "out", controls="none", seeds=1)
    assert "<script>alert" not in found.to_html()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in found.to_html()
    assert r"</script> \| x" in found.to_markdown()


@pytest.mark.slow
def test_in_a_browser(found):
    """Sorting by keyboard, nothing fetched, no sideways scrolling on a phone, readable in light and dark."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for scheme in ("light", "dark"):
            context = browser.new_context(color_scheme=scheme, viewport={"width": 390, "height": 800}, offline=True)
            page, errors, fetched = context.new_page(), [], []
            page.on("pageerror", lambda error, to=errors: to.append(error))
            page.on("request", lambda request, to=fetched: to.append(request.url))
            page.goto((found.output / "index.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") == 390
            assert page.evaluate(CONTRAST) >= 4.5
            button = page.locator('h2#tests + p + .box th button:text-is("gain")')
            heads = page.locator("h2#tests + p + .box th button").all_inner_texts()
            column = heads.index("gain") + 1
            cells = page.locator(f"h2#tests + p + .box tbody td:nth-child({column})")
            for word in ("ascending", "descending"):
                button.focus()
                page.keyboard.press("Enter")
                shown = [float(text.rstrip(" %")) for text in cells.all_inner_texts() if text]
                assert shown == sorted(shown, reverse=word == "descending")
                assert button.locator("..").get_attribute("aria-sort") == word
            assert errors == []
            assert len(fetched) == 1
        browser.close()


# The least contrast of any text with what is behind it, by WCAG's formula.
CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).slice(0, 3).map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let least = 21;
  for (const each of document.querySelectorAll("h1, h2, p, li, a, th button, td, .told b, .axis text")) {
    let behind = each;
    const of = (element) => getComputedStyle(element).backgroundColor;
    while (behind.parentElement && /rgba\\(.*, 0\\)|transparent/.test(of(behind))) behind = behind.parentElement;
    const style = getComputedStyle(each);
    const [one, other] = [light(each.matches("text") ? style.fill : style.color), light(of(behind))];
    least = Math.min(least, (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05));
  }
  return least;
}"""
