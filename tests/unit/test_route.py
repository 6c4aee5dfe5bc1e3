"""Routes are texts: equal needs are equal texts, and a worker fits or not by its labels and version alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sennit import App
from sennit.errors import SettingsError
from sennit.model.route import checked_labels, checked_version, fits, parts_of, route_of, route_words
from sennit.model.settings import Settings
from sennit.model.task import WorkerInfo

labels = st.sets(st.sampled_from(["gpu", "eu", "us", "zone:eu-1", "nvme"])).map(lambda found: tuple(sorted(found)))
versions = st.sampled_from(["", "1", "2026-11-21.1"])


@given(needs=labels, version=versions)
def test_a_route_says_all_that_it_was_made_of(needs: tuple[str, ...], version: str) -> None:
    assert parts_of(route_of(needs, version)) == (needs, version)
    assert (route_of(needs, version) == "") == (not needs and not version)


@given(needs=labels, pinned=versions, has=labels, version=versions)
def test_a_worker_fits_that_has_all_labels_and_the_version(
    needs: tuple[str, ...], pinned: str, has: tuple[str, ...], version: str
) -> None:
    expected = set(needs) <= set(has) and pinned in {"", version}

    assert fits(route_of(needs, pinned), has, version) is expected
    assert fits(route_of(needs, pinned), ("*",), version) is (pinned in {"", version})


def test_labels_come_in_order_each_once_from_text_or_several() -> None:
    assert (
        checked_labels("gpu, eu,gpu,")
        == checked_labels(["gpu", "eu"])
        == checked_labels({"eu", "gpu"})
        == ("eu", "gpu")
    )
    assert checked_labels("") == ()
    assert checked_labels("*", of_worker=True) == ("*",)


@pytest.mark.parametrize(
    "wrong", ["=1", "a b", "*", "-x", ["a,b"], [7], 7, None, "x" * 64, [f"l{n}" for n in range(33)]]
)
def test_what_is_no_label_is_refused(wrong: object) -> None:
    with pytest.raises(SettingsError):
        checked_labels(wrong)


@pytest.mark.parametrize("wrong", ["a,b", "=1", " 1", "", 7, None, "x" * 101])
def test_what_is_no_version_is_refused_but_for_none(wrong: object) -> None:
    if wrong == "":
        assert checked_version(wrong) == ""
    else:
        with pytest.raises(SettingsError):
            checked_version(wrong)


def test_a_route_reads_well() -> None:
    assert route_words("eu,gpu,=7") == "eu, gpu and version 7"
    assert route_words("gpu") == "gpu"
    assert route_words("=7") == "version 7"


def test_only_a_worker_that_serves_the_queue_may_run_its_tasks() -> None:
    worker = WorkerInfo(id=1, pid=1, host="h", boot_id="b", queues={"q": 1}, labels=("gpu",))
    client = WorkerInfo(id=2, pid=1, host="h", boot_id="b", role="client", queues={"q": 1})

    assert worker.may_run("gpu", "q")
    assert not worker.may_run("gpu", "z")
    assert not client.may_run("", "q")


def test_an_app_takes_labels_as_one_text_or_as_several() -> None:
    assert App("memory://", labels=("gpu", "eu")).settings.labels == "eu,gpu"
    assert App("memory://", labels="gpu,eu").settings.labels == "gpu,eu"
    for wrong in ({"labels": "a b"}, {"version": "a,b"}):
        with pytest.raises(SettingsError):
            Settings.of(wrong)


def test_the_options_of_a_task_say_its_route() -> None:
    app = App("memory://", version="7")

    @app.task(needs="gpu", pinned=True)
    def train() -> int:
        return 1

    @app.task
    def plain() -> int:
        return 1

    with app.testing() as t:
        for task in (train, train.options(needs=("eu", "gpu"), pinned=False), train.options(needs=()), plain):
            task.submit()

        assert [view.route for view in t.tasks] == ["gpu,=7", "eu,gpu", "=7", ""]
        assert t.drain().succeeded == 4


def test_a_pinned_task_of_an_app_without_a_version_is_refused() -> None:
    app = App("memory://")

    @app.task(pinned=True)
    def work() -> None: ...

    with app.testing(), pytest.raises(SettingsError, match="the app has none"):
        work.submit()


@pytest.mark.parametrize("options", [{"needs": "a b"}, {"pinned": "1"}, {"needs": "*"}])
def test_wrong_options_are_refused_where_they_are_written(options: Any) -> None:
    app = App("memory://")

    @app.task
    def work() -> None: ...

    with pytest.raises(SettingsError):
        work.options(**options)
