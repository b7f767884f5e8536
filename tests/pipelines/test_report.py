"""`dpgmm report` on real releases; test_report_in_browser.py has what a browser makes of its pages."""

import collections
import hashlib
import html.parser
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpgmm_beam import load_mixture
from dpgmm_beam.config import ReleaseConfig
from dpgmm_beam.data.rows import rows_of_batch
from dpgmm_beam.fit.plan import Plan
from dpgmm_beam.privacy.noise import NoiseKey
from dpgmm_beam.privacy.tradeoff import operational
from dpgmm_beam.release.in_memory import release_in_memory
from pipelines import cli
from pipelines.reporting import charts, comparison, facts
from tests import small
from tests.transforms import crate  # noqa: F401  (the scheme crate://)
from transforms.files.parquet import ENCODER_KEY

HOSTILE = (
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(2)>",
    "a&b\"quoted'",
    "$\\frac{1}{0}$",
    "very long " + "label " * 100,
    "ünïcödé 猫 \u202eabc",
)


class Page(html.parser.HTMLParser):
    """A page's elements and text."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, markup: str):
        super().__init__()
        self.markup = markup
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(markup)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if not {"style", "title"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


def make_release(folder: Path, table: pa.Table, config: ReleaseConfig) -> Path:
    """A release without Beam: the same bytes as with it."""
    batches = table.combine_chunks().to_batches()
    blocks = [rows_of_batch(batch, config.row_format) for batch in batches]
    for path, data in release_in_memory(Plan(config, "made"), lambda: blocks, NoiseKey(small.KEY)).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def clustered(classes, rows: int, dimension: int = 16, seed: int = 0) -> pa.Table:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(classes), rows)
    values = generator.normal(size=(len(classes), dimension))[labels]
    values = values + 0.5 * generator.normal(size=values.shape)
    return small.embeddings_table([classes[label] for label in labels], values)


def report(release, output, *more) -> int:
    return cli.main(["report", "--release", str(release), "--output", str(output), *map(str, more)])


def page_of(release, folder) -> Page:
    assert report(release, folder / "report.html") == 0
    return Page((folder / "report.html").read_text())


def partly_mislabelled() -> pa.Table:
    """Rows to test a network on, some of which have another's label: no network is right everywhere."""
    table = small.table(600)
    labels = table["label"].to_pylist()
    swapped = [small.CLASSES[1] if label == small.CLASSES[0] else label for label in labels[:30]]
    return table.set_column(0, "label", pa.array(swapped + labels[30:]))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A release, the real rows that it was made from, and a network."""
    folder = tmp_path_factory.mktemp("report")
    small.write_rows(folder / "private", small.table(600))
    make_release(folder / "release", small.table(600), small.small_config(samples_per_class=200))
    small.write_rows(folder / "tested", partly_mislabelled())
    command = f"train --synthetic {folder}/release --test {folder}/tested --output {folder}/network"
    assert cli.main([*command.split(), "--epochs", "3"]) == 0
    return folder


@pytest.fixture(scope="module")
def public(made, tmp_path_factory) -> Page:
    return page_of(made / "release", tmp_path_factory.mktemp("public"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Page:
    folder = tmp_path_factory.mktemp("hostile")
    config = small.small_config(classes=HOSTILE, samples_per_class=100)
    make_release(folder / "release", clustered(HOSTILE, 900), config)
    return page_of(folder / "release", folder)


def test_it_says_what_the_release_says(made, public):
    content = json.loads((made / "release" / "manifest.json").read_text())
    privacy = content["privacy"]
    figures = operational(privacy["noise_multiplier"])
    assert "ε = 2" in public.text
    assert "δ = 10⁻⁵" in public.text
    assert f"{figures.mu:.6g}" in public.text
    assert f"{100 * figures.advantage:.2f}%" in public.text
    assert hashlib.sha256((made / "release" / "manifest.json").read_bytes()).hexdigest() in public.text
    for mechanism in privacy["mechanisms"]:
        row = (
            rf"{mechanism['name']} +{100 * mechanism['share']:.1f}% +{mechanism['repetitions']}"
            rf" +{mechanism['noise_multiplier']:,.2f}"
        )
        assert re.search(row, public.text), row
    sizes = pq.read_table(made / "release" / "mixture" / "classes.parquet").to_pylist()
    for size in sizes:
        stated = f"{size['class']} {size['rows']:,} ± {size['rows_stddev']:,.0f}"
        assert stated in public.text
    # As a reader of the Parquet files would find it.
    rows = pq.read_table(made / "release" / "synthetic")
    agreement = np.mean(np.array(rows["label"].to_pylist()) == np.array(rows["component_class"].to_pylist()))
    assert f"Teacher's agreement {100 * agreement:.1f}%" in public.text
    assert "dpgmm verify --release" in public.text


def test_a_release_with_as_many_components_as_the_fit_has_found(tmp_path):
    config = small.small_config(components=None, epsilon=200.0)
    release = make_release(tmp_path / "release", small.table(300), config)
    page = page_of(release, tmp_path / "page")
    labels = pq.read_table(release / "mixture" / "components.parquet")["class"].to_pylist()
    least, *_, most = sorted(map(labels.count, small.CLASSES))
    assert 1 < least < most
    assert f"{least} to {most} Gaussians" in page.text


def test_the_same_release_gives_the_same_bytes(made, public, tmp_path):
    """In another process with other threads, hash seed and settings of matplotlib."""
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nlines.linewidth: 9\nsvg.fonttype: path\n")
    environment = {
        **os.environ,
        "MATPLOTLIBRC": str(tmp_path),
        "PYTHONHASHSEED": "7",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "2",
        "TZ": "Asia/Tokyo",
        "LC_ALL": "C",
    }
    command = [sys.executable, "-m", "pipelines.cli", "report", "--release", str(made / "release")]
    subprocess.run([*command, "--output", str(tmp_path / "again.html")], check=True, env=environment)
    assert (tmp_path / "again.html").read_text() == public.markup


@pytest.mark.parametrize("classes", [small.CLASSES, ("a",)], ids=len)
def test_components_by_the_noisy_size(tmp_path, classes):
    """As by default: the configuration leaves their number to the release."""
    config = small.small_config(classes=classes, components=None, epsilon=20.0, samples_per_class=50)
    make_release(tmp_path / "release", clustered(classes, 6000), config)
    _, found = load_mixture(tmp_path / "release").weights.shape
    assert found > 1
    page = page_of(tmp_path / "release", tmp_path)
    assert f"Each class is a mixture of {found} Gaussians." in page.text
    check_page(page)


def check_page(page: Page) -> None:
    """A page that stands alone, runs nothing, and whose names lead somewhere."""
    assert not page.open
    tags = collections.Counter(tag for tag, _ in page.elements)
    assert not {"script", "img", "iframe", "object", "embed", "link", "base", "form", "foreignobject"} & set(
        tags
    )
    assert tags["html"] == tags["main"] == tags["h1"] == tags["style"] == 1
    assert tags["title"] == 1 + tags["svg"]
    (policy,) = (meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'; style-src 'unsafe-inline';")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "xlink:href", "src"):
            if name in attributes:
                assert attributes[name].startswith("#")
                assert attributes[name][1:] in ids
        for reference in attributes.get("aria-labelledby", "").split():
            assert reference in ids
        for found in re.findall(r"url\(([^)]*)\)", " ".join(filter(None, attributes.values()))):
            assert found[1:] in ids
    addresses = set(re.findall(r"https?://[^\s\"'<]+", page.markup))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in page.markup
    for drawing in page.all("svg"):
        assert drawing["role"] == "img"
        assert drawing["aria-labelledby"]
    for cell in page.all("th"):
        assert cell["scope"] in ("row", "col")
    # Whatever is wider than a phone scrolls, with the keyboard too.
    regions = [attributes for attributes in page.all("div") if attributes.get("class") == "scroll"]
    assert len(regions) >= tags["table"] + tags["pre"]
    assert all(each["tabindex"] == "0" and each["aria-label"] for each in regions)
    assert page.all("a")[0] == {"class": "skip", "href": "#main"}
    # Colours are the page's, but for what no colour is drawn with.
    assert set(re.findall(r"#[0-9a-fA-F]{6}", page.markup.partition("</style>")[2])) <= {"#1f77b4"}


def test_pages_stand_alone(public):
    check_page(public)
    assert public.all("html")[0]["lang"] == "en"


def test_labels_are_text_whatever_they_hold(hostile):
    check_page(hostile)
    for label in HOSTILE[:4]:
        assert label in hostile.text
    assert HOSTILE[4].strip() in hostile.text
    # Characters that turn the direction of text are shown, not obeyed.
    assert "\u202e" not in hostile.markup
    assert "\\u202eabc" in hostile.text


def test_a_thousand_classes(tmp_path):
    classes = tuple(f"class number {number}" for number in range(1000))
    config = small.small_config(classes=classes, samples_per_class=8, components=1, epsilon=50.0)
    make_release(tmp_path / "release", clustered(classes, 6000), config)
    page = page_of(tmp_path / "release", tmp_path)
    check_page(page)
    assert len(page.markup) < 2**20
    # Every class is in a table, and no chart has a bar or a name for each.
    assert {f"class number {number}" for number in range(1000)} <= set(page.texts)
    assert "The 10 smallest classes" in page.text
    # Epsilon 50, and a delta of a hundredth of one over the rows.
    assert "These bounds are wide." in page.text
    assert "δ is large" not in page.text
    for drawing in re.findall(r"<svg.*?</svg>", page.markup, re.DOTALL):
        assert drawing.count("<text") < 60


def test_one_class_has_no_teacher(tmp_path):
    config = small.small_config(classes=("only",), components=1)
    make_release(tmp_path / "release", clustered(("only",), 300), config)
    page = page_of(tmp_path / "release", tmp_path)
    check_page(page)
    assert "Teacher none" in page.text
    assert "Teacher agrees" not in page.text
    assert "no component weights" in page.text


def test_one_dimension_and_an_empty_class(tmp_path):
    classes = ("there", "not there")
    table = clustered(("there",), 400, dimension=1)
    config = small.small_config(classes=classes, components=1, dimension=1, clip_norm=3.0, delta=0.01)
    make_release(tmp_path / "release", table, config)
    page = page_of(tmp_path / "release", tmp_path)
    check_page(page)
    assert "1 class is no larger than the noise" in page.text
    assert "δ is large for this data." in page.text
    assert "These bounds are wide." not in page.text


@pytest.fixture(scope="module")
def both(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    options = ("--network", made / "network", "--private-embeddings", made / "private")
    assert report(made / "release", folder / "report.html", *options) == 0
    return folder


def test_what_is_private_is_in_a_file_of_its_own(both, public):
    assert sorted(os.listdir(both)) == ["report.html", "report.private.html"]
    # Not a byte of the public page depends on it.
    assert (both / "report.html").read_text() == public.markup
    assert stat.S_IMODE((both / "report.private.html").stat().st_mode) == 0o600


def test_the_private_page_says_that_it_is(both, made):
    page = Page((both / "report.private.html").read_text())
    check_page(page)
    assert re.search("<title>PRIVATE: ", page.markup)
    assert page.text.startswith("Skip to the content PRIVATE This page holds exact figures of real rows.")
    assert {"name": "robots", "content": "noindex, nofollow"} in page.all("meta")
    metrics = json.loads((made / "network" / "metrics.json").read_text())
    assert f"{100 * metrics['accuracy']:.2f}%" in page.text
    assert "Confusion of the network on real test rows" in page.markup
    wrong = np.array(metrics["confusion_matrix"])
    np.fill_diagonal(wrong, 0)
    row, column = divmod(int(wrong.argmax()), len(wrong))
    assert f"Of the class {small.CLASSES[row]} {small.CLASSES[column]} {wrong[row, column]} " in page.text
    counts = collections.Counter(small.table(600)["label"].to_pylist())
    for label in small.CLASSES:
        stated = rf"{label} {counts[label]} \d\.\d{{3}} {100 * metrics['per_class_accuracy'][label]:.1f}%"
        assert re.search(stated, page.text), stated


def test_private_pages_replace_with_their_mode(both, made):
    path = both / "report.private.html"
    path.chmod(0o644)
    options = ("--private-embeddings", made / "private", "--overwrite")
    assert report(made / "release", both / "report.html", *options) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_sample_of_real_rows_depends_on_no_order(made, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "COMPARED_ROWS", 50)
    release = facts.read_release(str(made / "release"))
    table = small.table(600)
    shuffled = table.take(np.random.default_rng(5).permutation(600))
    small.write_rows(tmp_path / "shuffled", shuffled, files=7, row_group=11)
    one, two = (
        comparison.read_real(str(folder), release) for folder in (made / "private", tmp_path / "shuffled")
    )
    assert len(one.classes) == 100
    np.testing.assert_array_equal(one.embeddings, two.embeddings)
    np.testing.assert_array_equal(one.classes, two.classes)
    np.testing.assert_array_equal(one.by_class, two.by_class)
    np.testing.assert_allclose(one.sums, two.sums, rtol=1e-12)


def test_real_rows_by_the_names_of_their_columns(made, tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    for path in (made / "private").glob("*.parquet"):
        table = pq.read_table(path)
        names = {"embedding": "vector", "label": "target"}
        renamed = table.rename_columns([names.get(each, each) for each in table.column_names])
        pq.write_table(renamed, tmp_path / "one" / path.name)
    there = ("--private-embeddings", str(tmp_path / "one"))
    assert report(made / "release", tmp_path / "one.html", *there) == 2
    assert "'vector', which may be meant" in capsys.readouterr().err
    columns = ("--label-column", "target", "--embedding-column", "vector")
    assert report(made / "release", tmp_path / "one.html", *there, *columns) == 0
    other = ("--private-embeddings", str(made / "private"))
    assert report(made / "release", tmp_path / "two.html", *other) == 0
    for suffix in (".html", ".private.html"):
        pages = [(tmp_path / name).with_suffix(suffix).read_text() for name in ("one", "two")]
        assert pages[0] == pages[1]


def test_rows_of_the_release_itself_are_like_it(made, tmp_path):
    """Taken for real ones, synthetic rows are as like to the release as to each other."""
    release = facts.read_release(str(made / "release"))
    sample = load_mixture(str(made / "release")).sample(6000, seed=3)
    small.write_rows(
        tmp_path / "rows", small.embeddings_table(list(sample.component_class), sample.embeddings)
    )
    found = comparison.compare(comparison.read_real(str(tmp_path / "rows"), release), release)
    assert found.compared == 3000
    one, two = found.synthetic, found.reference
    # Accuracies of 6,000 trials: standard deviation .0065 each, were they independent.
    for accuracy in (one.nearest, one.linear, two.nearest, two.linear):
        assert abs(accuracy - 0.5) < 0.08
    assert one.neighbours.coverage == pytest.approx(two.neighbours.coverage, abs=0.05)
    assert one.neighbours.precision == pytest.approx(two.neighbours.precision, abs=0.05)
    assert one.frechet < 3 * two.frechet


def test_releases_and_pages_on_other_file_systems(made, public, tmp_path):
    assert report(f"crate://{made / 'release'}", f"crate://{tmp_path}/far.html") == 0
    assert (tmp_path / "far.html").read_text() == public.markup
    assert report(f"crate://{made / 'release'}", f"crate://{tmp_path}/far.html") == 2


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("report.txt", "be a file NAME.html"),
        (".html", "be a file NAME.html"),
        ("report.private.html", "NAME does not end in .private itself"),
        ("release/report.html", "lie apart from --release"),
        ("a-file/report.html", "be a file that can be written"),
        ("there.html", "be new, for"),
        ("folder.html", "something else is there"),
    ],
)
def test_outputs_that_are_refused(made, tmp_path, capsys, output, sentence):
    (tmp_path / "release").symlink_to(made / "release")
    (tmp_path / "a-file").touch()
    (tmp_path / "there.html").touch()
    (tmp_path / "folder.html").mkdir()
    before = sorted(os.listdir(tmp_path))
    assert report(tmp_path / "release", tmp_path / output) == 2
    error = capsys.readouterr().err
    assert error.startswith("dpgmm: --output=")
    assert sentence in error
    assert sorted(os.listdir(tmp_path)) == before


def test_a_private_page_that_is_there_is_kept(made, tmp_path, capsys):
    (tmp_path / "report.private.html").write_text("mine")
    assert report(made / "release", tmp_path / "report.html", "--network", made / "network") == 2
    assert "report.private.html is there" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["report.private.html"]


def test_a_release_that_does_not_verify_gets_no_page(made, tmp_path, capsys):
    subprocess.run(["cp", "-r", made / "release", tmp_path / "release"], check=True)
    path = next((tmp_path / "release" / "synthetic").iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert report(tmp_path / "release", tmp_path / "report.html") == 2
    assert "must verify, and dpgmm verify says: synthetic/" in capsys.readouterr().err
    assert report(tmp_path / "nothing", tmp_path / "report.html") == 2
    assert "be a folder with a manifest.json" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["release"]


def test_private_inputs_that_are_refused(made, tmp_path, capsys):
    def refused(option, value) -> str:
        assert report(made / "release", tmp_path / "report.html", option, value) == 2
        assert not (tmp_path / "report.html").exists()
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"dpgmm: {option}=")
        return error

    small.write_rows(tmp_path / "other", clustered(small.CLASSES, 50, dimension=5))
    small.write_rows(tmp_path / "few", small.table(9))
    small.write_rows(tmp_path / "unlabelled", small.table(90).drop_columns("label"))
    assert "length 16, as the release does" in refused("--private-embeddings", tmp_path / "other")
    assert "24 rows at least" in refused("--private-embeddings", tmp_path / "few")
    assert "a column 'label'" in refused("--private-embeddings", tmp_path / "unlabelled")
    assert "match embeddings in Parquet or arrays" in refused("--private-embeddings", tmp_path / "none")
    assert "be a folder with a metrics.json" in refused("--network", tmp_path / "none")
    (tmp_path / "network").mkdir()
    for content, sentence in (
        ("{}", "written by dpgmm train"),
        ("[" * 10**5, "written by dpgmm train"),
        ('{"per_class_accuracy": {"x": 1}}', "it has other classes"),
    ):
        (tmp_path / "network" / "metrics.json").write_text(content)
        assert sentence in refused("--network", tmp_path / "network")


def test_real_rows_of_another_encoder_are_refused(tmp_path, capsys):
    table = clustered(small.CLASSES, 200, dimension=6)
    make_release(tmp_path / "release", table, small.small_config(encoder="blocks", dimension=6))
    other = table.replace_schema_metadata({ENCODER_KEY: b"efficientnet_lite0"})
    small.write_rows(tmp_path / "rows", other, files=1)
    options = ("--private-embeddings", tmp_path / "rows")
    assert report(tmp_path / "release", tmp_path / "report.html", *options) == 2
    assert "embeddings by blocks, as --release does, not by efficientnet_lite0" in capsys.readouterr().err


def test_a_missing_library_is_named_with_its_extra(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert report(made / "release", tmp_path / "report.html") == 2
    sentence = 'must come with matplotlib: pip install "dpgmm-beam[report]".'
    assert capsys.readouterr().err.endswith(f"{sentence}\n")


def test_machines_are_told_where_the_pages_are(made, tmp_path, capsys):
    assert report(made / "release", tmp_path / "report.html", "--network", made / "network", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["report"] == str(tmp_path / "report.html")
    assert found["private_report"] == str(tmp_path / "report.private.html")


def test_a_confusion_matrix_is_drawn_in_the_order_of_the_release(made, tmp_path):
    metrics = json.loads((made / "network" / "metrics.json").read_text())
    classes = small.CLASSES
    counts = np.arange(9).reshape(3, 3)
    order = [2, 0, 1]
    metrics |= {
        "classes": [classes[index] for index in order],
        "confusion_matrix": counts[np.ix_(order, order)].tolist(),
    }
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    found = comparison.read_network(str(tmp_path), classes)
    np.testing.assert_array_equal(found.confusion, counts)
    assert found.mistakes(2) == [(2, 1, 7), (2, 0, 6)]


def test_a_chart_has_no_text_that_is_drawn():
    """Text stays text: it is found, copied, read aloud, and drawn by the page's fonts."""
    chart = charts.bars("name", "Title <&>", ["$x^2$", "猫"], np.array([1.0, np.nan]), "axis", "said")
    assert "$x^2$" in chart.svg
    assert "猫" in chart.svg
    assert "n/a" in chart.svg
    assert '<title id="name-title">Title &lt;&amp;&gt;</title>' in chart.svg
