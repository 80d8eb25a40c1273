"""The ornament cache: exact, bounded in bytes, and one computation for many who ask at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from parure.loop import Ornament
from parure.ornaments import OrnamentCache, ornament_key


def ornament(value: int) -> Ornament:
    """4,000 bytes."""
    return Ornament(np.full((1, 500), value, np.float32), np.full((1, 500), value, np.float32))


def test_what_is_kept_is_given_again_and_not_computed() -> None:
    cache = OrnamentCache()
    first = cache.get("a", lambda: ornament(1))
    assert cache.get("a", lambda: pytest.fail("computed again")) is first
    assert (cache.hits, cache.misses, cache.bytes) == (1, 1, 4000)


def test_the_least_recently_used_goes_first_and_the_bound_of_bytes_holds() -> None:
    cache = OrnamentCache(limit=9000)
    for key in ("a", "b", "a", "c"):
        cache.get(key, lambda: ornament(0))
        assert cache.bytes <= 9000
    misses = cache.misses
    cache.get("a", lambda: pytest.fail("a was used after b"))
    cache.get("b", lambda: ornament(0))
    assert cache.misses == misses + 1


def test_what_is_larger_than_the_bound_is_given_but_not_kept() -> None:
    cache = OrnamentCache(limit=100)
    assert cache.get("a", lambda: ornament(7)).tokens[0, 0] == 7
    assert cache.bytes == 0
    cache.get("a", lambda: ornament(7))
    assert cache.misses == 2


def test_of_many_at_once_one_computes() -> None:
    cache, computed, begin = OrnamentCache(), [], threading.Event()

    def compute() -> Ornament:
        computed.append(1)
        begin.wait(60)
        return ornament(3)

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(cache.get, "a", compute) for _ in range(8)]
        begin.set()
        given = {id(future.result(60)) for future in futures}
    assert len(computed) == 1 == len(given)
    assert (cache.hits, cache.misses) == (7, 1)


def test_one_that_fails_fails_alone_and_another_computes() -> None:
    cache, failing = OrnamentCache(), threading.Event()

    def fail() -> Ornament:
        failing.wait(60)
        raise RuntimeError("cancelled")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, "a", fail)
        while not cache.misses:
            pass
        second = pool.submit(cache.get, "a", lambda: ornament(2))
        failing.set()
        with pytest.raises(RuntimeError, match="cancelled"):
            first.result(60)
        assert second.result(60).tokens[0, 0] == 2


def test_the_key_is_the_content_and_the_bundle() -> None:
    picture = np.zeros((4, 6, 3), np.uint8)
    mask = np.ones((4, 6), np.float32)
    keys = {
        ornament_key("one", picture, None),
        ornament_key("two", picture, None),
        ornament_key("one", picture.reshape(6, 4, 3), None),
        ornament_key("one", picture + 1, None),
        ornament_key("one", picture, mask),
        ornament_key("one", picture, mask * 0),
    }
    assert len(keys) == 6
    assert ornament_key("one", picture.copy(), mask) == ornament_key("one", picture, mask.copy())
