"""The other half of the contract: how a pool ends, by `shutdown`, with its object, with the interpreter, or in a fork.

`ExecutorEndings` holds for the standard pool, too. `SennitExecutorEndings` is what ours promise beyond that
(src/sennit/execute/executor_parts.py says why). What ends an interpreter runs in a child process.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
import weakref
from concurrent.futures import Executor, wait

import pytest

from tests.pools.executor_contract import LONG_S, Hold, Make, fail, identity, os_threads
from tests.pools.executor_many import ExecutorOfMany


def join_all(prefix: str) -> list[threading.Thread]:
    """Wait for the OS threads of a pool to end and return those that have not."""
    found = os_threads(prefix)
    for os_thread in found:
        os_thread.join(LONG_S)
    return [os_thread for os_thread in found if os_thread.is_alive()]


class ExecutorEndings(ExecutorOfMany):
    # ------------------------------------------------------------ shutdown

    def test_after_shutdown_nothing_is_taken(self, make: Make) -> None:
        pool = make()
        pool.shutdown()

        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            pool.submit(identity, 1)
        with pytest.raises(RuntimeError):
            pool.map(identity, [1])

    def test_shutdown_runs_what_is_queued_and_ends_the_os_threads(self, make: Make, hold: Hold) -> None:
        pool = make(1, thread_name_prefix="contract-ends")
        held = pool.submit(hold)
        futures = [pool.submit(identity, n) for n in range(400)]
        hold.let_go.set()

        pool.shutdown(wait=True)

        assert held.done()
        assert [future.result(0) for future in futures] == list(range(400))
        assert os_threads("contract-ends") == []

    def test_shutdown_without_waiting_comes_back_at_once_and_the_rest_still_runs(self, make: Make, hold: Hold) -> None:
        pool = make(1, thread_name_prefix="contract-later")
        held, pending = pool.submit(hold), pool.submit(identity, 3)

        pool.shutdown(wait=False)

        assert not held.done()
        with pytest.raises(RuntimeError):
            pool.submit(identity, 4)
        hold.let_go.set()
        assert pending.result(LONG_S) == 3
        assert join_all("contract-later") == []

    @pytest.mark.parametrize("waits", [True, False])
    def test_shutdown_can_cancel_what_has_not_begun_and_leaves_the_running_alone(
        self, make: Make, hold: Hold, *, waits: bool
    ) -> None:
        pool = make(2)
        held = pool.submit(hold)
        other = Hold()
        also_held = pool.submit(other)
        assert hold.begun.wait(LONG_S)
        assert other.begun.wait(LONG_S)
        pending = [pool.submit(identity, n) for n in range(50)]
        pending[-2].add_done_callback(lambda _: hold.let_go.set())
        pending[-1].add_done_callback(lambda _: other.let_go.set())

        pool.shutdown(wait=waits, cancel_futures=True)

        assert all(future.cancelled() for future in pending)
        assert held.result(0 if waits else LONG_S) == also_held.result(0 if waits else LONG_S) == "held"

    def test_leaving_a_with_block_waits(self, make: Make) -> None:
        with make(2) as pool:
            futures = [pool.submit(identity, n) for n in range(100)]

        assert [future.result(0) for future in futures] == list(range(100))
        with pytest.raises(RuntimeError):
            pool.submit(identity, 1)

    def test_shutdown_may_come_twice_and_before_any_work(self, make: Make) -> None:
        pool = make()

        pool.shutdown()
        pool.shutdown(wait=False)
        pool.shutdown(cancel_futures=True)

    def test_a_task_cannot_wait_for_its_own_end_and_the_pool_ends_all_the_same(self, make: Make) -> None:
        pool = make(2, thread_name_prefix="contract-own")

        error = pool.submit(pool.shutdown).exception(LONG_S)

        assert isinstance(error, RuntimeError)
        assert join_all("contract-own") == []

    # ------------------------------------------------------------ the executor object

    def test_a_forgotten_executor_runs_what_it_took_and_its_os_threads_end(self, make: Make, hold: Hold) -> None:
        module: dict[str, object] = {}
        exec(self.source, module)
        make_pool = module["make_pool"]
        assert callable(make_pool)
        pool: Executor = make_pool(2, thread_name_prefix="contract-gone")
        held = pool.submit(hold)
        futures = [pool.submit(identity, n) for n in range(20)]
        gone = weakref.ref(pool)

        del pool
        gc.collect()

        assert gone() is None
        hold.let_go.set()
        assert held.result(LONG_S) == "held"
        assert [future.result(LONG_S) for future in futures] == list(range(20))
        assert join_all("contract-gone") == []

    def test_a_forgotten_idle_executor_ends(self) -> None:
        module: dict[str, object] = {}
        exec(self.source, module)
        make_pool = module["make_pool"]
        assert callable(make_pool)
        pools = [make_pool(2, thread_name_prefix="contract-idle")]
        pools.append(pools)  # A cycle: the collector finds it, perhaps in one of the pool's own OS threads.
        pools[0].submit(identity, 1).result(LONG_S)

        del pools
        gc.collect()

        assert join_all("contract-idle") == []

    # ------------------------------------------------------------ the interpreter

    def run_program(self, program: str) -> list[str]:
        """Run `program` after `source` in an interpreter of its own and return its lines; it must end well."""
        text = f"{self.source}\n{textwrap.dedent(program)}"
        done = subprocess.run(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", text],
            capture_output=True,
            text=True,
            timeout=LONG_S,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    @pytest.mark.parametrize("ending", ["", "pool.shutdown(wait=False)", "del pool"])
    def test_what_is_pending_runs_before_the_interpreter_exits(self, ending: str) -> None:
        lines = self.run_program(f"""
            import threading
            main_ended = threading.Event()
            threading._register_atexit(main_ended.set)  # The last one in is the first to run.
            pool = make_pool(2)
            pool.submit(main_ended.wait, {LONG_S}), pool.submit(main_ended.wait, {LONG_S})
            for n in range(30):
                pool.submit(print, f"item {{n}}\\n", end="", flush=True)
            {ending}
        """)

        assert sorted(lines) == sorted(f"item {n}" for n in range(30))

    def test_a_task_that_submits_while_the_interpreter_exits_is_refused_and_what_was_taken_has_run(self) -> None:
        """Exit begins while the task submits: each submit either raises or its item runs."""
        lines = self.run_program(f"""
            import atexit, threading
            main_ends = threading.Event()
            threading._register_atexit(main_ends.set)
            taken, ran = [], []

            def body():
                main_ends.wait({LONG_S})
                try:
                    while True:
                        pool.submit(ran.append, len(taken))
                        taken.append(len(taken))
                except RuntimeError as error:
                    print("refused:", str(error).startswith("cannot schedule new futures after"), flush=True)

            atexit.register(lambda: print("every one ran:", sorted(ran) == taken))
            pool = make_pool(2)
            pool.submit(body)
        """)

        assert lines == ["refused: True", "every one ran: True"]

    def test_a_task_may_fork_and_its_parent_goes_on(self) -> None:
        lines = self.run_program("""
            import os

            def body():
                child = os.fork()
                if not child:
                    os._exit(7)
                return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

            with make_pool(2) as pool:
                print(*pool.map(lambda n: body() if n == 0 else n, range(4)))
        """)

        assert lines == ["7 1 2 3"]


class SennitExecutorEndings(ExecutorEndings):
    def test_waiting_for_futures_that_shutdown_has_cancelled_ends(self, make: Make, hold: Hold) -> None:
        pool = make(1)
        pool.submit(hold)
        assert hold.begun.wait(LONG_S)
        pending = {pool.submit(identity, n) for n in range(5)}

        pool.shutdown(wait=False, cancel_futures=True)

        assert wait(pending, timeout=LONG_S).done == pending

    def test_a_callback_that_raises_any_exception_costs_no_worker(
        self, make: Make, hold: Hold, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool = make(1)
        pool.submit(hold).add_done_callback(lambda _: fail(SystemExit("of a callback")))
        hold.let_go.set()

        assert pool.submit(identity, 2).result(LONG_S) == 2
        assert "of a callback" in caplog.text

    @pytest.mark.parametrize("begun", [True, False])
    def test_a_signal_while_an_os_thread_starts_costs_its_submit_and_nothing_else(
        self, make: Make, monkeypatch: pytest.MonkeyPatch, *, begun: bool
    ) -> None:
        """Ctrl-C in `Thread.start`, which waits for the new OS thread and so is where a submit is most of its time."""
        start, pool = threading.Thread.start, make(2, thread_name_prefix="contract-signal")

        def interrupted(os_thread: threading.Thread) -> None:
            if begun or not os_thread.name.startswith("contract-signal"):
                start(os_thread)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.submit(identity, 0)

        assert list(pool.map(identity, range(20), timeout=LONG_S)) == list(range(20))
        pool.shutdown()
        assert join_all("contract-signal") == []

    def test_a_child_that_comes_back_out_of_a_body_ends_there_and_runs_nothing_of_its_parents_queue(self) -> None:
        lines = self.run_program("""
            import os, sys

            def fork(leave):
                child = os.fork()
                if not child:
                    leave()
                    return None
                return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

            pool = make_pool(1)
            forks = [pool.submit(fork, leave) for leave in (lambda: None, lambda: sys.exit(5))]
            for n in range(20):
                pool.submit(os.write, 1, f"item {n}\\n".encode())
            pool.shutdown()
            print(*(future.result() for future in forks))
        """)

        assert sorted(lines) == sorted(["0 5", *(f"item {n}" for n in range(20))])

    def test_in_a_forked_child_a_pool_refuses_and_a_new_one_works(self) -> None:
        lines = self.run_program("""
            import os

            pool = make_pool(2)
            pool.submit(int).result()
            child = os.fork()
            if child:
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
                print("parent", pool.submit(int, 2).result())
            else:
                try:
                    with pool:
                        pool.submit(int)
                except RuntimeError as error:
                    print(str(error).splitlines()[0], flush=True)
                make_pool(2).submit(print, "child", flush=True)
        """)

        assert lines == ["cannot schedule new futures in a forked child", "child", "parent 2"]
