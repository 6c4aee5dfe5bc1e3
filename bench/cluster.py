"""CPU bodies on a cluster: the task rate of `cluster` beside Ray's own and Dask's own, and the hand-over of a 32 MB array.

    ray-venv/bin/python bench/cluster.py [--tasks 2000] [--rounds 3]      as root; needs the extras `cluster` and dask

All sides get the same two processes' worth of cores on this machine and take turns. It runs in network, process and mount
namespaces of its own, since Ray listens on the host's interface whatever it is told.

    ray          a remote function, `ray.get` of all            no store
    dask         `client.map`, `gather`                         no store
    cluster      RayPool.run: through the broker, as JSON       no store
    local        ProcessPool.run                                no store
    … durable    the same with a store: submitted, claimed, run, recorded, SQLite with fsync
"""

# ruff: noqa: PLC0415 - each side imports what only it needs, in the namespaces and after Ray has started

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

BENCH: Final = Path(__file__).resolve().parent
CORES: Final = 2
IN_FLIGHT: Final = 2 * CORES  # of a pool: enough that no core waits for the next
ROWS: Final = 4096  # × 1024 float64 = 32 MiB
INSIDE: Final = "BENCH_CLUSTER_INSIDE"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if INSIDE not in os.environ:
        isolate()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as name:
        folder = Path(name)
        start_ray(folder)
        sys.path.insert(0, str(BENCH))
        measure(folder, options.tasks, options.rounds)


def isolate() -> None:
    """Become this same program in namespaces of its own, all of which end with it."""
    argv = ["unshare", "-n", "-m", "-p", "--fork", "--mount-proc", "--kill-child", sys.executable, *sys.argv]
    os.environ[INSIDE] = "1"
    os.execvp(argv[0], argv)


def start_ray(folder: Path) -> None:
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    os.environ |= {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": "127.0.0.1:6379", "PYTHONPATH": str(BENCH),
    }  # fmt: skip
    ray = str(Path(sys.executable).with_name("ray"))
    argv = [ray, "start", "--head", "--node-ip-address=127.0.0.1", "--port=6379", f"--num-cpus={CORES}"]
    argv += ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder / 'ray'}"]
    subprocess.run([*argv, "--object-store-memory=1000000000"], check=True, stdout=subprocess.DEVNULL)


def measure(folder: Path, n: int, rounds: int) -> None:
    sides: dict[str, Callable[[], Mapping[str, float]]] = {
        "ray": lambda: ray_side(n),
        "dask": lambda: dask_side(n),
        "cluster": lambda: asyncio.run(pool_side("ray", folder, n)),
        "local": lambda: asyncio.run(pool_side("", folder, n)),
        "cluster, durable": lambda: durable_side("ray", folder, n),
        "local, durable": lambda: durable_side("", folder, n),
    }
    found: dict[str, list[Mapping[str, float]]] = {name: [] for name in sides}
    order = list(sides)
    for turn in range(rounds):
        for name in order[turn:] + order[:turn]:
            found[name].append(sides[name]())
    columns = ["tasks/s", "one, ms", "32 MB in, first, ms", "32 MB in, again, ms", "32 MB handed on, ms"]
    print(f"\n{n} no-op tasks, {CORES} cores, median of {rounds} rounds; load {os.getloadavg()[0]:.1f}")
    print(f"{'':18}" + "".join(f"{column:>21}" for column in columns))
    for name, runs in found.items():
        cells = [statistics.median(run[c] for run in runs) if c in runs[0] else None for c in columns]
        print(f"{name:18}" + "".join(f"{'—':>21}" if c is None else f"{c:21,.1f}" for c in cells))


def ms_since(began_s: float) -> float:
    return (time.perf_counter() - began_s) * 1000


def rate(n: int, run_all: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    run_all()
    return n / (time.perf_counter() - began_s)


def times_ms(run: Callable[[], object], n: int = 5) -> list[float]:
    """Return how long each of `n` runs took."""
    found = []
    for _ in range(n):
        began_s = time.perf_counter()
        run()
        found.append(ms_since(began_s))
    return found


# ---------------------------------------------------------------- the peers


def ray_side(n: int) -> Mapping[str, float]:
    import numpy as np
    import ray
    from cluster_bodies import look, make, nothing

    ray.init("auto", logging_level="ERROR", log_to_driver=False)
    none, maker, looker = (ray.remote(num_cpus=1, max_retries=0)(t.function) for t in (nothing, make, look))
    ray.get([none.remote(i) for i in range(50)])
    array = np.full((ROWS, 1024), 1.0)
    ray.get(looker.remote(ray.put(array)))
    began_s = time.perf_counter()
    ref = ray.put(array)
    ray.get(looker.remote(ref))
    first_ms = ms_since(began_s)
    found = {
        "tasks/s": rate(n, lambda: ray.get([none.remote(i) for i in range(n)])),
        "one, ms": statistics.median(times_ms(lambda: ray.get(none.remote(1)), 50)),
        "32 MB in, first, ms": first_ms,
        "32 MB in, again, ms": statistics.median(times_ms(lambda: ray.get(looker.remote(ref)))),
        "32 MB handed on, ms": statistics.median(times_ms(lambda: ray.get(looker.remote(maker.remote(ROWS))))),
    }
    ray.shutdown()
    return found


def dask_side(n: int) -> Mapping[str, float]:
    import numpy as np
    from cluster_bodies import look, make, nothing
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=CORES, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster,
        Client(cluster) as client,
    ):
        client.gather(client.map(nothing.function, range(50), pure=False))
        array = np.full((ROWS, 1024), 1.0)
        client.submit(look.function, client.scatter(array, hash=False), pure=False).result()
        began_s = time.perf_counter()
        future = client.scatter(array, hash=False)
        client.submit(look.function, future, pure=False).result()
        first_ms = ms_since(began_s)

        def hand_on() -> object:
            return client.submit(look.function, client.submit(make.function, ROWS, pure=False), pure=False).result()

        return {
            "tasks/s": rate(n, lambda: client.gather(client.map(nothing.function, range(n), pure=False))),
            "one, ms": statistics.median(times_ms(lambda: client.submit(nothing.function, 1, pure=False).result(), 50)),
            "32 MB in, first, ms": first_ms,
            "32 MB in, again, ms": statistics.median(
                times_ms(lambda: client.submit(look.function, future, pure=False).result())
            ),
            "32 MB handed on, ms": statistics.median(times_ms(hand_on)),
        }


# ---------------------------------------------------------------- ours


async def pool_side(cluster: str, folder: Path, n: int) -> Mapping[str, float]:
    import msgspec
    import numpy as np

    from sennit.execute.cluster import open_cpu_pool
    from sennit.execute.processes import Job
    from sennit.model.settings import Settings
    from sennit.sync import array_files

    place = folder / f"arrays-{secrets.token_hex(4)}"
    array_files.keep_in(place)
    pool = open_cpu_pool(Settings(cluster=cluster), processes_max=CORES)

    async def run(body: str, **arguments: Any) -> Any:
        payload = msgspec.json.encode(arguments, enc_hook=array_files.plain_of)
        return msgspec.json.decode(await pool.run(Job(f"cluster_bodies:{body}", payload)))

    async def run_all(m: int) -> None:
        left = iter(range(m))

        async def one_after_the_other() -> None:
            for i in left:
                await run("nothing", n=i)

        await asyncio.gather(*(one_after_the_other() for _ in range(IN_FLIGHT)))

    await run_all(50)
    await run("look", values=np.full((ROWS, 1024), 2.0))
    began_s = time.perf_counter()
    await run_all(n)
    per_s = n / (time.perf_counter() - began_s)
    began_s = time.perf_counter()
    for i in range(50):
        await run("nothing", n=i)
    one_ms = ms_since(began_s) / 50
    array = np.full((ROWS, 1024), 3.0)
    began_s = time.perf_counter()
    await run("look", values=array)
    first_ms = ms_since(began_s)
    began_s = time.perf_counter()
    form = array_files.plain_of(array)
    for _ in range(5):
        await run("look", values=form)
    again_ms = ms_since(began_s) / 5
    began_s = time.perf_counter()
    for i in range(5):
        await run("look", values=await run("make", rows=ROWS + i))  # another file each time
    handed_ms = ms_since(began_s) / 5
    await pool.close()
    shutil.rmtree(place)
    return {
        "tasks/s": per_s,
        "one, ms": one_ms,
        "32 MB in, first, ms": first_ms,
        "32 MB in, again, ms": again_ms,
        "32 MB handed on, ms": handed_ms,
    }


def durable_side(cluster: str, folder: Path, n: int) -> Mapping[str, float]:
    from cluster_bodies import app, look, make, nothing

    home = folder / secrets.token_hex(4)
    app.use(f"sqlite:///{home}/bench.db", cluster=cluster, cpu_slots=IN_FLIGHT if cluster else CORES)
    with app:
        nothing.map(range(50)).result()
        found = {
            "tasks/s": rate(n, lambda: nothing.map(range(n)).result()),
            "one, ms": statistics.median(times_ms(lambda: nothing.submit(1).result(), 50)),
        }
        began_s = time.perf_counter()
        for i in range(5):
            made: Any = make.submit(ROWS + i)
            look.submit(made).result()
        found["32 MB handed on, ms"] = ms_since(began_s) / 5
    shutil.rmtree(home)
    return found


if __name__ == "__main__":
    main()
