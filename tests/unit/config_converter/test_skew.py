"""Releases, plans and answers that cross each other in every order: what is accepted is always of one plan.

The rules walk random interleavings of: converters of three releases in any mix, instances that lag behind the plan, a
centre between two releases, promotions, reverts, seals, decisions and conversions that are under way meanwhile, and
answers that are lost or wrong. The model's own part is the store: the check of the epoch, and its log of plans.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Generator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, cast

from google.protobuf.message import Message
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from skerry.converter.v1.converter_pb2 import PART_OWNER_CENTRE, PART_OWNER_REGION, ConversionResult
from skerry.handover.v1.plan_pb2 import (
    PART_MODE_CENTRAL,
    PART_MODE_LOCAL,
    PART_MODE_LOCAL_CHECKED,
    PART_MODE_SHADOW,
    PartEvidence,
    PartPlan,
    Plan,
)
from skerry.sync.v1.sync_pb2 import CentralPart, ConvertPartsRequest, ConvertPartsResponse
from skerry.types.v1.config_pb2 import MachineConfig

from services.config_converter.conversion import PART_NAMES, Context
from services.config_converter.handover import (
    BacktestSummary,
    Change,
    Serving,
    Situation,
    allowing,
    automatic_reversion,
    entry_of,
    promotion,
    reversion,
    sealing,
    served,
    unsealing,
)
from services.config_converter.part import NO_FACTS, Convert, Facts, Part, Problems
from services.config_converter.parts import PARTS
from services.config_converter.planned import PlannedConversion, Recipe, Requests, Seen
from services.runtime.errors import DependencyDown, InvalidConfig, PartUnserved, SkerryError
from tests.unit.config_converter.plans import SETTINGS, entry, plan_of

INTERLEAVINGS = 2_000
LEAST = INTERLEAVINGS // 50

MOVING = ("env", "guest", "metadata")
"""Parts that are handed over here; each shows in its spec who made it."""


def mark(owner: str, version: int) -> str:
    return f"{owner}@{version}"


def marking(part: str, convert: Convert, owner: str, version: int) -> Convert:
    def converted(config: MachineConfig, facts: Facts, problems: Problems) -> Message:
        made = convert(config, facts, problems)
        spec: Any = deepcopy(made)
        if part == "guest":
            spec.host_dedication_id = mark(owner, version)
        elif part == "env":
            spec.variables["MADE_BY"] = mark(owner, version)
        else:
            spec.entries["made-by"] = mark(owner, version)
        return cast(Message, spec)

    return converted


def maker(part: str, spec: Any) -> str:
    if part == "guest":
        return str(spec.guest.host_dedication_id)
    return str(spec.env.variables["MADE_BY"] if part == "env" else spec.metadata.entries["made-by"])


def release(**versions: list[int]) -> tuple[Part, ...]:
    """A release of the converter: parts with the versions that it can serve."""
    return tuple(
        replace(
            part,
            converters={v: marking(part.name, part.convert, "region", v) for v in versions.get(part.name, [1])},
        )
        if part.name in MOVING
        else part
        for part in PARTS
    )


RELEASES = {
    "N": release(),
    "N+1": release(env=[1, 2], guest=[1, 2], metadata=[1]),
    "N+2": release(env=[2], guest=[1, 2], metadata=[1, 2]),
}

CENTRES: dict[str, dict[str, int]] = {
    "M": dict.fromkeys(PART_NAMES, 1),
    "M+1": {**dict.fromkeys(PART_NAMES, 1), "env": 2},
    # What started it all: a release that converts one part less.
    "M+2": {name: 1 for name in PART_NAMES if name != "guest"} | {"env": 2},
}
REQUESTS = Requests(PARTS)
CONFIG = MachineConfig(image="nginx", env={"A": "1"})
BAD_CONFIG = MachineConfig(image="nginx", env={"A=": "1"})


class Question:
    """A conversion that waits for the centre: resumed with its answer, or with an error."""

    def __init__(self, request: ConvertPartsRequest) -> None:
        self.request = request

    def __await__(self) -> Generator[Question, ConvertPartsResponse, ConvertPartsResponse]:
        return (yield self)


async def ask(request: ConvertPartsRequest) -> ConvertPartsResponse:
    return await Question(request)


class Nobody:
    """An observer that compares nothing."""

    def observe(self, seen: Seen) -> None:
        pass


CONVERSION = PlannedConversion(REQUESTS, ask, Nobody(), now=lambda: 0.0, random=Random(7), settings=SETTINGS)


@dataclass(eq=False)
class Converter:
    """An instance: its release, and the recipe of the plan that it has applied."""

    name: str
    release: str
    recipe: Recipe


@dataclass(eq=False)
class UnderWay:
    """A request of a user: converting, or converted and not yet committed."""

    coroutine: Coroutine[Question, ConvertPartsResponse, ConversionResult]
    question: Question | None = None
    result: ConversionResult | None = None
    min_epoch: int = 0
    again: bool = False
    config: MachineConfig = field(default_factory=MachineConfig)


def entries_of(part: str) -> st.SearchStrategy[PartPlan]:
    """Any entry of a part that was never sealed."""
    modes = st.sampled_from([PART_MODE_CENTRAL, PART_MODE_SHADOW, PART_MODE_LOCAL_CHECKED, PART_MODE_LOCAL])
    allowed = st.sampled_from([(1,), (1, 2), (2,)])
    return st.builds(entry, st.just(part), modes, version=st.integers(1, 2), central=allowed)


class Skew(RuleBasedStateMachine):
    converters = st.sampled_from(["a", "b", "c"])
    releases = st.sampled_from(sorted(RELEASES))
    centres = st.sampled_from(sorted(CENTRES))
    parts = st.sampled_from(MOVING)
    choices = st.integers(0, 1_000)

    @initialize(
        entries=st.tuples(*map(entries_of, MOVING)),
        others=st.sampled_from([PART_MODE_CENTRAL, PART_MODE_LOCAL]),
        of=st.tuples(releases, releases, releases),
    )
    def begin(self, entries: tuple[PartPlan, ...], others: Any, of: tuple[str, str, str]) -> None:
        self.plans = [plan_of(*entries, others=others)]
        self.running = {
            name: Converter(name, of, self.recipe(of, self.plan)) for name, of in zip("abc", of, strict=True)
        }
        self.serving: dict[str, frozenset[str]] = {}
        for name in "abc":
            self.register(name)
        self.requests: list[UnderWay] = []
        self.decided: list[tuple[int, Change]] = []
        self.accepted: list[tuple[int, ConversionResult]] = []
        self.checked = 0

    @property
    def plan(self) -> Plan:
        return self.plans[-1]

    def recipe(self, of: str, plan: Plan) -> Recipe:
        return Recipe(plan, RELEASES[of], SETTINGS, of)

    # Instances.

    @rule(name=converters, of=releases)
    def replace_converter(self, name: str, of: str) -> None:
        """A process of another release takes its place. It is not asked before it has caught up."""
        self.running[name] = Converter(name, of, self.recipe(of, self.plan))

    @rule(name=converters)
    def register(self, name: str) -> None:
        """Until then the store knows what was there before."""
        parts = RELEASES[self.running[name].release]
        self.serving[name] = frozenset(served(part.name, v) for part in parts for v in part.converters)

    @precondition(lambda self: any(c.recipe.epoch < self.plan.epoch for c in self.running.values()))
    @rule(name=converters, choice=choices)
    def apply(self, name: str, choice: int) -> None:
        """An instance comes to some later plan, not always the last."""
        converter = self.running[name]
        later = [plan for plan in self.plans if plan.epoch > converter.recipe.epoch]
        if later:
            converter.recipe = self.recipe(converter.release, later[choice % len(later)])

    # Users.

    @rule(name=converters, bad=st.integers(0, 9).map(lambda n: n == 0))
    def ask_for_a_conversion(self, name: str, bad: bool) -> None:
        self.convert(UnderWay(self.coroutine(name, CONFIG), config=CONFIG) if not bad else self.bad(name))

    def bad(self, name: str) -> UnderWay:
        return UnderWay(self.coroutine(name, BAD_CONFIG), config=BAD_CONFIG)

    def coroutine(self, name: str, config: MachineConfig) -> Any:
        return CONVERSION.convert(self.running[name].recipe, config, Context("web", "syd"), NO_FACTS)

    def convert(self, request: UnderWay) -> None:
        self.go_on(request, lambda: request.coroutine.send(None))  # type: ignore[arg-type]

    def go_on(self, request: UnderWay, resume: Callable[[], Question]) -> None:
        request.question = None
        try:
            request.question = resume()
        except StopIteration as end:
            request.result = end.value
            assert request.config is CONFIG, "what is wrong was accepted"
        except InvalidConfig:
            assert request.config is BAD_CONFIG, "what is right was refused as wrong"
            return
        except (PartUnserved, DependencyDown) as error:
            totals[type(error).__name__] += 1
            return
        self.requests.append(request)

    def take(self, choice: int, *, asking: bool) -> UnderWay | None:
        fitting = [request for request in self.requests if (request.question is not None) == asking]
        if not fitting:
            return None
        request = fitting[choice % len(fitting)]
        self.requests.remove(request)
        return request

    @rule(name=converters, of=centres, moves=st.booleans())
    def a_request_goes_through(self, name: str, of: str, moves: bool) -> None:
        """Asked of an instance that lags, answered by a centre that keeps to the plan, once more if the plan moved.

        What every owner can serve is served, however the instances see the plan.
        """
        converter = self.running[name]
        if not self.can_serve(converter, of):
            return
        request = UnderWay(self.coroutine(name, CONFIG), config=CONFIG)
        waiting = len(self.requests)
        self.convert(request)
        if len(self.requests) > waiting and request.question is not None:
            self.requests.remove(request)
            self.requests.insert(0, request)
            self.answer(0, of, lambda _: None)
        if request.result is None or request.result.epoch != self.plan.epoch:
            # The instance refused and finds that the plan has moved, or the store refused and the gateway asks again.
            totals["converted again"] += 1
            if request in self.requests:
                self.requests.remove(request)
            converter.recipe = self.recipe(converter.release, self.plan)
            request = UnderWay(self.coroutine(name, CONFIG), config=CONFIG, min_epoch=self.plan.epoch)
            self.convert(request)
            if request.question is not None:
                self.requests.remove(request)
                self.requests.insert(0, request)
                self.answer(0, of, lambda _: None)
        assert request.result is not None, "refused, and everybody could have served it"
        if moves:
            return
        self.requests.remove(request)
        self.accept(request.result)

    def accept(self, result: ConversionResult) -> None:
        self.accepted.append((self.plan.epoch, result))
        owners = {made.owner for made in result.parts}
        totals["accepted of both owners" if len(owners) > 1 else "accepted of one owner"] += 1
        totals["accepted of a newer version"] += any(made.version > 1 for made in result.parts)
        totals["accepted under a later plan"] += self.plan.epoch > 1

    def can_serve(self, converter: Converter, of: str) -> bool:
        parts = {part.name: part for part in RELEASES[converter.release]}
        return all(
            CENTRES[of].get(found.part, 0) in found.central_versions
            if found.mode in (PART_MODE_CENTRAL, PART_MODE_SHADOW)
            else found.local_version in parts[found.part].converters
            for found in self.plan.parts
        )

    @precondition(lambda self: any(request.question for request in self.requests))
    @rule(choice=choices, of=centres, as_planned=st.booleans())
    def the_centre_answers(self, choice: int, of: str, as_planned: bool) -> None:
        if as_planned:
            of = max(CENTRES, key=lambda name: self.served_by(name))
        self.answer(choice, of, lambda _: None)

    def served_by(self, of: str) -> int:
        """How many parts of the plan a release of the centre serves."""
        return sum(CENTRES[of].get(found.part, 0) in found.central_versions for found in self.plan.parts)

    @precondition(lambda self: any(request.question for request in self.requests))
    @rule(
        choice=choices,
        of=centres,
        what=st.sampled_from(["lost", "without a part", "doubled", "of another version", "empty", "unasked"]),
    )
    def the_answer_is_lost_or_wrong(self, choice: int, of: str, what: str) -> None:
        if what == "lost":
            request = self.take(choice, asking=True)
            if request is not None:
                gone = DependencyDown("central is away")
                self.go_on(request, lambda: request.coroutine.throw(gone))
            return

        def spoil(response: ConvertPartsResponse) -> None:
            chosen = response.parts[choice % len(response.parts)]
            if what == "without a part":
                response.parts.remove(chosen)
            elif what == "doubled":
                response.parts.add().CopyFrom(chosen)
            elif what == "of another version":
                chosen.version += 10
            elif what == "empty":
                chosen.ClearField("spec")
            else:
                asked = {part.part for part in response.parts}
                response.parts.extend(
                    central_part(name, 1, CONFIG) for name in PART_NAMES if name not in asked and choice % 2
                )

        self.answer(choice, of, spoil)

    def answer(self, choice: int, of: str, spoil: Callable[[ConvertPartsResponse], None]) -> None:
        request = self.take(choice, asking=True)
        if request is None or request.question is None:
            return
        asked = request.question.request
        response = ConvertPartsResponse(
            parts=[central_part(wanted.part, CENTRES[of].get(wanted.part, 0), asked.config) for wanted in asked.parts]
        )
        spoil(response)
        self.go_on(request, lambda: request.coroutine.send(response))

    @precondition(lambda self: any(request.result for request in self.requests))
    @rule(choice=choices, lost=st.booleans(), name=converters)
    def commit(self, choice: int, lost: bool, name: str) -> None:
        """The store takes a conversion under the present plan only. The gateway converts once more, then gives up."""
        request = self.take(choice, asking=False)
        if request is None or request.result is None:
            return
        if request.result.epoch == self.plan.epoch:
            self.accept(request.result)
            if lost and not request.again:
                # The gateway did not hear of it, and sends the same again.
                request.again = True
                self.requests.append(request)
            return
        totals["refused, since the plan had moved"] += 1
        if request.min_epoch:
            return
        converter = self.running[name]
        if converter.recipe.epoch < self.plan.epoch:
            converter.recipe = self.recipe(converter.release, self.plan)
        self.convert(UnderWay(self.coroutine(name, request.config), min_epoch=self.plan.epoch, config=request.config))

    # Operators.

    def situation(self, different: int = 0) -> Situation:
        evidence = {
            part: PartEvidence(
                part=part, compared=2_000, different=different, different_apps=different, since_epoch=self.plan.epoch
            )
            for part in MOVING
        }
        serving: Serving = dict(self.serving)
        return Situation(self.plan, evidence, serving)

    @rule(
        part=parts,
        what=st.sampled_from(["promote", "promote", "revert", "disagree", "seal", "unseal", "allow"]),
        version=st.integers(0, 2),
        versions=st.sampled_from([(1,), (1, 2), (2,), ()]),
        at_once=st.booleans(),
    )
    def decide(self, part: str, what: str, version: int, versions: tuple[int, ...], at_once: bool) -> None:
        """An operator, a deploy of the centre or the region itself decides on the plan as it is now."""
        present = entry_of(self.plan, part)
        backtest = BacktestSummary(version or present.local_version, 10, 0)
        decisions: dict[str, Callable[[], Change | None]] = {
            "promote": lambda: promotion(
                self.situation(), part, version=version, min_compared=1_000, backtest=backtest
            ),
            "revert": lambda: reversion(self.situation(), part, "an operator wants it"),
            "disagree": lambda: automatic_reversion(self.situation(different=3), part),
            "seal": lambda: sealing(self.plan, [part], "M+2"),
            "unseal": lambda: unsealing([present] if present.sealed_by else [], "M+2", None),
            "allow": lambda: allowing(self.plan, {part: versions}),
        }
        try:
            change = decisions[what]()
        except SkerryError:
            return
        if change is not None:
            self.decided.append((self.plan.epoch, change))
            if at_once:
                self.change(self.decided.pop())

    @precondition(lambda self: self.decided)
    @rule(choice=choices, lost=st.booleans())
    def change_the_plan(self, choice: int, lost: bool) -> None:
        """What was decided on another plan than the present one does not happen. A lost answer is sent again."""
        decision = self.decided.pop(choice % len(self.decided))
        self.change(decision)
        if lost:
            self.decided.append(decision)

    def change(self, decision: tuple[int, Change]) -> None:
        epoch, change = decision
        if epoch != self.plan.epoch:
            return
        after = Plan(epoch=epoch + 1)
        changed = {new.part: new for new in change.entries}
        for old in self.plan.parts:
            new = after.parts.add()
            new.CopyFrom(changed.get(old.part, old))
            if old.part in changed:
                new.since_epoch = after.epoch
        self.plans.append(after)

    @invariant()
    def every_accepted_spec_has_every_part_once_from_its_owner_at_an_allowed_version(self) -> None:
        for epoch, result in self.accepted[self.checked :]:
            check(next(plan for plan in self.plans if plan.epoch == epoch), result)
        self.checked = len(self.accepted)

    @invariant()
    def a_sealed_part_is_never_the_centres(self) -> None:
        for found in self.plan.parts:
            if found.sealed_by:
                assert found.mode == PART_MODE_LOCAL, found

    def teardown(self) -> None:
        for request in getattr(self, "requests", []):
            request.coroutine.close()
        totals["interleavings"] += 1


totals: Counter[str] = Counter()


def central_part(name: str, version: int, config: MachineConfig) -> CentralPart:
    if not version:
        return CentralPart(part=name, not_served="this release does not convert it")
    convert = next(part.convert for part in PARTS if part.name == name)
    if name in MOVING:
        convert = marking(name, convert, "centre", version)
    problems = Problems()
    spec = convert(config, NO_FACTS, problems)
    answer = CentralPart(part=name, version=version)
    if problems.found:
        for path, why in problems.found.items():
            answer.violations.add(field=path, why=why)
    else:
        getattr(answer.spec, name).CopyFrom(spec)
    return answer


def check(plan: Plan, result: ConversionResult) -> None:
    """Judged by the plan alone, and by what the converters left in the spec."""
    assert [made.part for made in result.parts] == list(PART_NAMES)
    assert [found.name for found, _ in result.spec.ListFields()] == list(PART_NAMES)
    for made in result.parts:
        planned: PartPlan = entry_of(plan, made.part)
        if planned.mode in (PART_MODE_CENTRAL, PART_MODE_SHADOW):
            assert made.owner == PART_OWNER_CENTRE
            assert made.version in planned.central_versions
        else:
            assert made.owner == PART_OWNER_REGION
            assert made.version == planned.local_version
        if made.part in MOVING:
            owner = "centre" if made.owner == PART_OWNER_CENTRE else "region"
            assert maker(made.part, result.spec) == mark(owner, made.version)


Skew.TestCase.settings = settings(
    max_examples=INTERLEAVINGS,
    stateful_step_count=40,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class TestSkew(Skew.TestCase):  # type: ignore[misc, valid-type]
    @classmethod
    def tearDownClass(cls) -> None:
        # A walk on which one of these hardly happens would show nothing.
        for what in (
            "accepted of one owner",
            "accepted of both owners",
            "accepted of a newer version",
            "accepted under a later plan",
            "converted again",
            "refused, since the plan had moved",
            "PartUnserved",
            "DependencyDown",
        ):
            assert totals[what] >= LEAST, (what, totals)
        assert totals["interleavings"] >= INTERLEAVINGS
