"""Decoding ahead of the consumer."""

import threading

import pytest

from ucpack._streaming import ReadAhead

NAMES = [str(number) for number in range(100)]


class Source:
    """Counts how often each name is read."""

    def __init__(self):
        self.read = []
        self.lock = threading.Lock()

    def __call__(self, name):
        with self.lock:
            self.read.append(name)
        if name == "bad":
            raise OSError("no such tensor")
        return int(name)


@pytest.mark.parametrize("threads", [1, 3])
def test_every_name_is_read_once_and_never_more_than_two_for_each_thread_ahead(threads):
    source = Source()
    ahead = ReadAhead(source, NAMES, threads)
    for taken, name in enumerate(NAMES, 1):
        assert ahead.get(name) == int(name)
        # What was asked for ahead is not more than this, whether it has been read or not.
        assert len(ahead._prepared) <= 2 * threads and len(source.read) <= taken + 2 * threads
    ahead.close()
    assert sorted(source.read, key=int) == NAMES


def test_names_may_be_taken_in_any_order_and_again():
    ahead = ReadAhead(Source(), NAMES, 2)
    for name in ["50", "3", "3", "99", "51", "0"]:
        assert ahead.get(name) == int(name)
        assert len(ahead._prepared) <= 4
    # Also if many are left that nobody takes.
    for name in NAMES[::7]:
        assert ahead.get(name) == int(name)
        assert len(ahead._prepared) <= 4
    ahead.close()


def test_an_error_is_raised_where_its_name_is_taken():
    ahead = ReadAhead(Source(), ["1", "bad", "2"], 2)
    assert ahead.get("1") == 1
    with pytest.raises(OSError, match="no such tensor"):
        ahead.get("bad")
    assert ahead.get("2") == 2
    ahead.close()
