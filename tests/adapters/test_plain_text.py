"""Plain text of cells, hostile ones among them, in a process that is stopped where it takes far too long."""

import html
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recplug.adapters.plain_text import plain

PIECES = [
    "a",
    " ",
    "<",
    ">",
    "&",
    "amp;",
    "lt;",
    "gt;",
    "<b>",
    "</b>",
    "<!--",
    "-->",
    "<script>",
    "</script>",
    "<style>",
]
PIECES += ["</style >", "#38;", "\x00", "\u200b", "\n", "é"]
HOSTILE = {
    "comments": "<!--" * 20_000,
    "closed at once": "<!--" * 20_000 + "-->",
    "scripts": "<script>" * 20_000,
    "styles": "</script>" + "<style>" * 20_000,
    "escapes": "&amp;" + "amp;" * 20_000 + "lt;b>",
    "tags in tags": "<b" * 10_000 + ">" * 10_000,
}


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_twice_is_once_and_no_markup_is_left(text):
    found = plain(text)
    assert plain(found) == found
    assert html.unescape(found) == found
    assert not re.search(r"</?[a-z!][^<>]*>", found, re.IGNORECASE)
    assert found.isprintable()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a<!-- b --> c <!-- d", "a c <!-- d"),
        ("a<script>x < y</script >b<STYLE a='b'>c</style>d", "a b d"),
        ("<script><!-- x //--></script>a", "a"),
        ("a<script>b", "a b"),
        ("1 &lt; 2 &amp;amp;lt;b&gt; 3", "1 < 2 3"),
    ],
    ids=["open comment", "hidden", "hidden in hidden", "open script", "escaped twice"],
)
def test_what_a_browser_would_not_show_is_gone(text, wanted):
    assert plain(text) == wanted


def test_no_cell_takes_minutes():
    script = "import sys; from recplug.adapters.plain_text import plain; plain(sys.stdin.read())"
    for name, text in HOSTILE.items():  # each took half a minute and more
        done = subprocess.run([sys.executable, "-c", script], input=text, text=True, timeout=25, check=False)
        assert done.returncode == 0, name
