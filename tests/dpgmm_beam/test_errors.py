import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam.errors import ConfigError, printable

any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=400)


@given(any_text, any_text, any_text)
def test_a_sentence_is_one_short_line_that_any_terminal_can_take(argument, value, allowed):
    said = str(ConfigError(argument, value, allowed))
    assert said.isprintable()
    said.encode()
    # The longest escape of a character has ten.
    assert len(said) < 10 * 1400 + 100


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/daten/für 5 €", "/daten/für 5 €"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[2J\x07\x9b", r"\x1b[2J\x07\x9b"),
        ("\udcff", r"\udcff"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("x" * 201, "x" * 200 + "..."),
        (["a"] * 100, str(["a"] * 100)[:200] + "..."),
        (-1.0, "-1.0"),
    ],
)
def test_what_is_shown(value, shown):
    assert printable(value) == shown
    assert str(ConfigError("--x", value, "go")) == f"--x={shown} is refused: it must go."


def test_a_long_text_that_is_not_to_be_cut():
    assert printable("x" * 9000 + "\n", most=None) == "x" * 9000 + r"\n"


def test_it_comes_from_workers_as_it_was():
    error = ConfigError("--x", "a\n" * 300, "go")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.value) == (str(error), error.value)
