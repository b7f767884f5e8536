import dataclasses
import re
import threading

import pytest

from dpgmm_beam.errors import ConfigError
from transforms.files import register
from transforms.files.register import Entry

ENTRY = Entry("2026-05", "f" * 64, "a" * 64, "d" * 128, "5" * 64)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "register" / "id.json")


def test_an_id_that_is_new(path):
    assert register.read(path) is None
    register.check(path, fit_digest="0" * 64)
    register.enter(path, ENTRY)
    assert register.read(path) == ENTRY


def test_the_same_release_again(path):
    for _ in range(2):
        register.enter(path, ENTRY)
    register.check(path, fit_digest=ENTRY.fit_digest, data=ENTRY.data)


@pytest.mark.parametrize(
    ("field", "meaning"),
    [
        ("fit_digest", "another configuration"),
        ("key", "another noise key"),
        ("data", "other data"),
        ("state", "another draw of the same noise"),
    ],
)
def test_anything_else_under_the_id_is_refused_and_says_why(path, field, meaning):
    register.enter(path, ENTRY)
    other = dataclasses.replace(ENTRY, **{field: "0"})
    said = f"release_id=2026-05 is refused: it must be new: it names a release of {meaning}"
    with pytest.raises(ConfigError, match=re.escape(said)):
        register.check(path, **{field: "0"})
    with pytest.raises(ConfigError, match=re.escape(said)):
        register.enter(path, other)
    assert register.read(path) == ENTRY


def test_of_several_at_once_one_is_entered(path):
    refused = []

    def enter(number):
        try:
            register.enter(path, dataclasses.replace(ENTRY, state=str(number)))
        except ConfigError as error:
            refused.append(error)

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7


def test_a_drawn_key_has_no_entry():
    register.enter("", ENTRY)
    register.check("", fit_digest="0")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"release_id": "x"}'])
def test_an_entry_that_is_damaged_is_not_taken_for_none(path, text):
    register.enter(path, ENTRY)
    with open(path, "w") as file:
        file.write(text)
    with pytest.raises(
        ConfigError, match=r"private_dir=.* is refused: it must hold the register's entry whole"
    ):
        register.check(path, fit_digest="0")
