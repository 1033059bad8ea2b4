"""Creating several equal machines with one request."""

from __future__ import annotations

import asyncio

from skerry.machines.v1 import machines_pb2 as api

from gateway.machines import create_machine
from gateway.surroundings import Surroundings
from services.runtime.errors import InvalidConfig, SkerryError, Violation

MOST_MACHINES = 100
AT_ONCE = 16
"""Machines of one request that are made at the same time."""


async def create_machines(around: Surroundings, request: api.CreateMachineRequest, key: str) -> list[api.Machine]:
    """Create `request.count` machines; each has an idempotency key of its own, made from `key` where that is given.

    Not all or nothing: what was created stays. Raises the error of the first that could not be, which then names those
    that were; repeated with the same key, the request makes the others.
    """
    count = request.count
    if count > MOST_MACHINES:
        why = f"must not be more than {MOST_MACHINES}"
        raise InvalidConfig(f"count {why}", violations=[Violation("count", why)])
    at_once = asyncio.Semaphore(AT_ONCE)

    async def create(number: int) -> api.Machine:
        async with at_once:
            return await create_machine(around, one_of(request, number), f"{key}:{number}" if key else "")

    # What is wrong with all is wrong with the first: nothing is there then.
    machines = [await create(1)]
    made = await asyncio.gather(*(create(number) for number in range(2, count + 1)), return_exceptions=True)
    failed: tuple[int, BaseException] | None = None
    for number, result in enumerate(made, 2):
        if isinstance(result, api.Machine):
            machines.append(result)
        elif failed is None:
            failed = number, result
    if failed is not None:
        raise _with_those_made(*failed, count, machines, has_key=bool(key))
    return machines


def one_of(request: api.CreateMachineRequest, number: int) -> api.CreateMachineRequest:
    """The request for one of several machines, counted from 1."""
    one = api.CreateMachineRequest()
    one.CopyFrom(request)
    one.ClearField("count")
    if request.name:
        one.name = f"{request.name}-{number}"
    return one


def _with_those_made(
    number: int, error: BaseException, count: int, made: list[api.Machine], *, has_key: bool
) -> BaseException:
    if not isinstance(error, SkerryError):
        return error
    ids = ", ".join(machine.id for machine in made)
    again = "repeat the request with the same idempotency-key to create the others" if has_key else "they stay"
    return type(error)(
        f"{error.message}. That was machine {number} of {count}; {len(made)} were created ({ids}): {again}",
        violations=error.violations,
        metadata={**error.metadata, "created": ids},
        retry_after=error.retry_after,
    )
