"""A release in a pipeline of one's own, by the rules of the command."""

import contextlib
import json
import os
from pathlib import Path

import apache_beam as beam
import pytest

from dpgmm_beam import ConfigError
from dpgmm_beam.config import Method
from pipelines.own import private_run
from tests import small
from tests.pipelines.processes import needs_prism
from transforms import FitMixture, PrepareElements, WriteRelease

CONFIG = small.small_config(components=1, method=Method(teacher_steps=1, subspace_dim=8))
TABLE = small.table(120)
ROWS = TABLE.to_pylist()

IN_PROCESS = ["--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner"]
ON_PRISM = ["--runner=PrismRunner", f"--prism_location={small.PRISM}"]


def release(output, private, rows=ROWS, config=CONFIG, options=IN_PROCESS, **arguments) -> dict[str, bytes]:
    begun = private_run(config, output, private_dir=private, **arguments)
    with begun as run, beam.Pipeline(argv=options) as pipeline:
        created = pipeline | beam.Create(rows)
        fitted = created | PrepareElements(run.plan, run.workspace) | FitMixture(run.plan, run.workspace)
        _ = fitted | WriteRelease(run.publication, run.workspace)
    return small.contents(output)


@pytest.fixture
def own(tmp_path):
    """A key of one's own, with an id."""
    return {"key_file": small.write_key(tmp_path / "key"), "release_id": small.RELEASE_ID}


def test_it_is_the_command_s_release_and_its_register_s(tmp_path, own):
    source = small.write_rows(tmp_path / "in", TABLE)
    expected = small.run(source, tmp_path / "by command", own["key_file"], config=CONFIG)
    private = tmp_path / "private"
    assert release(tmp_path / "out", private, [*ROWS, {"label": "unknown"}], **own) == expected
    assert private.stat().st_mode & 0o777 == 0o700
    (report,) = (private / "reports").iterdir()
    (found,) = json.loads(report.read_text())["input"]
    assert found == {"rows": 121, "set_aside": {"length": 1, "label": 0, "value": 0}}
    # Spills and views are gone; states, rows and the register stay for the next release of this id.
    (run,) = (private / "runs").iterdir()
    assert not list(run.glob("spilled/*"))
    assert list(run.glob("*/state-*.npz"))
    assert release(tmp_path / "out", private, ROWS[::-1], **own) == expected
    with pytest.raises(Exception, match="names a release of other data"):
        release(tmp_path / "other", private, ROWS[1:], **own)
    # The command is of the same mind.
    changed = small.small_config(components=1, epsilon=1.0, method=CONFIG.method)
    with pytest.raises(ConfigError, match="another configuration"):
        small.run(source, tmp_path / "third", own["key_file"], config=changed, private_dir=private)


@needs_prism
def test_prism_gives_the_command_s_bytes_too(tmp_path, own):
    """Single rows and batches, in bundles of Prism's."""
    source = small.write_rows(tmp_path / "in", TABLE)
    elements = [*TABLE.slice(50).to_batches(max_chunksize=7), *ROWS[:50]]
    found = release(tmp_path / "out", tmp_path / "private", elements, options=ON_PRISM, **own)
    assert found == small.in_memory(source, CONFIG)


def test_a_drawn_key_leaves_nothing(tmp_path):
    one = release(tmp_path / "one", tmp_path / "private")
    two = release(tmp_path / "two", tmp_path / "private")
    assert one.keys() == two.keys()
    assert one != two
    assert not list((tmp_path / "private" / "runs").iterdir())


def begin(folder: Path, source: str, error: BaseException | None = None) -> str:
    """The id of a run that ends with an error, or well."""
    begun = private_run(CONFIG, folder / "out", private_dir=folder / "private", source=source)
    with contextlib.suppress(OSError, KeyboardInterrupt), begun as run:
        if error is not None:
            raise error
    return run.plan.release_id


def test_what_died_is_continued_with_its_key(tmp_path):
    """The next run with the same arguments spends nothing more; who stopped it left nothing."""
    stopped = begin(tmp_path, "monday", KeyboardInterrupt())
    assert not list((tmp_path / "private" / "runs").iterdir())
    died = begin(tmp_path, "monday", OSError("broken"))
    assert died != stopped
    assert begin(tmp_path, "tuesday") != died
    assert begin(tmp_path, "monday") == died
    assert begin(tmp_path, "monday") != died


def refused(tmp_path, output=None, **arguments) -> ConfigError:
    arguments = {"private_dir": tmp_path / "private", **arguments}
    with pytest.raises(ConfigError) as caught, private_run(CONFIG, output or tmp_path / "out", **arguments):
        pytest.fail("it began")
    return caught.value


def test_refusals_name_arguments(tmp_path, own):
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    shared = Path(small.write_key(tmp_path / "shared"))
    shared.chmod(0o644)
    cases = {
        "private_dir": [{"private_dir": tmp_path / "open"}],
        "output": [{"output": tmp_path / "full"}, {"output": tmp_path / "private" / "runs" / "x"}],
        "key_file": [
            {"key_file": own["key_file"]},
            {**own, "key_file": shared},
            {**own, "key_file": "/none"},
        ],
        "release_id": [{"release_id": "x"}, {**own, "release_id": "a b"}],
    }
    for argument, each in cases.items():
        for arguments in each:
            error = refused(tmp_path, **arguments)
            assert error.argument == argument
            assert str(error).startswith(f"{argument}=")
    assert not (tmp_path / "private").exists() or not os.listdir(tmp_path / "private")
