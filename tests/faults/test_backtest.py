"""A backtest that is cut by the death of the converter that runs it."""

from __future__ import annotations

import threading

from services.cli import backtesting
from services.cli.benchmarks import backtesting as stored
from services.cli.benchmarks.bed import WEB_CONFIG
from tests.e2e.meshes import RunningMesh

MACHINES = 12_000


async def test_a_backtest_goes_on_after_the_last_machine_that_a_killed_converter_told_of() -> None:
    with RunningMesh("--workers", "1") as running:
        running.ok("POST", "/apps", {"name": "tested"})
        for number in range(4):
            config = {**WEB_CONFIG, "env": {"NUMBER": str(number)}}
            running.ok("POST", "/apps/tested/machines", {"config": config, "skip_launch": True})
        await stored.copy_machines(running.mesh, MACHINES - 4, 4)

        [process] = running.mesh.processes("syd")
        back: list[threading.Thread] = []
        told: list[int] = []

        def tell(done: int, total: int) -> None:
            told.append(done)
            assert done <= total == MACHINES
            if not back:
                running.kill(process)
                back.append(threading.Thread(target=running.up))
                back[0].start()

        thread = threading.Thread(target=lambda: tests.append(backtesting.run(running.mesh, "syd", tell=tell)))
        tests: list[backtesting.Backtest] = []
        thread.start()
        thread.join(120)
        back[0].join(60)
        [test] = tests
        assert told == sorted(told), "nothing is converted twice"
        assert (test.converted, test.changed) == (MACHINES, [])
