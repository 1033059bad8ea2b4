"""Names: which ones apps and machines may have, and new ones for machines that were given none."""

from __future__ import annotations

import re
from random import Random

APP_NAME_RULE = "must be 1..63 lower-case letters, digits and dashes, and neither begin nor end with a dash"
MACHINE_NAME_RULE = "must be 1..63 letters, digits, dots, dashes and underscores, and begin with a letter or digit"

is_app_name = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?").fullmatch
is_machine_name = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}").fullmatch
is_machine_id = re.compile(r"[0-9a-f]{14}").fullmatch

_QUALITIES = """
able amber ample azure bold brave brief bright brisk broad bronze calm candid civil clear clever copper coral
crisp deep deft early easy fair fine firm fleet fond fresh frosty gentle glad golden grand green happy hardy
hazy honest humble ivory jolly keen kind late lively loyal lucid lunar mellow merry mild misty modest neat
nimble noble olive open patient plain polar polite proud quick quiet rapid ready rosy round royal rustic scarlet
sharp silent silver simple sleek smooth snowy sober solar solid sound spry steady still stout sunny sure swift
tame tidy tranquil true vast velvet vivid warm wise witty young
"""
_THINGS = """
acorn anchor arch aspen badger bay beacon birch bison bloom breeze bridge brook canyon cedar cliff cloud clover
comet cove crane creek current delta dolphin dove dune eagle ember falcon fern field finch fjord forest fox
garden glacier glade grove gull harbour hare hawk heath heron hill island ivy juniper kelp kestrel lagoon lake
lantern lark ledge lily linden lynx maple marsh meadow moon moss mountain oak ocean orchard otter owl pebble
pine plain planet pond poplar prairie quartz rain raven reef ridge river robin shore sky sparrow spring star
stone stream summit swan thicket thistle tide trail tundra valley vista walrus wave willow wind wren
"""
_NUMBERS = 10_000
_quality_words = tuple(_QUALITIES.split())
_thing_words = tuple(_THINGS.split())


def new_machine_name(random: Random) -> str:
    """A name of two words and a number, such as "quiet-river-4711"; there are about 90 million."""
    return f"{random.choice(_quality_words)}-{random.choice(_thing_words)}-{random.randrange(_NUMBERS)}"
