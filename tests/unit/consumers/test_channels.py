import threading

import pytest

from batchyard_consumers.channels import Channel, Closed


def test_messages_come_in_order_and_by_weight() -> None:
    channel: Channel[list[int]] = Channel(limit=5, weigh=len)
    channel.put([1, 2])
    channel.put([3])
    assert channel.weight == 3
    assert channel.take() == [1, 2]
    assert channel.take(timeout=0) == [3]
    assert channel.take(timeout=0) is None


def test_take_more_stays_within_the_limit_and_never_waits() -> None:
    channel: Channel[list[int]] = Channel(limit=100, weigh=len)
    for size in (2, 3, 4):
        channel.put([0] * size)
    assert [len(message) for message in channel.take_more(5)] == [2, 3]
    assert channel.take_more(3) == []
    assert channel.weight == 4


def test_a_full_channel_makes_its_writer_wait() -> None:
    channel: Channel[int] = Channel(limit=1)
    channel.put(1)
    written = threading.Event()

    def write() -> None:
        channel.put(2)
        written.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert not written.wait(0.05)
    channel.put(9, at_once=True)
    assert channel.take() == 1
    assert channel.take() == 9
    assert written.wait(5)
    thread.join()
    assert channel.take() == 2


def test_closing_lets_out_what_is_held_and_nothing_in() -> None:
    channel: Channel[int] = Channel(limit=10)
    channel.put(1)
    channel.close()
    with pytest.raises(Closed):
        channel.put(2)
    assert channel.take() == 1
    with pytest.raises(Closed):
        channel.take()


def test_closing_wakes_who_waits() -> None:
    empty: Channel[int] = Channel(limit=1)
    full: Channel[int] = Channel(limit=1)
    full.put(1)
    ended: list[str] = []

    def wait(name: str, channel: Channel[int]) -> None:
        try:
            channel.take() if name == "reader" else channel.put(2)
        except Closed:
            ended.append(name)

    threads = [threading.Thread(target=wait, args=pair) for pair in (("reader", empty), ("writer", full))]
    for thread in threads:
        thread.start()
    empty.close()
    full.close()
    for thread in threads:
        thread.join(5)
    assert sorted(ended) == ["reader", "writer"]


def test_take_all_makes_room() -> None:
    channel: Channel[int] = Channel(limit=2)
    channel.put(1)
    channel.put(2)
    assert channel.take_all() == [1, 2]
    channel.put(3)
    assert channel.weight == 1
