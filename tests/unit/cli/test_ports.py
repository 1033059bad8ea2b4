import socket
from random import Random

import pytest

from services.cli.ports import NoPorts, choose, ephemeral_start, is_free


def test_a_port_on_which_something_listens_is_not_free() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert not is_free(listener.getsockname()[1])


def test_a_block_is_consecutive_and_free_and_below_the_ephemeral_range() -> None:
    block = choose(12, (), Random(7))
    assert block == list(range(block[0], block[0] + 12))
    assert block[-1] < ephemeral_start()
    assert all(map(is_free, block))


def test_a_block_avoids_ports_that_are_taken() -> None:
    first = choose(4, (), Random(3))
    assert not set(choose(4, first, Random(3))) & set(first)


def test_without_free_ports_it_says_so() -> None:
    with pytest.raises(NoPorts, match="free ports"):
        choose(1, range(70_000), Random(1))
