"""The page in a real browser: nothing is fetched, nothing is hidden, nothing is run that a title says."""

import re
from itertools import pairwise

import pytest

from recplug.adapters.page.frame import number, page, percent, size
from recplug.adapters.report import write_report

# The contrast of every text that can be seen with what is behind it; SVG text is on the card that holds its drawing.
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = rgba(getComputedStyle(each).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const element = text.parentElement;
    if (!text.data.trim() || !element.checkVisibility() || element.closest(".unseen, script, style")) continue;
    const style = getComputedStyle(element);
    const ink = light(rgba(element.closest("svg") ? style.fill : style.color)), ground = light(behind(element));
    const contrast = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
    found.push([contrast, text.data.trim().slice(0, 40), style.color]);
  }
  return found;
}"""
FOCUSABLE = """() => [...document.querySelectorAll("a[href], summary, input, [tabindex='0']")].filter(
  (each) => each.checkVisibility() && !(each.type === "radio" && !each.checked)).length"""
FOCUSED = """() => {
  const at = document.activeElement;
  if (at === document.body) return null;
  window.seen ??= [];
  if (!window.seen.includes(at)) window.seen.push(at);
  const shown = at.type === "radio" ? at.nextElementSibling : at;
  return [window.seen.indexOf(at), getComputedStyle(shown).outlineStyle, at.tagName];
}"""


@pytest.fixture(scope="module")
def written(prism, magnet, data, tmp_path_factory):
    """A page of two real runs on hostile titles, with pictures."""
    folder = tmp_path_factory.mktemp("pages")
    lines = write_report([prism, magnet], folder / "a.html", images=str(data / "tiny" / "pictures"), k=5)
    assert all("BPR" in line for line in lines), lines
    return folder / "a.html"


def test_nothing_is_fetched_and_nothing_complains(written, opened):
    seen = opened(written)
    assert [url for url in seen.requests if not url.startswith("data:")] == [written.resolve().as_uri()]
    assert seen.complaints == []
    assert seen.title() == "SASRec + prism and BPR + magnet: report"
    assert seen.locator("h1").count() == 1
    assert seen.locator("img.thumb").count() > 5
    broken = "[...document.images].filter((each) => !each.complete || !each.naturalWidth).length"
    assert seen.evaluate(broken) == 0


def test_titles_are_words_and_nothing_else(written, opened):
    """Hostile titles are shown as they are written, and leave the page as it is."""
    seen = opened(written)
    titles = seen.locator("bdi.title").all_text_contents()
    assert any("<script>document.title='owned'</script>" in title for title in titles)
    assert any(title.startswith('"><img src=x onerror=') for title in titles)
    assert any("{{ 7 * 7 }}" in title for title in titles)
    assert any("🧪 beaker" in title for title in titles)
    assert max(map(len, titles)) <= 100
    assert seen.locator("script").count() == 1
    assert seen.locator("style").count() == 1
    assert seen.evaluate("[...document.querySelectorAll('[onerror]')].length") == 0
    rtl = next(at for at, title in enumerate(titles) if title.startswith("كرة"))
    assert seen.locator("bdi.title").nth(rtl).evaluate("(e) => getComputedStyle(e).unicodeBidi") == "isolate"


@pytest.mark.parametrize("width", [320, 390, 768, 1400])
def test_nothing_is_wider_than_the_window(written, opened, width):
    seen = opened(written, width=width)
    seen.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert seen.evaluate("document.documentElement.scrollWidth") <= width
    # What is wider than its box scrolls in it, and can be reached by keyboard there.
    hidden = """[...document.querySelectorAll('table')].filter((each) =>
      each.scrollWidth > each.parentElement.clientWidth + 1 && each.parentElement.tabIndex !== 0).length"""
    assert seen.evaluate(hidden) == 0


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_every_text_can_be_read(written, opened, colours):
    seen = opened(written, colours=colours)
    seen.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    found = seen.evaluate(CONTRASTS)
    assert len(found) > 300
    assert [each for each in found if each[0] < 4.5] == []
    red, green, blue = map(
        int, re.findall(r"\d+", seen.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
    )
    assert (max(red, green, blue) < 60) == (colours == "dark")


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_curves_stand_out(written, opened, colours):
    """3 : 1 for what is drawn, as WCAG asks of graphics."""
    seen = opened(written, colours=colours)
    seen.evaluate("""() => {
      const card = document.querySelector("figure.card");
      card.replaceChildren(...[0, 1, 2, 3, 4, 5, 6, 7].map((style) => {
        const word = document.createElement("b");
        word.textContent = `curve ${style}`;
        word.style.color = `var(--c${style})`;
        return word;
      }));
    }""")
    found = [each for each in seen.evaluate(CONTRASTS) if each[1].startswith("curve ")]
    assert len(found) == 8
    assert min(found)[0] >= 3


def test_the_switch_wins_over_the_system(written, opened):
    seen = opened(written, colours="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = seen.evaluate(ground)
    seen.locator("input[value=light]").check(force=True)
    light = seen.evaluate(ground)
    assert light != dark
    seen.emulate_media(color_scheme="light")
    assert seen.evaluate(ground) == light
    seen.locator("input[value=dark]").check(force=True)
    assert seen.evaluate(ground) == dark
    assert [each for each in seen.evaluate(CONTRASTS) if each[0] < 4.5] == []
    seen.locator("input[value=system]").check(force=True)
    assert seen.evaluate(ground) == light


def test_tab_reaches_every_control_and_shows_where_it_is(written, opened):
    seen = opened(written)
    expected = seen.evaluate(FOCUSABLE)
    reached = set()
    for _ in range(expected + 5):
        seen.keyboard.press("Tab")
        at = seen.evaluate(FOCUSED)
        if at is None:
            break
        reached.add(at[0])
        assert at[1] != "none", at
    assert len(reached) == expected > 20


def test_the_first_tab_skips_to_the_content(written, opened):
    seen = opened(written)
    seen.keyboard.press("Tab")
    box = seen.locator(".skip").bounding_box()
    assert box["y"] >= 0
    seen.keyboard.press("Enter")
    assert seen.evaluate("document.activeElement.id") == "main"


def test_details_open_by_keyboard(written, opened):
    seen = opened(written)
    summary = seen.locator("summary", has_text="Validation of the best epoch")
    summary.focus()
    assert not seen.locator("table", has_text="Validation of the best epoch").is_visible()
    seen.keyboard.press("Enter")
    assert seen.locator("table", has_text="Validation of the best epoch").is_visible()
    seen.keyboard.press("Space")
    assert not seen.locator("table", has_text="Validation of the best epoch").is_visible()


def test_settings_are_searched(written, opened):
    seen = opened(written)
    summary = seen.locator("summary", has_text="All settings of SASRec + prism")
    summary.click()
    rows = seen.locator("#settings-1 tbody tr:visible")
    every = rows.count()
    assert every > 90
    assert rows.first.get_attribute("class") == "chosen"
    seen.locator("input[data-filter=settings-1]").fill("PRISM lambda")
    found = rows.locator("th").all_text_contents()
    assert found
    assert all(key.startswith("prism.lambda") for key in found)
    assert seen.locator("#settings-1-found").text_content() == f"{len(found)} found"
    seen.locator("input[data-filter=settings-1]").fill("")
    assert rows.count() == every


def test_paper_shows_everything(written, opened):
    seen = opened(written, colours="dark")
    before = seen.locator("details[open]").count()
    seen.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert seen.locator("details:not([open])").count() == 0
    seen.emulate_media(media="print")
    assert seen.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not seen.locator(".theme").is_visible()
    seen.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert seen.locator("details[open]").count() == before


def test_ids_are_unique_and_links_lead_somewhere(written, opened):
    seen = opened(written)
    ids = seen.evaluate("[...document.querySelectorAll('[id]')].map((each) => each.id)")
    assert len(ids) == len(set(ids))
    targets = seen.evaluate("[...document.querySelectorAll('a[href]')].map((each) => each.getAttribute('href'))")
    assert targets
    assert {target.removeprefix("#") for target in targets} <= set(ids)
    named = seen.evaluate("[...document.querySelectorAll('[aria-labelledby]')].flatMap("
                          "(each) => each.getAttribute('aria-labelledby').split(' '))")  # fmt: skip
    assert set(named) <= set(ids)
    levels = seen.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map((each) => +each.tagName[1])")
    assert all(lower <= upper + 1 for upper, lower in pairwise(levels))


def test_old_pictures_stand_on_a_light_plate(make_run, tmp_path, opened):
    """Runs from before pictures carried their words are shown as they were drawn."""
    from PIL import Image

    path = make_run()
    for file in (path / "diagnostics").glob("*.png"):
        with Image.open(file) as picture:
            plain = picture.copy()
        plain.info.clear()
        plain.save(file)
    write_report(path, tmp_path / "a.html", examples=False)
    seen = opened(tmp_path / "a.html", width=390, colours="dark")
    assert seen.locator("img.plate").count() == 5
    assert seen.evaluate("document.documentElement.scrollWidth") <= 390
    assert seen.complaints == []
    assert "within the picture" in seen.locator("img.plate").first.get_attribute("alt")


def test_the_frame_escapes_its_title():
    text = page("<b>&", "<h1>x</h1>")
    assert "<title>&lt;b&gt;&amp;</title>" in text
    assert "<h1>x</h1>" in text
    assert "default-src 'none'" in text


@pytest.mark.parametrize(
    ("tell", "value", "words"),
    [
        (number, 1234567, "1,234,567"), (number, 0.123456, "0.1235"), (number, 12345.6, "12,346"),
        (number, True, "True"), (number, "a", "a"), (size, 999, "999 bytes"), (size, 1500, "1.5 kB"),
        (size, 2.5e9, "2.5 GB"), (percent, 0.05, "5 %"), (percent, 0.0123, "1.2 %"), (percent, 0.5, "50 %"),
        (percent, 0.0, "0 %"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)  # fmt: skip
def test_numbers_in_words(tell, value, words):
    assert tell(value) == words
