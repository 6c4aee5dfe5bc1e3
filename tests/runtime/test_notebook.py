"""sennit in a real Jupyter kernel: cells that submit, await, work, and stop working again.

A notebook is made here, executed by nbclient in an ipykernel process, and read again. A cell runs inside the kernel's
event loop: `await` works at its top level, and an app that was started in one cell works for the next ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import nbclient
import nbformat
import pytest

WAIT_S = 50

HANDLERS = """
import asyncio
from sennit import App

app = App({url!r}, drain_s=0.1)

@app.task
def add(x: int, y: int = 10) -> int:
    return x + y

@app.task
async def double(x: int) -> int:
    await asyncio.sleep(0)
    return 2 * x

@app.task
async def never() -> None:
    await asyncio.Event().wait()
"""

Execute = Callable[..., list[str]]


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Execute:
    """Execute a notebook of these cells, after one that makes an app; return what each has printed or raised."""
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    url = f"sqlite:///{tmp_path / 'notebook.db'}"

    def execute(*cells: str) -> list[str]:
        sources = [HANDLERS.format(url=url), *cells]
        notebook = nbformat.v4.new_notebook()  # type: ignore[no-untyped-call]  # nbformat has no types
        notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]  # type: ignore[no-untyped-call]
        client = nbclient.NotebookClient(notebook, timeout=WAIT_S, allow_errors=True, kernel_name="python3")
        asyncio.run(client.async_execute())  # its sync face makes a loop that nobody closes
        return [shown(cell) for cell in notebook.cells[1:]]

    return execute


def shown(cell: nbformat.NotebookNode) -> str:
    """Return the streams of a cell, the value of its last line, and its exception, in this order of their arrival."""
    parts = []
    for output in cell.outputs:
        match output.output_type:
            case "stream":
                parts.append(output.text)
            case "execute_result":
                parts.append(output.data["text/plain"] + "\n")
            case "error":
                parts.append(f"{output.ename}: {output.evalue}\n")
    return "".join(parts)


def test_cells_work_with_async_with_and_with_a_plain_with_in_turn(execute: Execute) -> None:
    outputs = execute(
        "async with app:\n    print(await add.submit(1, y=2), await double.map([1, 2, 3]))",
        "with app:\n    print(await add.submit(3, 4), await double.submit(5))",
        "async with app:\n    print(await add.submit(5))",
    )

    assert outputs == ["3 [2, 4, 6]\n", "7 10\n", "15\n"]


def test_an_app_that_one_cell_starts_works_for_the_next_ones_until_one_stops_it(execute: Execute) -> None:
    outputs = execute(
        "await app.start()",
        "handle = double.submit(add.submit(1).as_argument())",
        "await handle",
        "await app.stop()",
        "ledger = await app.ledger()\nledger.succeeded, ledger.live, ledger.balanced",
    )

    assert outputs == ["", "", "22\n", "", "(2, 0, True)\n"]


def test_what_a_cell_submits_while_nobody_works_is_done_in_a_later_cell(execute: Execute) -> None:
    outputs = execute(
        "handles = double.map(range(3))\nstored = await handles[-1].stored()",
        "(await app.ledger()).live",
        "async with app:\n    print(await handles)",
        "with app:\n    print(await handles[0])",
    )

    assert outputs == ["", "3\n", "[0, 2, 4]\n", "0\n"]


@pytest.mark.parametrize("opening", ["with app:", "async with app:"])
def test_result_in_a_cell_says_to_use_await_and_the_kernel_goes_on(execute: Execute, opening: str) -> None:
    refused, after = execute(f"{opening}\n    never.submit().result()", "1 + 1")

    assert refused.startswith("UsageError: ")
    assert "write `await handle` instead of `handle.result()`" in refused
    assert after == "2\n"


def test_a_cell_that_defines_a_handler_can_be_run_again_and_edited(execute: Execute) -> None:
    define = "@app.task\ndef half(x: int) -> int:\n    return x // {by}"
    call = "async with app:\n    print(await half.submit(12))"

    outputs = execute(define.format(by=2), define.format(by=2), call, define.format(by=3), call)

    assert outputs == ["", "", "6\n", "", "4\n"]


def test_a_handler_that_is_edited_while_the_app_works_is_what_runs_from_then_on(execute: Execute) -> None:
    define = "@app.task\ndef half(x: int) -> int:\n    return x // {by}"
    call = "await half.submit(12)"

    outputs = execute(define.format(by=2), "await app.start()", call, define.format(by=3), call, "await app.stop()")

    assert outputs == ["", "", "6\n", "", "4\n", ""]
