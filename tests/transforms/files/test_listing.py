import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgmm_beam.data.rows import RecordForm
from dpgmm_beam.fit.plan import Plan
from tests import small
from tests.strategies import quick
from transforms.files import listing
from transforms.files.listing import LEAST_PIECE_ROWS, Listing, Piece, cut
from transforms.files.parquet import RowGroups

DIMENSION = 8
FORM = RecordForm(DIMENSION)
ROW_BYTES = FORM.itemsize

ROWS = st.one_of(
    st.integers(0, 3),
    st.integers(0, 3 * LEAST_PIECE_ROWS),
    st.sampled_from([LEAST_PIECE_ROWS - 1, LEAST_PIECE_ROWS, LEAST_PIECE_ROWS + 1]),
    st.integers(0, 10**7),
)


@st.composite
def inputs_of_files(draw) -> list[RowGroups]:
    groups = draw(st.lists(st.lists(ROWS, max_size=5), max_size=6))
    return [
        RowGroups(f"/in/{number:03d}.parquet", f"pin {number}", tuple(rows))
        for number, rows in enumerate(groups)
    ]


def units_rows(found: Listing, files: list[RowGroups]) -> list[int]:
    rows = {file.path: file.rows for file in files}
    return [
        sum(rows[stretch.path][group] for stretch in unit for group in stretch.row_groups)
        for unit in found.units
    ]


@quick
@given(inputs_of_files(), st.sampled_from([1, ROW_BYTES * 10_000, 96 * 2**20]))
def test_every_row_is_in_one_piece(files, piece_bytes):
    found = cut(files, FORM, piece_bytes)
    # Units have whole row groups, in the order of the files; what is left out has no rows.
    listed = [
        (stretch.path, stretch.pin, group)
        for unit in found.units
        for stretch in unit
        for group in stretch.row_groups
    ]
    expected = [(file.path, file.pin, group) for file in files for group in range(len(file.rows))]
    rows = {file.path: file.rows for file in files}
    assert len(set(listed)) == len(listed)
    assert sorted(listed) == listed
    assert all(rows[path][group] == 0 for path, _, group in set(expected) - set(listed))
    assert set(listed) <= set(expected)
    assert all(stretch.row_groups for unit in found.units for stretch in unit)
    # Pieces cut each unit from its first row to its last.
    for unit, count in enumerate(units_rows(found, files)):
        pieces = [found.pieces[number] for number in found.numbers_of(unit)]
        assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
        assert pieces[-1].stop == count
    numbers = itertools.chain.from_iterable(map(found.numbers_of, range(len(found.units))))
    assert sorted(numbers) == list(range(len(found.pieces)))
    assert sum(piece.rows for piece in found.pieces) == sum(map(sum, rows.values()))


@quick
@given(inputs_of_files(), st.sampled_from([1, ROW_BYTES * 10_000, 96 * 2**20]))
def test_pieces_are_neither_large_nor_many(files, piece_bytes):
    found = cut(files, FORM, piece_bytes)
    total = sum(sum(file.rows) for file in files)
    most = max(LEAST_PIECE_ROWS, piece_bytes // ROW_BYTES)
    wanted = min(max(LEAST_PIECE_ROWS, total // listing.PIECES), most)
    assert all(piece.rows <= 1.5 * wanted for piece in found.pieces)
    assert all(piece.rows > 0 for piece in found.pieces) or len(found.pieces) == 1
    # The last unit may be small.  Others have wanted rows at least, and pieces above 2/3 of that.
    assert all(piece.rows > 0.66 * wanted for piece in found.pieces if piece.unit < len(found.units) - 1)
    assert len(found.pieces) <= max(1, total / (0.66 * wanted)) + 1


@pytest.mark.parametrize("groups", [1, 7, 64, 1000])
def test_small_data_is_cut_for_many_workers(groups):
    """Into about 64 pieces, whatever its row groups; data of a few thousand rows into fewer."""
    total = 1_000_000
    rows = [total // groups] * groups
    files = [RowGroups("/in/x.parquet", "pin", tuple(rows))]
    found = cut(files, RecordForm(512), 96 * 2**20)
    assert 48 <= len(found.pieces) <= 80
    (one,) = cut([RowGroups("/in/x.parquet", "pin", (4000,))], RecordForm(512), 96 * 2**20).pieces
    assert one == Piece(0, 0, 4000)


def test_large_data_is_cut_by_bytes():
    files = [RowGroups(f"/in/{number:04d}.parquet", "pin", (100_000,) * 10) for number in range(100)]
    found = cut(files, RecordForm(512), 96 * 2**20)
    sizes = [piece.rows * RecordForm(512).itemsize for piece in found.pieces]
    assert max(sizes) <= 1.5 * 96 * 2**20
    assert len(sizes) > 64


def test_many_small_files_share_a_unit():
    files = [RowGroups(f"/in/{number:04d}.parquet", f"pin {number}", (10,)) for number in range(500)]
    found = cut(files, FORM, 96 * 2**20)
    assert [len(unit) for unit in found.units] == [410, 90]
    assert [(stretch.path, stretch.pin) for stretch in found.units[1]] == [
        (file.path, file.pin) for file in files[410:]
    ]


@pytest.mark.parametrize("files", [[], [RowGroups("/a", "pin", ())], [RowGroups("/a", "pin", (0, 0))]])
def test_without_rows_there_is_one_empty_piece(files):
    assert cut(files, FORM, 1) == Listing(((),), (Piece(0, 0, 0),))


@quick
@given(inputs_of_files())
def test_a_listing_survives_its_file(files):
    found = cut(files, FORM, 1)
    assert Listing.from_json(found.to_json()) == found


def test_the_digest_names_the_data_as_it_is_prepared():
    """Whatever changes the rows, or who is among them, gives another; what does not, does not."""
    config = small.small_config()

    def digest(config=config, release_id="id", piece_bytes=1, path="/in/a.parquet", pin="pin", more=()):
        return listing.digest({path: pin, **dict(more)}, Plan(config, release_id), piece_bytes)

    assert listing.digest({"/b": "2", "/a": "1"}, Plan(config, "id"), 1) == listing.digest(
        {"/a": "1", "/b": "2"}, Plan(config, "id"), 1
    )
    others = [
        digest(pin="other"),
        digest(path="/in/b.parquet"),
        digest(more=[("/in/b.parquet", "pin")]),
        digest(piece_bytes=96 * 2**20),
        digest(small.small_config(classes=("a", "c", "b"))),
        digest(small.small_config(clip_norm=1.0)),
        digest(small.small_config(dimension=17)),
        digest(small.small_config(classes=("a",), labelled=False)),
        digest(small.small_config(encoder="other")),
    ]
    assert len({digest(), *others}) == len(others) + 1
    # The same rows serve other releases of them.
    for config in (small.small_config(epsilon=7.0), small.small_config(components=1, rounds=1)):
        assert digest(config, release_id="another") == digest()
    assert len(digest()) == 32


def test_a_changed_scheme_is_another_digest(monkeypatch):
    plan = Plan(small.small_config(), "id")
    seen = {listing.digest({}, plan, 1)}
    for name in ("_SCHEME", "PIECES", "LEAST_PIECE_ROWS"):
        with monkeypatch.context() as patch:
            patch.setattr(listing, name, -1)
            seen.add(listing.digest({}, plan, 1))
    assert len(seen) == 4
