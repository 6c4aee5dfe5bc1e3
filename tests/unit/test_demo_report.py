"""The report is one page that loads nothing, and no file can write markup into it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import msgspec
import pytest

from sennit.cli.demo.analysis import analyse
from sennit.cli.demo.clones import duplicates
from sennit.cli.demo.digest import workers
from sennit.cli.demo.records import (
    AgentsUse,
    Approval,
    Attempt,
    Audit,
    Finding,
    Kill,
    Ledger,
    ModelUse,
    PackageState,
    PackageSummary,
    Pause,
    Review,
    RunReport,
    Tally,
    Waited,
    Worst,
)
from sennit.cli.demo.report import render_html, render_markdown
from sennit.cli.demo.tally import tally_of

EVIL = "<script>alert(1)</script>"
VOID = {"meta"}


def small_run(**changes: object) -> RunReport:
    block = "".join(f"value_{line} = compute({line}, other)\n" for line in range(8))
    files = (
        analyse("shop/a.py", '"""Sells."""\n' + block + "def sell(a, b):\n    return a if a and b else b\n"),
        analyse("shop/cart/b.py", block + "def pack(): pass\n"),
        analyse("shop/cart/broken.py", "def f(:\n"),
    )
    given: dict[str, object] = {
        "title": "shop",
        "root": "src/shop",
        "command": "sennit demo src/shop",
        "started_at": "2026-03-01 14:05",
        "made_with": "sennit 0.1.0",
        "model": "the local model server",
        "ledger": Ledger(submitted=9, succeeded=9, retries=2, rescued=1, rate_limited=1, seconds=4.2),
        "files": files,
        "duplicates": tuple(duplicates(files)),
        "reviews": (Review("shop/a.py", "See `sell`.\n\n- one\n- two", "m", 10, 5),),
        "packages": (PackageSummary("shop", 1, 11, 1, "One file."),),
        "attempts": (
            Attempt(1, "analyse", "shop/a.py", 11, 1, 0.0, 0.5, "succeeded"),
            Attempt(2, "review", "shop/a.py", 11, 1, 0.2, 1.0, "rate_limited"),
            Attempt(3, "review", "shop/cart/b.py", 12, 1, 0.1, 1.7, "killed"),
            Attempt(3, "review", "shop/cart/b.py", 11, 2, 1.8, 4.2, "succeeded"),
        ),
        "kills": (Kill(12, 1.7),),
        "approval": Approval("Publish the report of 3 files?", True, "answered", "ann", "", 0.3, 2.1),
        "published": True,
        "states": (PackageState("shop", 2, tally_of(files[:1])),),
    }
    return RunReport(**(given | changes))  # type: ignore[arg-type]


class Outline(HTMLParser):
    """Collects tags and attributes, and checks that every element is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing() -> None:
    page = render_html(small_run())
    outline = Outline(page)

    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "a"} & set(outline.tags)
    assert not {
        name for name, _ in outline.attributes if name in {"src", "href", "srcset", "action"} or name[:2] == "on"
    }
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|url\(|@import", page)


def test_whatever_a_file_a_model_or_a_command_says_is_shown_and_not_run() -> None:
    evil = analyse(f"{EVIL}/a.py", f'"""{EVIL}"""\ndef f(a=["{EVIL}"]): pass\n# FIXME {EVIL}\n')
    run = small_run(
        title=EVIL,
        root=EVIL,
        command=EVIL,
        started_at=EVIL,
        made_with=EVIL,
        model=EVIL,
        files=(evil,),
        reviews=(Review(f"{EVIL}/a.py", f"`{EVIL}` {EVIL}\n\n- {EVIL}", EVIL, 1, 1),),
        packages=(PackageSummary(f"{EVIL.removesuffix('script>')}script>", 1, 1, 1, EVIL),),
        attempts=(Attempt(1, EVIL, EVIL, 11, 1, 0.0, 0.5, "succeeded"),),
        approval=Approval(EVIL, False, "denied", EVIL, EVIL, 0.3, 2.1),
        published=False,
        states=(
            PackageState(EVIL.removesuffix("script>"), 1, Tally((EVIL,), {EVIL: 1}, Worst(EVIL, 1, EVIL, 9), EVIL)),
        ),
    )

    page, text = render_html(run), render_markdown(run)

    assert "script" not in Outline(page).tags
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(?<!\\)<script", re.sub(r"`[^`]*`", "", text))


def test_the_page_tells_the_figures_the_kill_and_the_findings() -> None:
    page = render_html(small_run())

    for words in (
        "Nothing was lost, nothing was accepted twice.",
        "9 submitted = 9 succeeded + 0 failed + 0 cancelled + 0 live",
        "✕ kill -9 at 1.70 s",
        "429, given back",
        "shop/a.py:10",
        "<code>sell</code>",
        "shop/cart/broken.py:1",
        "shop/cart/b.py:1–8",
        "<li>one</li><li>two</li>",
        "$ sennit demo src/shop",
        "<b>1</b> human asked",
        "Published: approved by ann (asked at 0.3 s, decided at 2.1 s).",
        "<span>a person</span>",
        "thread <code>package:shop</code>: version 2 · 1 file reviewed",
        "most complex <code>sell</code> (shop/a.py:10, 3)",
    ):
        assert words in page


def test_a_ledger_that_does_not_balance_is_said_first() -> None:
    run = small_run(ledger=Ledger(submitted=9, succeeded=8, lost=1))

    assert "The ledger does not balance: 1 lost, 0 duplicated." in render_html(run)
    assert "9 submitted ≠ 8 succeeded" in render_markdown(run)


def test_a_report_that_nobody_has_approved_says_that_it_is_a_draft() -> None:
    approval = Approval("Publish?", False, "denied", "ann", "not today", 0.3, 2.1)
    run = small_run(approval=approval, published=False)

    page, text = render_html(run), render_markdown(run)

    assert "<title>shop: sennit demo draft</title>" in page
    assert '<p class="draft">Draft, not published: rejected by ann: not today' in page
    assert text.startswith("# shop, read by a fleet (draft)\n")
    assert "Draft, not published: rejected by ann: not today" in text


@pytest.mark.parametrize("render", [render_html, render_markdown])
def test_a_run_without_files_attempts_or_reviews_still_has_a_report(render: object) -> None:
    run = small_run(files=(), duplicates=(), reviews=(), packages=(), attempts=(), kills=(), approval=None, states=())

    assert callable(render)
    assert "shop" in render(run)


def test_the_markdown_holds_the_same_facts() -> None:
    text = render_markdown(small_run())

    for words in (
        "# shop, read by a fleet",
        "9 tasks, 1 kill (-9), 1 rescued, 2 retried, 1 rate limited (429), 1 human asked, 0 failed, 0 lost, 0 duplicated, 4.2 s",
        "Published: approved by ann (asked at 0.3 s, decided at 2.1 s).",
        "Thread `package:shop`: version 2 · 1 file reviewed",
        "| 12 | 1 | 1.60 | killed with -9 at 1.70 s |",
        "| `sell` | `shop/a.py:10` | 3 | 2 |",
        "- error: `shop/cart/broken.py:1`",
        "8 lines of code: `shop/a.py:2-9`, `shop/cart/b.py:1-8`",
    ):
        assert words in text


def test_attempts_of_one_worker_that_overlap_stand_in_different_lanes() -> None:
    lanes = {
        worker.pid: [[attempt.task_id for attempt in lane] for lane in worker.lanes] for worker in workers(small_run())
    }

    assert lanes == {11: [[1, 3], [2]], 12: [[3]]}


def test_a_long_list_of_findings_is_cut_and_says_so() -> None:
    findings = tuple(Finding("shop/a.py", line, "todo", "FIXME: x", "note") for line in range(1, 251))
    report = analyse("shop/a.py", "x = 1\n")
    run = small_run(files=(type(report)(path="shop/a.py", lines=250, code_lines=1, findings=findings),))

    assert "and 50 findings more" in render_html(run)
    assert "and 50 findings more" in render_markdown(run)


def test_a_run_report_survives_the_way_through_the_store() -> None:
    run = small_run()

    assert msgspec.json.decode(msgspec.json.encode(run), type=RunReport) == run


def test_a_contradiction_is_shown_although_the_ledger_balances() -> None:
    run = small_run(problems=("task 4 succeeded with attempt 1, and no <body> says so",))

    page, markdown = render_html(run), render_markdown(run)

    assert "Store, journal and report do not agree." in page
    assert "First of 1 problem: task 4 succeeded with attempt 1, and no &lt;body&gt; says so." in page
    assert r"no \<body\> says so." in markdown


def test_what_tasks_waited_for_is_in_both_reports_and_left_out_when_they_did_not() -> None:
    run = small_run(waited=(Waited("queue", 9, 0.25), Waited(EVIL, 2, 1234.5)))

    page, text = render_html(run), render_markdown(run)

    assert "| queue | 9 | 0.25 |" in text
    assert '<td>queue</td><td class="number">9</td><td class="number">0.25 s</td>' in page
    assert "1,234.50 s" in page
    assert "<script" not in page + text.replace("\\<script", "")
    assert "waited for" not in render_html(small_run()) + render_markdown(small_run())


def test_what_the_model_cost_and_how_its_limits_were_kept_is_in_both_reports() -> None:
    use = ModelUse(
        EVIL, limit=11, ceiling=64, calls=1401, throttled=3, input_tokens=9000, output_tokens=200, cost_usd=0.42
    )
    ours = msgspec.structs.replace(use, name="model", highest=12, too_many=1, pauses=(Pause(1.2, 1),))
    waited = (Waited("pause", 2, 2.25),)
    words = (
        "model: highest concurrency 12 (found by 1 refused call), 1 pause of 1.2 s, 1 request in it, "
        "0 attempts lost, 0.42 USD (made-up prices)."
    )

    page, text = render_html(small_run(use=ours, waited=waited)), render_markdown(small_run(use=ours, waited=waited))
    evil = small_run(use=use, waited=waited)

    assert f"Provider {words}" in page
    assert f"Provider {words}" in text
    for fact in ("<b>1,401</b> calls", "<b>3</b> answered 429", "<b>11</b> at once allowed at the end, of 64"):
        assert fact in page
    assert "ul" in Outline(page).tags
    assert "script" not in Outline(render_html(evil)).tags
    assert not re.search(r"(?<!\\)<script", render_markdown(evil))
    assert "0.42 USD." in render_html(evil)  # what one pays oneself is not made up


def test_what_the_agents_said_and_how_they_came_through_the_kill_is_in_both_reports() -> None:
    use = AgentsUse(agents=2, tools=8, runs=3, resumed=1)
    run = small_run(
        audits=(Audit("shop", f"Look at `sell`, {EVIL}", 7, "s", runs=2), Audit(EVIL, "Fine.", 8, "t")), agents=use
    )
    words = "gents: 2 done, 8 tool uses in 3 runs, 1 went on with its session after a kill, 0 tool uses repeated"

    page, text = render_html(run), render_markdown(run)

    assert words in page
    assert words in text
    assert "<b>2</b> coding agents" in page
    assert "<td>Look at <code>sell</code>, &lt;script&gt;" in page
    assert "| `shop` | 2 | Look at `sell`, " in text
    assert "script" not in Outline(page).tags
    assert not re.search(r"(?<!\\)<script", re.sub(r"`[^`]*`", "", text))


def test_a_run_without_agents_says_nothing_of_them() -> None:
    assert "oding agents" not in render_html(small_run()) + render_markdown(small_run())
