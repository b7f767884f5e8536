"""People with several rows, on the command line: every layout, what is refused, and what is said."""

import csv
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dpgmm_beam import Release
from dpgmm_beam.config import Method, ReleaseConfig
from dpgmm_beam.data.rows import accept
from dpgmm_beam.data.units import IdHasher, UnitKeys, bounded
from dpgmm_beam.errors import ConfigError
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.release import manifest
from dpgmm_beam.release.in_memory import release_in_memory
from pipelines import cli
from pipelines.own import private_run
from tests import small
from tests.pipelines.processes import needs_prism, pool, portable, server
from tests.transforms.files.test_tars import tar as write_tar
from transforms.files.columns import Columns

MOST = 2
FEW_STEPS = Method(teacher_steps=1, subspace_dim=4)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """Releases of few stages: what is tested here does not depend on their number."""
    *others, _ = ReleaseConfig.__init__.__defaults__
    monkeypatch.setattr(ReleaseConfig.__init__, "__defaults__", (*others, FEW_STEPS))


def table(count=120):
    generator = np.random.default_rng(2)
    ids = [f"id-{number}" for number in generator.integers(0, 15, count)]
    ids = ["id-most" if number < count // 2 else each for number, each in enumerate(ids)]
    return small.table(count).append_column("patient", pa.array(ids))


TABLE = table()


def common(folder, *more):
    return [
        *["--classes", "a,b,c", "--epsilon", "2", "--delta", "1e-5", "--components", "1"],
        *["--samples-per-class", "5", "--private-dir", str(folder / "private"), *more],
    ]


def keyed(folder):
    return ["--noise-key-file", small.write_key(folder / "key"), "--release-id", "r1"]


def release(folder, source, *more, encoder="precomputed"):
    folder.mkdir(exist_ok=True)
    argv = ["release", "--input", str(source), "--encoder", encoder, "--output", str(folder / "out")]
    assert cli.main([*argv, *common(folder), *keyed(folder), *more]) == 0
    return small.contents(folder / "out")


def in_python(units=TABLE["patient"], **changes):
    values = np.array(TABLE["embedding"].to_pylist())
    return in_python_of(values, TABLE["label"].to_pylist(), units, **changes)


def in_python_of(values, labels, units, **changes):
    made = Release.fit(
        values,
        labels,
        **{
            **{"units": units, "max_rows_per_unit": MOST, "classes": tuple("abc")},
            **{"epsilon": 2.0, "delta": 1e-5, "key": small.KEY, "release_id": "r1"},
            **{"n_components": 1, "samples_per_class": 5, "method": FEW_STEPS, **changes},
        },
    )
    paths = [*(file["path"] for file in made.manifest["files"]), manifest.FILE_NAME]
    return {path: made.read(path) for path in paths}


def without(content, name):
    return content.drop_columns([name])


def parquet(folder):
    return small.write_rows(folder / "in", TABLE), "patient"


def folders(folder):
    """One file a patient, in a folder of the id."""
    for name in set(TABLE["patient"].to_pylist()):
        place = folder / "in" / f"patient={name}"
        place.mkdir(parents=True)
        own = TABLE.filter(pa.compute.equal(TABLE["patient"], name))
        pq.write_table(without(own, "patient"), place / "rows.parquet")
    return folder / "in", "patient"


def of_bytes(folder):
    ids = TABLE["patient"].combine_chunks().cast(pa.binary())
    index = TABLE.schema.get_field_index("patient")
    return small.write_rows(folder / "in", TABLE.set_column(index, "patient", ids)), "patient"


def of_struct(folder):
    who = pa.StructArray.from_arrays([TABLE["patient"].combine_chunks()], ["id"])
    content = without(TABLE, "patient").append_column("who", who)
    return small.write_rows(folder / "in", content), "who.id"


def arrays(folder, compressed=False):
    (folder / "in").mkdir()
    save = np.savez_compressed if compressed else np.savez
    save(
        folder / "in" / "rows.npz",
        embeddings=np.array(TABLE["embedding"].to_pylist(), np.float32),
        labels=np.array(TABLE["label"].to_pylist()),
        patient=np.array(TABLE["patient"].to_pylist()),
    )
    return folder / "in", "patient"


def single_arrays(folder):
    (folder / "in").mkdir()
    for name, values in (("embeddings", "embedding"), ("labels", "label"), ("patient", "patient")):
        kind = np.float32 if name == "embeddings" else None
        np.save(folder / "in" / f"{name}.npy", np.array(TABLE[values].to_pylist(), kind))
    return folder / "in", "patient"


@pytest.mark.parametrize("layout", [parquet, folders, of_bytes, of_struct, arrays, single_arrays])
def test_every_layout_of_embeddings_gives_the_release_of_python(layout, tmp_path, capsys):
    source, name = layout(tmp_path)
    made = release(tmp_path / "job", source, "--privacy-unit-column", name, "--max-rows-per-unit", str(MOST))
    assert made == in_python()
    out, err = capsys.readouterr()
    assert "id-" not in out + err
    for path in tmp_path.joinpath("job").rglob("*"):
        assert "id-" not in path.name
        assert not path.is_file() or b"id-most" not in path.read_bytes() or path.name == "input.json"


def test_arrays_that_are_compressed_and_integers(tmp_path):
    source, name = arrays(tmp_path, compressed=True)
    assert (
        release(tmp_path / "job", source, "--privacy-unit-column", name, "--max-rows-per-unit", str(MOST))
        == in_python()
    )
    numbers = [int(each.removeprefix("id-").replace("most", "99")) for each in TABLE["patient"].to_pylist()]
    of_numbers = in_python(units=numbers)
    assert of_numbers == in_python(units=[str(each) for each in numbers])
    assert of_numbers == in_python(units=np.array(numbers, np.int8))
    # Which rows count depends on which are one's, and not on what one is called.
    assert of_numbers == in_python()


def test_order_of_rows_and_other_ids_change_nothing_of_it():
    order = np.random.default_rng(0).permutation(len(TABLE))
    shuffled = TABLE.take(pa.array(order))
    values = np.array(shuffled["embedding"].to_pylist())
    assert in_python() == in_python_of(values, shuffled["label"].to_pylist(), shuffled["patient"])


# Images ----------------------------------------------------------------------------------------

IMAGES = [(number, "abc"[number % 3], f"p{number % 4}" if number < 12 else "many") for number in range(30)]


def write_image(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 255, (6, 6, 3), np.uint8)
    Image.fromarray(pixels).save(path, format="png")


def image_folder(folder):
    for number, label, patient in IMAGES:
        write_image(folder / "in" / label / patient / f"{number}.png", number)
    # Of nobody.
    write_image(folder / "in" / "a" / "nobody.png", 77)
    return folder / "in", ["--privacy-unit-level", "1"]


def image_list(folder, ending="csv"):
    rows = [
        {"path": f"all/{number}.png", "label": label, "patient": patient} for number, label, patient in IMAGES
    ]
    rows.append({"path": "all/77.png", "label": "a", "patient": "" if ending == "csv" else None})
    for number in (*range(len(IMAGES)), 77):
        write_image(folder / "all" / f"{number}.png", number)
    with open(folder / f"list.{ending}", "w", newline="") as file:
        if ending == "csv":
            writer = csv.DictWriter(file, ["path", "label", "patient"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder / f"list.{ending}", ["--privacy-unit-column", "patient"]


def json_list(folder):
    return image_list(folder, "jsonl")


def image_parquet(folder):
    images = []
    for number in (*range(len(IMAGES)), 77):
        write_image(folder / "all" / f"{number}.png", number)
        images.append((folder / "all" / f"{number}.png").read_bytes())
    (folder / "in").mkdir()
    content = {
        "image": pa.array(images),
        "label": [*(label for _, label, _ in IMAGES), "a"],
        "patient": pa.array([*(patient for *_, patient in IMAGES), None]),
    }
    pq.write_table(pa.table(content), folder / "in" / "images.parquet", row_group_size=7)
    return folder / "in", ["--privacy-unit-column", "patient"]


def tar(folder):
    members: list[tuple[str, bytes]] = []
    for number, label, patient in (*IMAGES, (77, "a", None)):
        write_image(folder / "all" / f"{number}.png", number)
        members.append((f"{number}.png", (folder / "all" / f"{number}.png").read_bytes()))
        if number % 2:
            members.append((f"{number}.json", json.dumps({"label": label, "patient": patient}).encode()))
        else:
            members.append((f"{number}.cls", label.encode()))
            members.append((f"{number}.patient", (patient or "").encode() + b"\n"))
    (folder / "in").mkdir()
    write_tar(folder / "in" / "images.tar", members)
    return folder / "in", ["--privacy-unit-column", "patient"]


@pytest.fixture(scope="module")
def of_folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders")
    with pytest.MonkeyPatch.context() as patch:
        *others, _ = ReleaseConfig.__init__.__defaults__
        patch.setattr(ReleaseConfig.__init__, "__defaults__", (*others, FEW_STEPS))
        source, options = image_folder(folder)
        made = release(folder / "job", source, *options, "--max-rows-per-unit", "3", encoder="blocks")
    return folder, made


@pytest.mark.parametrize("layout", [image_list, json_list, image_parquet, tar])
def test_every_layout_of_images_gives_the_same_release(layout, of_folders, tmp_path):
    _, expected = of_folders
    source, options = layout(tmp_path)
    assert (
        release(tmp_path / "job", source, *options, "--max-rows-per-unit", "3", encoder="blocks") == expected
    )


def test_ids_go_through_an_embed_cache(of_folders, tmp_path, capsys):
    folder, expected = of_folders
    cache = tmp_path / "cache"
    argv = ["embed", "--input", str(folder / "in"), "--encoder", "blocks", "--output", str(cache)]
    assert cli.main([*argv, "--privacy-unit-level", "1"]) == 0
    made = release(
        tmp_path / "job", cache, "--privacy-unit-column", "unit", "--max-rows-per-unit", "3", encoder="blocks"
    )
    assert made == expected
    assert "is not used" not in capsys.readouterr().err
    release(tmp_path / "forgotten", cache, encoder="blocks")
    assert "that is not used: each row is a privacy unit of its own" in capsys.readouterr().err
    report = json.loads(next((tmp_path / "job" / "private" / "reports").glob("*.json")).read_text())
    # "many" has 18, four others three each, one image is nobody's.
    assert report["input"][0]["set_aside"] == {
        "length": 0,
        "label": 0,
        "value": 0,
        "unit": 1,
        "bound": 15,
        "slice": 0,
    }
    assert sum(report["input"][0]["classes"].values()) == 15


def test_a_file_of_two_people_is_a_row_of_each(tmp_path):
    """Else the one who goes would make the other's row come."""
    write_image(tmp_path / "all" / "1.png", 1)
    lines = ["path,label,patient", "all/1.png,a,x", "all/1.png,b,x", "all/1.png,c,y", "all/1.png,a,"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    for person in ("x", "y"):
        (tmp_path / "in" / "a" / person).mkdir(parents=True)
        os.link(tmp_path / "all" / "1.png", tmp_path / "in" / "a" / person / "1.png")
        os.link(tmp_path / "all" / "1.png", tmp_path / "in" / "a" / person / "2.png")
    for source, options in (
        (tmp_path / "list.csv", ["--privacy-unit-column", "patient"]),
        (tmp_path / "in", ["--privacy-unit-level", "1"]),
    ):
        cache = tmp_path / f"cache of {source.name}"
        argv = ["embed", "--input", str(source), "--encoder", "blocks", "--output", str(cache)]
        assert cli.main([*argv, *options]) == 0
        units = pq.read_table(cache)["unit"].to_pylist()
        assert [each for each in units if each] == [b"x", b"y"]


def test_links_to_one_folder_of_two_people_are_followed_for_each(tmp_path):
    write_image(tmp_path / "store" / "1.png", 1)
    for person in ("x", "y"):
        (tmp_path / "in" / "a" / person).mkdir(parents=True)
        (tmp_path / "in" / "a" / person / "all").symlink_to(tmp_path / "store")
        (tmp_path / "in" / "a" / person / "loop").symlink_to(tmp_path / "in" / "a" / person)
    cache = tmp_path / "cache"
    argv = ["embed", "--input", str(tmp_path / "in"), "--encoder", "blocks", "--output", str(cache)]
    assert cli.main([*argv, "--privacy-unit-level", "1"]) == 0
    assert sorted(pq.read_table(cache)["unit"].to_pylist()) == [b"x", b"y"]


@needs_prism
def test_people_on_a_cluster(tmp_path):
    """Prism as a server with a pool: tables, ranges and pieces as a portable runner spreads them."""
    content = TABLE.take(pa.array(np.arange(9000) % len(TABLE)))
    values = np.array(content["embedding"].to_pylist()) + np.random.default_rng(0).normal(size=(9000, 16))
    content = content.set_column(1, "embedding", small.embeddings_table(["a"] * 9000, values)["embedding"])
    source = small.write_rows(tmp_path / "in", content, row_group=1000)
    key, config = small.write_key(tmp_path / "key"), small.small_config(max_rows_per_unit=20)
    batch = content.rename_columns(["label", "embedding", "unit"]).combine_chunks().to_batches()[0]
    keys = UnitKeys.of(NoiseKey(small.KEY))
    rows = bounded([accept(batch, config.row_format, IdHasher(keys))[0]], 20, keys)
    expected = release_in_memory(Plan(config, small.RELEASE_ID), lambda: rows, NoiseKey(small.KEY))
    (job, prism), (worker, workers) = server(), pool(tmp_path)
    with prism, workers:
        columns = Columns(unit="patient")
        made = small.run(
            source, tmp_path / "out", key, *portable(job, worker), config=config, columns=columns
        )
    assert made == expected


# Statements ------------------------------------------------------------------------------------


@pytest.mark.parametrize("adjacency", ["add_remove", "replace_one"])
def test_what_is_stated_and_verified(adjacency, tmp_path, capsys):
    source, name = parquet(tmp_path)
    options = ["--privacy-unit-column", name, "--max-rows-per-unit", "4", "--adjacency", adjacency]
    made = release(tmp_path / "job", source, *options)
    privacy = json.loads(made["manifest.json"])["privacy"]
    relation = {"add_remove": "ADD_OR_REMOVE_ONE", "replace_one": "REPLACE_ONE"}[adjacency]
    assert privacy["neighboring_relation"] == relation
    assert privacy["privacy_unit"] == "all rows of one id"
    assert privacy["max_rows_per_unit"] == 4
    factors = {
        each["name"]: each["noise_over_row"] / each["noise_multiplier"] for each in privacy["mechanisms"]
    }
    of_sums = 4 if adjacency == "add_remove" else 8
    assert factors["means/sum"] == pytest.approx(of_sums)
    assert factors["teacher/gradient"] == pytest.approx(of_sums)
    of_counts = 4 if adjacency == "add_remove" else 4 * 2**0.5
    assert factors["means/count"] == factors["moment/moment"] == pytest.approx(of_counts)
    card = made["README.md"].decode()
    assert "adding or removing one person" in card or adjacency == "replace_one"
    assert "replacing one person" in card or adjacency == "add_remove"
    assert "At most\n  4 of them were used" in card
    capsys.readouterr()
    verify = ["verify", "--release", str(tmp_path / "job" / "out")]
    assert cli.main(verify) == 0
    assert (
        "replace one privacy unit" if adjacency == "replace_one" else "add or remove"
    ) in capsys.readouterr().out
    again = [*verify, "--input", str(source), "--noise-key-file", str(tmp_path / "job" / "key")]
    again += ["--private-dir", str(tmp_path / "verify")]
    assert cli.main([*again, "--privacy-unit-column", name]) == 0
    assert "derived again" in capsys.readouterr().out
    assert cli.main(again) == 2
    assert "--privacy-unit-column" in capsys.readouterr().err


@pytest.mark.parametrize("adjacency", ["add_remove", "replace_one"])
def test_the_event_composes_to_epsilon_by_an_accountant_of_the_stated_relation(adjacency):
    import dp_accounting
    from dp_accounting import pld

    from dpgmm_beam.privacy.accounting import event_from_json

    privacy = json.loads(in_python(adjacency=adjacency)[manifest.FILE_NAME])["privacy"]
    relation = dp_accounting.NeighboringRelation[privacy["neighboring_relation"]]
    accountant = pld.PLDAccountant(relation, value_discretization_interval=1e-4)
    accountant.compose(event_from_json(privacy["dp_event"]))
    assert accountant.get_epsilon(1e-5) == pytest.approx(2.0, rel=1e-3)


def test_a_manifest_that_promises_more_people_is_found(tmp_path, capsys):
    source, name = parquet(tmp_path)
    release(tmp_path / "job", source, "--privacy-unit-column", name, "--max-rows-per-unit", "4")
    path = tmp_path / "job" / "out" / "manifest.json"
    content = json.loads(path.read_text())
    for change in (
        lambda c: c["privacy"].update(privacy_unit="all rows of one household"),
        lambda c: c["privacy"].update(max_rows_per_unit=None),
        lambda c: c["config"].update(max_rows_per_unit=8),
        lambda c: c["config"].update(adjacency="replace_one"),
        lambda c: c["privacy"]["mechanisms"][0].update(noise_over_row=1.0),
        lambda c: c.update(schema_version=3),
    ):
        changed = json.loads(json.dumps(content))
        change(changed)
        path.write_text(json.dumps(changed))
        assert cli.main(["verify", "--release", str(path.parent)]) in (1, 2)
    capsys.readouterr()


def test_plan_and_inspect_say_it(tmp_path, capsys):
    argv = [
        "plan",
        "--rows",
        "3000",
        "--classes",
        "3",
        "--dimension",
        "64",
        "--epsilon",
        "4",
        "--delta",
        "1e-6",
    ]
    argv += ["--components", "1"]
    assert cli.main(argv) == 0
    plain = capsys.readouterr().out
    assert cli.main([*argv, "--max-rows-per-unit", "5", "--adjacency", "replace_one"]) == 0
    of_people = capsys.readouterr().out
    assert "replace one privacy unit" in of_people
    assert "noise is 10 times" in of_people
    assert "replace one" not in plain
    source, name = parquet(tmp_path)
    assert cli.main(["inspect", "--input", str(source), "--privacy-unit-column", name]) == 0
    shown = capsys.readouterr().out
    assert "units       16 people" in shown
    assert "most 60" in shown
    assert "id-" not in shown


def test_slices_are_of_different_people(tmp_path):
    source, name = parquet(tmp_path)
    rows = set()
    for part in ("1/2", "2/2"):
        folder = tmp_path / part.replace("/", "-")
        options = ["--privacy-unit-column", name, "--max-rows-per-unit", "64", "--slice", part]
        made = release(folder, source, *options)
        content = json.loads(made["manifest.json"])
        assert content["privacy"]["slice"] == content["config"]["slice"] == part
        assert f"Only people of slice\n  {part} were" in made["README.md"].decode()
        assert made == in_python(max_rows_per_unit=64, slice=part)
        report = json.loads(next((folder / "private" / "reports").glob("*.json")).read_text())
        rows.add(report["input"][0]["set_aside"]["slice"])
    assert sum(rows) == len(TABLE)
    assert min(rows) > 0


# Refusals --------------------------------------------------------------------------------------


def refused(source, folder, capsys, *options, encoder="precomputed"):
    argv = ["release", "--input", str(source), "--encoder", encoder, "--output", str(folder / "out")]
    assert cli.main([*argv, *common(folder), *options]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert len(err.strip().splitlines()) == 1
    assert "id-" not in err
    assert not (folder / "private" / "rows").exists()
    return err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--privacy-unit-column", "patient"],
            "--max-rows-per-unit=(not given) is refused: it must be given",
        ),
        (
            ["--max-rows-per-unit", "2"],
            "--max-rows-per-unit=2 is refused: it must come with --privacy-unit-column",
        ),
        (["--privacy-unit-column", "patient", "--max-rows-per-unit", "0"], "from 1 to 1024"),
        (
            ["--privacy-unit-column", "nobody", "--max-rows-per-unit", "2"],
            "--privacy-unit-column=nobody is refused",
        ),
        (["--privacy-unit-column", "embedding", "--max-rows-per-unit", "2"], "hold text, bytes or integers"),
        (["--privacy-unit-level", "1", "--max-rows-per-unit", "2"], "--privacy-unit-level=1 is refused"),
        (["--slice", "1/2"], "--slice=1/2 is refused: it must be of privacy units"),
        (
            ["--privacy-unit-column", "patient", "--max-rows-per-unit", "2", "--slice", "3/2"],
            "--slice=3/2 is refused: it must be K/N",
        ),
        (["--privacy-unit-level", "-1", "--max-rows-per-unit", "2"], "from 1 to 64"),
        (
            ["--privacy-unit-level", "1", "--privacy-unit-column", "patient", "--max-rows-per-unit", "2"],
            "--privacy-unit-level=1 is refused: it must come without",
        ),
    ],
)
def test_what_does_not_say_who_is_refused(options, sentence, tmp_path, capsys):
    source, _ = parquet(tmp_path)
    assert sentence in refused(source, tmp_path, capsys, *options)


@pytest.mark.parametrize("kind", [pa.float64(), pa.bool_(), pa.date32()])
def test_types_that_are_no_ids_are_refused(kind, tmp_path, capsys):
    content = without(TABLE, "patient").append_column("patient", pa.nulls(len(TABLE), kind))
    source = small.write_rows(tmp_path / "in", content)
    options = ["--privacy-unit-column", "patient", "--max-rows-per-unit", "2"]
    assert "hold text, bytes or integers in column 'patient'" in refused(source, tmp_path, capsys, *options)


def test_files_that_do_not_agree_on_ids_are_refused(tmp_path, capsys):
    source, _ = parquet(tmp_path)
    ids = pa.array([0] * len(TABLE), pa.int64())
    content = without(TABLE, "patient").append_column("patient", ids)
    pq.write_table(content, source / "more.parquet")
    options = ["--privacy-unit-column", "patient", "--max-rows-per-unit", "2"]
    assert "have one schema in all files" in refused(source, tmp_path, capsys, *options)


def test_folders_and_lists_without_ids_are_refused(tmp_path, capsys):
    source, _ = image_folder(tmp_path)
    more = ["--max-rows-per-unit", "2"]
    said = refused(source, tmp_path, capsys, "--privacy-unit-column", "patient", *more, encoder="blocks")
    assert "where a privacy_unit_level says whose folder it is" in said
    listed, _ = image_list(tmp_path)
    said = refused(listed, tmp_path, capsys, "--privacy-unit-column", "nobody", *more, encoder="blocks")
    assert "--privacy-unit-column=nobody is refused: it must be a column of every list" in said
    (tmp_path / "flat").mkdir()
    said = refused(tmp_path / "flat", tmp_path, capsys, "--privacy-unit-level", "1", *more, encoder="blocks")
    assert "there are no folders" in said


@pytest.mark.parametrize("ids", ["nulls", "one", "empty"])
def test_ids_that_are_all_null_or_one_are_released_like_any(ids, tmp_path):
    values = {"nulls": [None], "one": ["me"], "empty": [""]}[ids] * len(TABLE)
    content = without(TABLE, "patient").append_column("patient", pa.array(values, pa.string()))
    source = small.write_rows(tmp_path / "in", content)
    release(tmp_path / "job", source, "--privacy-unit-column", "patient", "--max-rows-per-unit", "2")
    report = json.loads(next((tmp_path / "job" / "private" / "reports").glob("*.json")).read_text())
    aside = report["input"][0]["set_aside"]
    assert (aside["unit"], aside["bound"]) == ((0, len(TABLE) - 2) if ids == "one" else (len(TABLE), 0))


def test_a_file_in_the_folders_of_two_people_is_a_file_of_each(tmp_path):
    """And one of two names in one's folder is read once."""
    for person in ("x", "y"):
        (tmp_path / "in" / f"patient={person}").mkdir(parents=True)
    pq.write_table(without(TABLE, "patient").slice(0, 10), tmp_path / "in" / "patient=x" / "1.parquet")
    for name in ("patient=x/2.parquet", "patient=y/1.parquet"):
        os.link(tmp_path / "in" / "patient=x" / "1.parquet", tmp_path / "in" / name)
    release(tmp_path / "job", tmp_path / "in", "--privacy-unit-column", "patient", "--max-rows-per-unit", "4")
    report = json.loads(next((tmp_path / "job" / "private" / "reports").glob("*.json")).read_text())
    assert report["input"][0]["rows"] == 20
    assert sum(report["input"][0]["classes"].values()) == 8


# A bound that is found -------------------------------------------------------------------------


def many_people(folder):
    """2,000 of one row, 600 of two, 30 of nine."""
    owners = np.concatenate(
        [np.arange(2000), np.repeat(np.arange(2000, 2600), 2), np.repeat(np.arange(30), 9) + 3000]
    )
    content = small.table(len(owners)).append_column("patient", pa.array(owners.astype(str)))
    return small.write_rows(folder / "in", content, row_group=500), content


def test_a_bound_is_found_and_paid_for(tmp_path, capsys):
    source, content = many_people(tmp_path)
    options = ["--privacy-unit-column", "patient", "--max-rows-per-unit", "auto"]
    made = release(tmp_path / "job", source, *options)
    stated = json.loads(made["manifest.json"])
    # Of 2,630 people 630 have more than one row, 30 more than two; noise has a deviation of 20.
    assert stated["config"]["max_rows_per_unit"] == stated["privacy"]["max_rows_per_unit"] == 2
    assert stated["config"]["bound_found"] is True
    first = stated["privacy"]["mechanisms"][0]
    assert first["name"] == "units/rows"
    assert first["noise_over_row"] == first["noise_multiplier"]
    assert 0.005 < first["share"] < 0.02
    assert "noisy numbers of people" in made["README.md"].decode()
    values, labels = np.array(content["embedding"].to_pylist()), content["label"].to_pylist()
    assert made == in_python_of(values, labels, content["patient"], max_rows_per_unit="auto")
    assert not list((tmp_path / "job" / "private").rglob("bound/*/*"))
    verify = ["verify", "--release", str(tmp_path / "job" / "out"), "--input", str(source)]
    verify += ["--noise-key-file", str(tmp_path / "job" / "key"), "--private-dir", str(tmp_path / "verify")]
    assert cli.main([*verify, "--privacy-unit-column", "patient"]) == 0
    # The same command makes the same release; what it names is there already.
    before = small.contents(tmp_path / "job" / "out")
    assert release(tmp_path / "job", source, *options) == before
    capsys.readouterr()
    path = tmp_path / "job" / "out" / "manifest.json"
    stated["config"]["bound_found"] = False
    path.write_text(json.dumps(stated))
    assert cli.main(verify[:3]) == 1


def test_auto_is_refused_where_two_jobs_cannot_be(tmp_path, capsys):
    source, name = parquet(tmp_path)
    options = ["--privacy-unit-column", name, "--max-rows-per-unit", "auto", *keyed(tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        # As with --no_wait_until_finish, for which a job server must answer.
        patch.setattr("pipelines.job.waits", lambda options: False)
        said = refused(source, tmp_path, capsys, *options)
    assert "--max-rows-per-unit=auto is refused: it must be a number" in said
    assert "--max-rows-per-unit" in refused(source, tmp_path, capsys, "--max-rows-per-unit", "auto")
    argv = [
        "plan",
        "--rows",
        "300",
        "--classes",
        "3",
        "--dimension",
        "4",
        "--epsilon",
        "4",
        "--delta",
        "1e-6",
    ]
    for each in ([*argv, "--max-rows-per-unit", "auto"], ["release", "--max-rows-per-unit", "two"]):
        with pytest.raises(SystemExit):
            cli.main(each)
    assert "it must be a whole number or auto, not 'two'" in capsys.readouterr().err
    config = ReleaseConfig("precomputed", ("a",), 4, 1.0, 1e-5, max_rows_per_unit=64, bound_found=True)
    with (
        pytest.raises(ConfigError, match="config=bound_found"),
        private_run(config, tmp_path / "out", private_dir=tmp_path / "private"),
    ):
        pass
