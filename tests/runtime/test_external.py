"""Handlers whose tasks are for agents from outside: submitted like any other, and run by no worker."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sennit import App
from sennit.errors import SettingsError
from sennit.model.lifecycle import State
from tests.runtime.provider_facts import on_a_loop


@on_a_loop
async def test_a_worker_leaves_tasks_alone_that_are_for_agents_from_outside(tmp_path: Path) -> None:
    with closing(App(f"sqlite:///{tmp_path}/fleet.db")) as app:

        @app.task(external=True)
        def triage(issue: int) -> str:
            raise AssertionError(issue)

        @app.task
        def ours() -> int:
            return 1

        assert triage.options_in_force.queue == "external"
        assert "external" not in app.served_queues()
        async with app:
            theirs = triage.submit(7)

            @app.task(external=True)
            def later(issue: int) -> str:  # declared while the workers are there
                raise AssertionError(issue)

            late = later.submit(8)
            assert await ours.submit() == 1
            assert [(await handle.view()).state for handle in (theirs, late)] == [State.READY, State.READY]


@pytest.mark.parametrize("how", [{"cpu": True}, {"timeout_s": 1.0}, {"provider": "openai"}, {"preemptible": True}])
def test_options_of_a_body_are_refused_where_there_is_none(how: dict[str, Any], tmp_path: Path) -> None:
    app = App(f"sqlite:///{tmp_path}/fleet.db")
    with pytest.raises(SettingsError, match="is external"):
        app.task(external=True, **how)(lambda: None)
