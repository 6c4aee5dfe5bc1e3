"""The documentation is true where that can be checked: drawn tables, links, names of files and of the public API."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import sennit
from sennit import App, Handle
from sennit.runtime.agent_face import AgentFace
from sennit.runtime.lock_face import LockFace
from sennit.runtime.provider_face import ProviderFace
from sennit.store.lease import Lease
from sennit.store.leases import Lock, RWLock
from sennit.store.protocol import Listener, Store
from sennit.store.protocol_agents import AgentStore
from sennit.store.protocol_locks import LockBackend
from sennit.store.protocol_providers import ProviderStore
from sennit.store.protocol_threads import ThreadStore
from sennit.submit.handle import Handles
from sennit.submit.limits import Call, Limits, Provider
from sennit.submit.options import SubmitOptions
from sennit.submit.registry import Task
from sennit.threads.inbox import Inbox, Question
from sennit.threads.state import State
from sennit.threads.thread import Thread

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (?P<text>.+)$", re.MULTILINE)
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_COUNTED = re.compile(r"^\| `(?P<path>[\w/.]+\.(?:py|sql))` \| (?P<lines>\d+) \|", re.MULTILINE)
COUNT_TOLERANCE = 0.25  # a trace says how much there is to read, not the exact length


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as the usual renderers make them."""
    headings = (m["text"].replace("`", "").lower() for m in _HEADING.finditer(prose(page)))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


def relative_links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for match in _LINK.finditer(prose(page)):
            if not re.match(r"[a-z]+:", match["target"]):
                yield page, match["target"]


def test_the_drawn_tables_are_current() -> None:
    argv = [sys.executable, str(DOCS / "generate.py"), "--check"]

    done = subprocess.run(argv, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), "run: python docs/generate.py"


def test_every_relative_link_leads_somewhere() -> None:
    broken = []
    for page, target in relative_links():
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        if not place.exists() or (anchor and place.suffix == ".md" and anchor not in anchors(place)):
            broken.append(f"{name(page)}: {target}")

    assert broken == []


def test_every_page_is_on_the_map() -> None:
    index = DOCS / "index.md"
    linked = {(page.parent / target.partition("#")[0]).resolve() for page, target in relative_links() if page == index}

    missing = [name(page) for page in PAGES if page not in linked and page not in {index, ROOT / "README.md"}]

    assert missing == []


def test_every_page_has_one_title() -> None:
    odd = [name(page) for page in PAGES if len(re.findall(r"^# ", prose(page), re.MULTILINE)) != 1]

    assert odd == []


def test_line_counts_of_files_are_about_right() -> None:
    wrong = []
    for page in PAGES:
        for match in _COUNTED.finditer(page.read_text(encoding="utf-8")):
            file = ROOT / "src" / "sennit" / match["path"]
            lines = len(file.read_text(encoding="utf-8").splitlines())
            if abs(lines - int(match["lines"])) > max(10, COUNT_TOLERANCE * lines):
                wrong.append(f"{name(page)}: {match['path']} has {lines} lines, not {match['lines']}")

    assert wrong == []


OBJECTS = {
    App: "app.",
    ProviderFace: "app.",
    LockFace: "app.",
    AgentFace: "app.",
    Provider: "provider.",
    Limits: "limits.",
    Call: "call.",
    Task: "task.",
    Handle: "handle.",
    Handles: "handles.",
    Thread: "thread.",
    State: "state.",
    Inbox: "inbox.",
    Question: "question.",
    Lock: "lock.",
    RWLock: "rwlock.",
    Lease: "lease.",
}


def public_names() -> Iterator[str]:
    """Yield what a user can call: the package's names, methods of its objects, and options of a submit."""
    yield from sennit.__all__
    for owner, prefix in OBJECTS.items():
        for member, value in vars(owner).items():
            if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                yield f"{prefix}{member}"
    yield from SubmitOptions.__annotations__


def test_every_public_name_is_in_the_api_reference() -> None:
    text = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")

    missing = [public for public in public_names() if not re.search(rf"`{re.escape(public)}(?:[`(=])", text)]

    assert missing == []


def test_every_method_of_a_store_is_in_the_store_reference() -> None:
    text = (DOCS / "reference" / "store-protocol.md").read_text(encoding="utf-8")
    methods = [
        m
        for owner in (Store, ThreadStore, ProviderStore, LockBackend, AgentStore, Listener)
        for m, value in vars(owner).items()
        if inspect.isfunction(value)
    ]

    missing = [method for method in methods if not method.startswith("_") and f"`{method}" not in text]

    assert missing == []
