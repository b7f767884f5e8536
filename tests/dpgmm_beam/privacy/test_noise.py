import hashlib
import itertools
import pickle

import mpmath
import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtri

from dpgmm_beam.errors import ConfigError
from dpgmm_beam.privacy import noise
from dpgmm_beam.privacy.noise import NoiseKey, rounded_gaussian

SECRET = bytes(range(32))
KEY = NoiseKey(SECRET).within("tests")
ALARM = 1e-8
"""False-alarm rate of each statistical test here; there are under 50 of them."""

SCALES = (0.05, 0.3, 1.0, 4.0, 1000.5, 2.0**20, 2.0**30)


class Scripted:
    """Stands in for a key: gives the words it is told to and remembers what else was asked."""

    def __init__(self, words, tail=bytes):
        self.words = np.array(words, dtype="<u8")
        self.tail = tail
        self.asked = []

    def stream(self, length, purpose=b""):
        if not purpose:
            return self.words.tobytes()[:length]
        self.asked.append(length)
        return self.tail(length)


def magnitude(head, tail, stddev):
    """The rounded magnitude of the draw with these bits, in multiple precision."""
    length = 64 + 8 * len(tail)
    with mpmath.workprec(length + 200):
        low = (head << (8 * len(tail))) | int.from_bytes(tail, "big")
        probability = (low + mpmath.mpf(1) / 2) * mpmath.mpf(2) ** -length
        z = mpmath.sqrt(2) * mpmath.erfinv(1 - 2 * probability)
        return int(mpmath.nint(z * mpmath.mpf(stddev)))


def boundary(half_integer, stddev, bits=1200):
    """Bits of P(N(0, s^2) < -half_integer), as an integer over 2**bits."""
    with mpmath.workprec(bits + 100):
        return int(mpmath.floor(mpmath.ncdf(-mpmath.mpf(half_integer) / stddev) * mpmath.mpf(2) ** bits))


def exact_probabilities(edges, stddev):
    """P(a <= round(N(0, s^2)) < b) between integer edges, from -infinity to infinity."""
    upper = stats.norm.sf((np.asarray(edges) - 0.5) / stddev)
    lower = stats.norm.cdf((np.asarray(edges) - 0.5) / stddev)
    by_cdf = np.diff(np.concatenate([[0.0], lower, [1.0]]))
    by_sf = -np.diff(np.concatenate([[1.0], upper, [0.0]]))
    return np.where(np.arange(len(by_cdf)) < len(by_cdf) / 2, by_cdf, by_sf)


def chi_square(draws, edges, probabilities):
    observed = np.bincount(np.searchsorted(edges, draws, side="right"), minlength=len(edges) + 1)
    return stats.chisquare(observed, probabilities * len(draws)).pvalue


@pytest.mark.parametrize("stddev", [0.3, 1.0, 4.0])
def test_small_scales_have_the_exact_probabilities(stddev):
    draws = rounded_gaussian(KEY.within("small", str(stddev)), stddev, 1_000_000)
    edges = np.arange(-60, 61)
    probabilities = exact_probabilities(edges, stddev)
    # Bins with an expectation under 10 join their neighbour nearer to zero.
    keep = probabilities * len(draws) >= 10
    first, last = np.flatnonzero(keep)[[0, -1]]
    edges = edges[first + 1 : last - 1] if last - first > 2 else edges[first:last]
    assert chi_square(draws, edges, exact_probabilities(edges, stddev)) > ALARM
    # The test can tell a standard deviation that is two percent off.
    assert chi_square(draws, edges, exact_probabilities(edges, 1.02 * stddev)) < ALARM


@pytest.mark.parametrize("stddev", [1000.5, 2.0**20, 2.0**39])
def test_large_scales_have_the_exact_probabilities(stddev):
    draws = rounded_gaussian(KEY.within("large", str(stddev)), stddev, 500_000)
    edges = np.unique(np.rint(stats.norm.ppf(np.arange(1, 200) / 200) * stddev).astype(np.int64))
    assert chi_square(draws, edges, exact_probabilities(edges, stddev)) > ALARM
    assert chi_square(draws, edges, exact_probabilities(edges, 1.02 * stddev)) < ALARM
    # The low bits are uniform: the residue modulo 64 is, to within exp(-2 (pi s / 64)^2).
    assert stats.chisquare(np.bincount(draws % 64, minlength=64)).pvalue > ALARM


def test_scales_may_differ_within_a_draw():
    stddevs = np.array([1.0, 50.0, 0.01, 1e6])
    mixed = rounded_gaussian(KEY, stddevs, 4)
    for index, stddev in enumerate(stddevs):
        assert mixed[index] == rounded_gaussian(KEY, stddev, 4)[index]


@pytest.mark.parametrize("stddev", [*SCALES, 2.0**40])
def test_the_fast_path_gives_what_settling_every_draw_gives(stddev):
    key = KEY.within("settle", str(stddev))
    np.testing.assert_array_equal(
        rounded_gaussian(key, stddev, 120), rounded_gaussian(key, stddev, 120, settle_all=True)
    )


@pytest.mark.parametrize("stddev", [0.05, 0.3, 1.0, 4.0, 2.0**30])
@pytest.mark.parametrize("tail", [b"\x01", b"\xff", b"\x5a"])
def test_the_far_tail_is_settled_exactly(stddev, tail):
    heads = [0, 1, 2, 3, 9, 1000, 2**20, 2**40]
    words = heads + [head | 2**63 for head in heads]
    key = Scripted(words, lambda length: tail * length)
    draws = rounded_gaussian(key, stddev, len(words))
    expected = [magnitude(head, tail * 64, stddev) for head in heads]
    np.testing.assert_array_equal(draws, expected + [-value for value in expected])


def test_a_draw_whose_bits_are_all_zero_is_never_left_to_one_word():
    # The word says only that the draw is somewhere beyond nine standard deviations.
    for stddev in (1e-3, 0.1, 1.0):
        key = Scripted([0], lambda length: b"\x5a" * length)
        rounded_gaussian(key, stddev, 1)
        assert key.asked


def test_the_middle_rounds_to_zero():
    heads = [2**63 - 1, 2**63 - 2, 2**62 + 1]
    for stddev in (0.3, 0.6):
        assert rounded_gaussian(Scripted(heads), stddev, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("stddev", SCALES[1:])
def test_draws_on_a_half_integer_take_the_guard_band(stddev):
    # Half-integers within five standard deviations, and the words on either side of each.
    most = max(1, int(5 * stddev))
    halves = sorted({int(step) + 0.5 for step in np.linspace(0, most, 12)})
    heads = [(boundary(half, stddev) >> (1200 - 64)) for half in halves]
    heads = [head for head in heads if 0 < head < 2**63 - 1]
    words = [head + step for head in heads for step in (-1, 0, 1)]
    key = Scripted(words, lambda length: b"\x77" * length)
    draws = rounded_gaussian(key, stddev, len(words))
    assert len(key.asked) >= len(heads) > 0
    np.testing.assert_array_equal(draws, [magnitude(word, b"\x77" * 32, stddev) for word in words])


@pytest.mark.parametrize("stddev", [0.3, 4.0, 2.0**30])
@pytest.mark.parametrize("half", [0.5, 3.5])
def test_bits_that_stay_on_the_boundary_are_followed_by_more(stddev, half):
    bits = boundary(half, stddev)
    digits = bits.to_bytes(150, "big")
    head = int.from_bytes(digits[:8], "big")
    for last, expected in ((b"\x00", int(half + 0.5)), (b"\xff", int(half - 0.5))):
        # 40 bytes on the boundary itself: 32 cannot tell, 64 can.
        tail = digits[8:48] + last * 100
        key = Scripted([head], lambda length, tail=tail: tail[:length])
        assert rounded_gaussian(key, stddev, 1)[0] == expected
        assert key.asked == [32, 64]


def test_more_bits_continue_the_same_stream_and_each_draw_has_its_own():
    purposes = []

    class Listening(NoiseKey):
        def stream(self, length, purpose=b""):
            purposes.append((length, purpose))
            return super().stream(length, purpose)

    rounded_gaussian(Listening(SECRET), 4.0, 5, settle_all=True)
    extended = [purpose for _, purpose in purposes if purpose]
    assert len(set(extended)) == 5
    assert KEY.stream(64, b"x")[:32] == KEY.stream(32, b"x")
    assert KEY.stream(64, b"x") != KEY.stream(64, b"y")


def test_the_error_bound_of_the_fast_inversion():
    # |ndtri(u) - z| <= _RELATIVE_ERROR (1 + |z|), u the 63 bits as they are converted.
    generator = np.random.default_rng(0)
    bits = [int(2**x) for x in np.linspace(0, 62.999, 1500)]
    bits += [int(b) for b in generator.integers(0, 2**63, 1500, dtype=np.uint64)]
    bits += [2**63 - 1 - int(2**x) for x in np.linspace(0, 60, 200)]
    words = np.array(bits, dtype=np.uint64)
    found = ndtri((words.astype(np.float64) + 0.5) * 2.0**-64)
    worst = 0.0
    with mpmath.workprec(160):
        for word, z in zip(bits, found, strict=True):
            off = mpmath.ncdf(float(z)) - (word + mpmath.mpf(1) / 2) * mpmath.mpf(2) ** -64
            worst = max(worst, float(abs(off / mpmath.npdf(float(z)))) / (1 + abs(z)))
    # A quarter is left, so that the first-order estimate of the error cannot hide an excess.
    assert worst <= 0.75 * noise._RELATIVE_ERROR


def test_the_mills_ratio_that_the_error_bound_uses():
    u = np.concatenate([np.geomspace(1e-300, 0.5, 2000), np.linspace(1e-6, 0.5, 2000)])
    assert (u / stats.norm.pdf(ndtri(u))).max() <= noise._MILLS


def test_draws_are_the_documented_function_of_the_key():
    # Independent of the package: the stream's encoding and the inversion are part of the promise.
    key = NoiseKey(SECRET).within("release", b"\x01\x02", 7)
    items = [f"dpgmm noise {noise.SCHEME}".encode(), SECRET, b"release", b"\x01\x02", b"7", b""]
    text = b"".join(len(item).to_bytes(8, "little") + item for item in items)
    words = np.frombuffer(hashlib.shake_256(text).digest(8 * 40), "<u8")
    expected = [
        magnitude(int(word) & (2**63 - 1), b"", 37.5) * (-1 if int(word) >> 63 else 1) for word in words
    ]
    np.testing.assert_array_equal(rounded_gaussian(key, 37.5, 40), expected)


def test_a_draw_does_not_depend_on_how_many_follow_nor_on_batches(monkeypatch):
    draws = rounded_gaussian(KEY, 2.0**38, 1000)
    np.testing.assert_array_equal(rounded_gaussian(KEY, 2.0**38, 300), draws[:300])
    monkeypatch.setattr(noise, "_BATCH", 64)
    np.testing.assert_array_equal(rounded_gaussian(KEY, 2.0**38, 1000), draws)
    assert rounded_gaussian(KEY, 1.0, 0).shape == (0,)


def test_streams_of_different_contexts_are_uncorrelated():
    n = 200_000
    contexts = [("a",), ("b",), ("a", 0), ("a", 1), ("a", "", "0"), ("a", 0, b"")]
    draws = [rounded_gaussian(KEY.within(*context), 100.0, n) / 100.0 for context in contexts]
    # Each z below is standard normal; 6 is passed by chance once in 5e8, and there are 60.
    for one, two in itertools.combinations(draws, 2):
        assert abs((one * two).mean()) * np.sqrt(n) < 6
        assert abs(((one**2 - 1) * (two**2 - 1) / 2).mean()) * np.sqrt(n) < 6
        assert not np.array_equal(one, two)
    for lag in range(1, 30):
        assert abs((draws[0][lag:] * draws[0][:-lag]).mean()) * np.sqrt(n) < 6


def test_context_is_encoded_without_ambiguity():
    contexts = [("ab", "c"), ("a", "bc"), ("abc",), ("ab", "c", ""), ("", "ab", "c"), ("ab\x00c",)]
    streams = {KEY.within(*context).stream(16) for context in contexts}
    streams |= {KEY.stream(16, b"abc"), NoiseKey(bytes(32)).within("tests", "abc").stream(16)}
    assert len(streams) == len(contexts) + 2
    assert KEY.within("a", "b") == KEY.within("a").within("b")


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_a_secret_of_another_size_is_refused_without_showing_it(size):
    with pytest.raises(ConfigError, match=r"secret.*exactly 32 bytes") as refused:
        NoiseKey(b"s" * size)
    assert "sss" not in str(refused.value)


def test_the_secret_is_not_shown():
    key = NoiseKey(b"\xabsecret-secret-secret-secret-32!".ljust(32, b"!"), (b"context",))
    for text in (repr(key), str(key), f"{key}", repr([key]), repr({"key": key})):
        assert "secret-" not in text
        assert "\\xab" not in text
        assert key.secret.hex() not in text


def test_a_key_travels_to_workers():
    copy = pickle.loads(pickle.dumps(KEY))
    assert copy == KEY
    np.testing.assert_array_equal(rounded_gaussian(copy, 5.0, 10), rounded_gaussian(KEY, 5.0, 10))


@pytest.mark.parametrize("stddev", [0.0, -1.0, np.nan, np.inf, 2.0**40 + 1, np.array([1.0, 0.0])])
def test_deviations_out_of_range_are_refused(stddev):
    with pytest.raises(ConfigError, match="noise standard deviation"):
        rounded_gaussian(KEY, stddev, 2)
