"""Calls of the hand-over of regions, and what they answer in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from services.cli import inside
from services.cli.mesh import Mesh

if TYPE_CHECKING:
    import grpc
    from skerry.handover.v1 import handover_pb2

CALL_SECONDS = 10.0


def stub(channel: grpc.aio.Channel) -> Any:
    """The hand-over of the region that `channel` leads to."""
    from skerry.handover.v1.handover_pb2_grpc import HandoverStub

    return HandoverStub(channel)


def mode_name(mode: int) -> str:
    """A mode as users read it: "local-checked"."""
    from skerry.handover.v1 import plan_pb2

    name = plan_pb2.PartMode.Name(plan_pb2.PartMode.ValueType(mode))
    return name.removeprefix("PART_MODE_").lower().replace("_", "-")


def statuses(mesh: Mesh, regions: list[str]) -> dict[str, handover_pb2.GetStatusResponse | inside.Refusal]:
    """The state of the hand-over in each of `regions`, or why it is not known."""
    from skerry.handover.v1 import handover_pb2

    async def status(channel: grpc.aio.Channel) -> handover_pb2.GetStatusResponse:
        answer: handover_pb2.GetStatusResponse = await stub(channel).GetStatus(
            handover_pb2.GetStatusRequest(), timeout=CALL_SECONDS
        )
        return answer

    return dict(inside.ask_all(mesh, regions, status))
