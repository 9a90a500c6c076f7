"""HTML to Markdown: what a reader sees, whatever the page, in linear time and bounded size."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.tools.html_markdown import MAX_HTML, to_markdown
from windlass.tools.html_tokens import Tag, tokens

URL = "https://site.test/dir/page"


def shown(html: str) -> str:
    return to_markdown(html, URL).text


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<p>a\n b&amp;c &lt;d&gt;<p>e", "a b&c <d>\n\ne"),
        ("<h1>One <em>two</em></h1>text<h3>Three<br>four</h3>", "# One *two*\n\ntext\n\n### Three\nfour"),
        ("a<br>b<br/>c", "a\nb\nc"),
        ("<b> x </b>y<i></i><del>z</del>", "**x** y~~z~~"),
        ("<p><b>x<p>y</b>z", "x\n\nyz"),
        ("<a href=../x?a=1&amp;b=2#f>t</a>", "[t](https://site.test/x?a=1&b=2#f)"),
        ("<a href=//b.test/>t</a> <a href='mailto:a@b.c'>m</a>", "[t](https://b.test/) [m](mailto:a@b.c)"),
        ("<a href=javascript:x()>a</a><a href=' java\nscript:x'>b</a><a href='#f'>c</a><a href=data:x>d</a>", "abcd"),
        ("<a href=/a(b)>t</a>", "[t](https://site.test/a%28b%29)"),
        ("<a href=https://x.test/>https://x.test/</a>", "https://x.test/"),
        ("<a href=/c><div><h2>T</h2>d</div></a>", "## T\n\nd\n\n<https://site.test/c>"),
        ("<a href=/1>a<a href=/2>b", "[a](https://site.test/1)[b](https://site.test/2)"),
        ("<base href=/other/><a href=x>t</a>", "[t](https://site.test/other/x)"),
        ("<base href=javascript:x><a href=x>t</a>", "[t](https://site.test/dir/x)"),
        ("<img src=/i.png alt='a [b]'><img src=t.gif>", "![a \\[b\\]](https://site.test/i.png)"),
        ("<img src=data:x alt=y>", "[image: y]"),
        ("<ul><li>a<li>b<ul><li>c</ul><li>d</ul>e", "- a\n- b\n  - c\n- d\n\ne"),
        ("<ol start=9><li>a<li><p>b</p><p>c</p></ol>", "9. a\n10. b\n    c"),
        ("<blockquote>a<blockquote>b</blockquote></blockquote>c", "> a\n>\n> > b\n\nc"),
        ("<pre class=lang-py>a\n  b &lt; c</pre>d", "```py\na\n  b < c\n```\n\nd"),
        ("<pre><code class='language-c++'>x```y</code></pre>", "````c++\nx```y\n````"),
        ("<pre>a<span hidden>no</span>b<br>c<b>d</b></pre>", "```\nab\ncd\n```"),
        ("<ul><li>x<pre>1\n\n2</pre></ul>", "- x\n\n  ```\n  1\n\n  2\n  ```"),
        ("<code>a`b</code> <code>c</code>", "a`b `c`"),
        ("<dl><dt>t<dd>d</dl>", "**t**\n: d"),
        ("<table><tr><th>a<th>b<tr><td>1|2<td><a href=x>l</a></table>",
         "| a | b |\n| --- | --- |\n| 1\\|2 | [l](https://site.test/dir/x) |"),
        ("<table><tr><td>a<tr><td>b</table>", "a\nb"),
        ("<table><tr><td>a<table><tr><td>b<td>c</table><td>d</table>", "a\n\n| b | c |\n| --- | --- |\n\nd"),
        ("<table><tr><td>1<td><pre>x\ny</pre></table>", "1\n\n```\nx\ny\n```"),
        ("<table role=presentation><tr><td>a<td>b</table>", "a\nb"),
        ("<ul><li>a<table><tr><td><ol><li>b<pre>c</pre>d</ol></table>e</ul>f",
         "- a\n\n  1. b\n\n  ```\n  c\n  ```\n\n  d\n\n  e\n\nf"),
        ("a<hr>b", "a\n\n---\n\nb"),
        ("x<script>if (a<b) '</p>'</script>y<style>p{}</style>z<noscript>n</noscript>", "xyzn"),
        ("a<!-- <p>no -->b<!>c<!doctype x>d<?php no ?>e", "abcde"),
        ("<p hidden>no<p>yes<div style='x; DISPLAY : none'>no<div>no</div>no</div>yes", "yes\n\nyes"),
        ("<li hidden>no<li>yes<span aria-hidden=true>no</span>", "- yes"),
        ("a<p style=visibility:hidden>no<h2>yes</h2>", "a\n\n## yes"),
        ("<textarea>no</textarea><svg><text>no</text><title>no</title></svg><template>no</template>y", "y"),
        ("<a href='x>all of this is a broken attribute", ""),
        ('<a href="x""> y</a>', "[y](https://site.test/dir/x)"),
        ("1 < 2 <3 </ 4>", "1 < 2 <3"),
        ("<p>a\0b\x1b[2Jc", "a\ufffdb\x1b[2Jc"),
        ("<plaintext><b>x", "<b>x"),
    ],
)  # fmt: skip
def test_what_a_reader_sees(html: str, expected: str) -> None:
    assert shown(html) == expected


def test_the_title_is_the_first_one() -> None:
    assert to_markdown("<title>\n A &lt;b&gt; <b>c</title><svg><title>no</title></svg>", URL).title == "A <b> <b>c"
    assert to_markdown("<title></title><p>x", URL) == to_markdown("<p>x", URL)


def test_tags_and_attributes_are_read_as_browsers_do() -> None:
    html = "<A HREF = 'x&amp;y' href=z\nclass=\"a'b\" =x / type=/p/>t</A x=y><br/><x-y:z>"
    assert list(tokens(html)) == [
        Tag("a", False, {"href": "x&y", "class": "a'b", "type": "/p/"}), "t", Tag("a", True), Tag("br"), Tag("x-y:z"),
    ]  # fmt: skip


_PIECES = (
    """<b>~</b>~<a href=/x>~</a>~<p>~</p>~<ul>~<ol>~<li>~</ul>~</li>~<table>~<tr>~<td>~<th>~</td>~</table>~"""
    """<pre>~</pre>~<code>~</code>~<blockquote>~</blockquote>~<h1>~</h1>~<div hidden>~</div>~<script>~"""
    """</script>~<!--~-->~<br>~<hr>~<dl>~<dt>~<dd>~<img alt=i src=j>~<title>~</title>~<a href='~<~>~&~&amp;~"""
    '"~word~|~`~[~]~<base href=/q>~<textarea>~<svg>~\n~ ~\0~é'
)
PIECES = st.sampled_from(_PIECES.split("~"))


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=60).map("".join))
def test_fuzz_any_page_becomes_text(html: str) -> None:
    page = to_markdown(html, URL)
    assert not page.cut and len(page.text) <= 40 * len(html) + 100
    assert "javascript:" not in page.text
    assert "\n\n\n\n" not in page.text
    assert to_markdown(html, URL) == page


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="<>/!-='\"ab&;# \n`|", max_size=80))
def test_fuzz_any_text_becomes_text(html: str) -> None:
    page = to_markdown(html, URL, limit=500)
    assert len(page.text) <= 500
    if "<" not in html and "&" not in html:
        assert page.text.split() == html.split()


@settings(max_examples=100, deadline=None)
@given(st.lists(PIECES, max_size=20).map("".join), st.lists(PIECES, max_size=20).map("".join))
def test_fuzz_scripts_and_what_is_hidden_never_show(before: str, after: str) -> None:
    html = before + after
    # What swallows the tags behind it is left out; those pages are of the other fuzz tests.
    swallowing = any(
        piece in html for piece in ("<pre>", "<textarea>", "<title>", "<!--", "<a href='", "<script>", "<svg>")
    )
    for hidden in ("<script>CANARY</script>", "<style>CANARY</style>", "<div hidden>CANARY</div>"):
        if not swallowing and not before.endswith("<"):
            assert "CANARY" not in shown(before + hidden + after)


@pytest.mark.parametrize(
    "piece",
    ["<!", "<!--", '<a x="', "<a ", "</a ", "<script>", "&a", "&", "<div>", "<b>x", "<ul><li>", "<blockquote>x", "</i>",
     "<table><tr><td>", "<table><tr><td><pre>x</pre>", "<tr><td>a<td>b", "<code>x</code>", "<div hidden>",
     "<a href=/x>y", "<p><b>x</p></b>", "<title>", "<img alt=a src=b>", "&#", "<pre>`", "<dd>x<dt>y", "<h1>x"],
)  # fmt: skip
def test_hostile_pages_take_linear_time(piece: str) -> None:
    def took(size: int) -> float:
        html = piece * (size // len(piece))
        begun = time.process_time()
        to_markdown(html, URL)
        return time.process_time() - begun

    # Sixteen times the page: quadratic work would take 256 times as long.
    small, large = max(took(15_000), 0.004), took(240_000)
    assert large < 80 * small, (small, large)


def test_size_is_bounded() -> None:
    base = "<base href=http://x.test/" + "z" * 1900 + "/>"
    page = to_markdown(base + "<a href=q>y</a>" * 20_000, URL, limit=100_000)
    assert page.cut and len(page.text) <= 100_000
    wide = to_markdown("<table><tr>" + "<td>x" * 60_000, URL)
    assert len(wide.text) < 400_000
    assert to_markdown("x" * (MAX_HTML + 1), URL, limit=MAX_HTML * 2).cut
    deep = to_markdown("<ul><li>" * 5000 + "end", URL)
    assert deep.text.endswith("end") and len(deep.text) < 200
