"""Counter-based random numbers: addressed, uniform, and the same for ever."""

from __future__ import annotations

import numpy as np

from setr_fast.data.draws import Draws, philox, word


def test_words_never_change() -> None:
    assert word("order") == 1145212715145292606
    assert philox(5, "order", 2).random_raw(2).tolist() == [7074322159420829184, 1937838452325693402]


def test_key_and_address_each_make_another_sequence() -> None:
    places = [(0, "a", 1, 2), (1, "a", 1, 2), (-1, "a", 1, 2), (0, "b", 1, 2), (0, "a", 2, 1), (0, "a", 1), (0, "a", 0)]
    assert len({int(philox(*place).random_raw()) for place in places}) == len(places)
    assert philox(2**64, "a").random_raw() == philox(0, "a").random_raw()


def test_neighbouring_addresses_do_not_overlap() -> None:
    words = np.concatenate([philox(0, "a", index).random_raw(4096) for index in range(8)])
    assert len(np.unique(words)) == len(words)


def test_draws_fill_their_ranges() -> None:
    draws = Draws(philox(0, "test"))
    numbers = np.array([draws.uniform(-2, 6) for _ in range(4000)])
    assert -2 <= numbers.min() < -1.98
    assert 5.98 < numbers.max() < 6
    assert abs(numbers.mean() - 2) < 0.15
    assert np.bincount([draws.integer(1, 3) for _ in range(900)], minlength=4)[1:].min() > 250
    picked = np.bincount([draws.pick((1, 0, 3)) for _ in range(2000)], minlength=3)
    assert picked[1] == 0
    assert 0.2 < picked[0] / 2000 < 0.3
    assert 0.65 < np.mean([draws.chance(0.7) for _ in range(2000)]) < 0.75
    assert draws.integer(4, 4) == 4


def test_octets_have_any_shape_and_every_value() -> None:
    octets = Draws(philox(0, "test")).octets(41, 253)
    assert octets.shape == (41, 253)
    assert octets.dtype == np.uint8
    assert np.bincount(octets.ravel(), minlength=256).min() > 10
