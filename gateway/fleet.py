"""The workers of the cell, as the log has them."""

from __future__ import annotations

from collections.abc import Iterator

from skerry.store.v1.store_pb2 import WorkerRecord


class Fleet:
    """The workers by id, as of the newest change that was applied."""

    def __init__(self) -> None:
        self._workers: dict[str, WorkerRecord] = {}

    def __iter__(self) -> Iterator[WorkerRecord]:
        return iter(self._workers.values())

    def apply(self, worker: WorkerRecord) -> None:
        """A worker is there or has changed."""
        self._workers[worker.id] = worker

    def reset(self) -> None:
        """Forget everything: the state comes anew."""
        self._workers.clear()

    def get(self, worker_id: str) -> WorkerRecord | None:
        """The worker of that id, if this view has it."""
        return self._workers.get(worker_id)
