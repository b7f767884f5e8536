"""What a browser makes of a report's pages: width, contrast, keyboard, print; and nothing runs or is fetched.

Chromium opens the pages as they are, in frames of a page that measures them.  Where there is
no Chromium (Debian: apt-get install chromium) these tests skip.
"""

import html
import json
import re
import shutil
import subprocess
import time

import pytest

from tests import small
from tests.pipelines import processes
from tests.pipelines.test_report import HOSTILE, clustered, make_release, report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

WIDTHS = (1280, 390)
"""Of a desktop's window and of a phone, in CSS pixels."""

MEASURE = """
<!DOCTYPE html><meta charset="utf-8"><body><script>
const pages = PAGES, widths = WIDTHS, found = [];
const channels = text => text.match(/[\\d.]+/g).map(Number);
const light = rgb => rgb.slice(0, 3).map(v => v / 255)
  .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
function ratio(a, b) {
  const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
  return (x + .05) / (y + .05);
}
function behind(element, view) {
  for (; element; element = element.parentElement) {
    const colour = channels(view.getComputedStyle(element).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
}
function measure(frame, name, width) {
  const view = frame.contentWindow, page = frame.contentDocument, low = [];
  const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  let texts = 0, smallest = 99;
  for (let node; node = walker.nextNode();) {
    const element = node.parentElement, style = view.getComputedStyle(element);
    if (!node.data.trim() || ["title", "desc"].includes(element.localName)) continue;
    const drawn = element.namespaceURI.endsWith("svg");
    const colour = channels(drawn ? style.fill : style.color);
    const size = parseFloat(style.fontSize) * (drawn ? element.getScreenCTM().a : 1);
    // Text that is turned has its scale in another entry.
    if (size > 1) smallest = Math.min(smallest, size);
    texts += 1;
    const contrast = ratio(colour, behind(element, view));
    if (contrast < 4.5) low.push([node.data.trim().slice(0, 40), contrast]);
  }
  const focusable = [...page.querySelectorAll("a[href], summary, [tabindex='0']")]
    .filter(element => !element.closest("details:not([open]) > :not(summary)"));
  const outlines = focusable.map(element => {
    element.focus();
    return page.activeElement === element ? view.getComputedStyle(element).outlineStyle : "not focused";
  });
  const wide = [...page.querySelectorAll("main *, header *, footer *")]
    .filter(element => !element.closest(".scroll") && !element.closest("svg *"))
    .filter(element => element.getBoundingClientRect().right > width + 1);
  found.push({
    name, width, texts, smallest, low, outlines,
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    wide: wide.map(element => element.outerHTML.slice(0, 80)),
    dark: view.matchMedia("(prefers-color-scheme: dark)").matches,
    paper: view.getComputedStyle(page.body).backgroundColor,
    scripts: page.scripts.length, images: page.images.length,
    fetched: view.performance.getEntriesByType("resource").map(entry => entry.name),
    policy: Boolean(page.querySelector("meta[http-equiv='Content-Security-Policy']")),
  });
}
async function run() {
  for (const [name, text] of Object.entries(pages)) for (const width of widths) {
    const frame = document.createElement("iframe");
    frame.style.cssText = `width: ${width}px; height: 900px; border: 0`;
    frame.srcdoc = text;
    await new Promise(done => { frame.onload = done; document.body.append(frame); });
    measure(frame, name, width);
    frame.remove();
  }
  const result = document.createElement("pre");
  result.id = "found";
  result.textContent = JSON.stringify(found);
  document.body.replaceChildren(result);
}
run();
</script>
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages of a hostile release, one of many classes, and a private one."""
    folder = tmp_path_factory.mktemp("pages")
    table = clustered(HOSTILE, 900)
    small.write_rows(folder / "rows", table)
    make_release(folder / "few", table, small.small_config(classes=HOSTILE, samples_per_class=100))
    many = tuple(f"class number {number}" for number in range(100))
    config = small.small_config(classes=many, samples_per_class=20, components=1)
    make_release(folder / "many", clustered(many, 3000), config)
    options = ("--private-embeddings", folder / "rows")
    assert report(folder / "few", folder / "few.html", *options) == 0
    assert report(folder / "many", folder / "many.html") == 0
    return {name: folder / f"{name}.html" for name in ("few", "few.private", "many")}


def chromium(folder, done, *options: str) -> tuple[str, str]:
    """What Chromium printed, and its errors, once `done` of what it printed.

    It is ended as soon as its work is done, and begun anew where it does not get so far: a browser without
    a window now and then never ends, whatever it was given, and its helpers keep pipes open.
    """
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless",
        # Its sandbox is not for root, which continuous integration is.
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--virtual-time-budget=20000",
        *options,
    ]
    for number in range(3):
        out, err = folder / f"out-{number}", folder / f"err-{number}"
        with open(out, "wb") as printed, open(err, "wb") as errors:
            profile = f"--user-data-dir={folder}/profile-{number}"
            browser = subprocess.Popen(
                [*command, profile], stdout=printed, stderr=errors, start_new_session=True
            )
            try:
                end = time.monotonic() + 100
                while browser.poll() is None and not done(out.read_text()) and time.monotonic() < end:
                    time.sleep(0.05)
            finally:
                processes.kill(browser)
        if done(out.read_text()):
            break
    return out.read_text(), err.read_text()


@pytest.fixture(scope="module", params=["light", "dark"])
def measured(request, pages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    texts = json.dumps({name: path.read_text() for name, path in pages.items()}).replace("</", "<\\/")
    wrapper = MEASURE.replace("PAGES", texts, 1).replace("WIDTHS", json.dumps(WIDTHS), 1)
    (folder / "measure.html").write_text(wrapper)
    scheme = {"light": 1, "dark": 0}[request.param]
    out, errors = chromium(
        folder,
        lambda printed: printed.rstrip().endswith("</html>"),
        "--dump-dom",
        "--enable-logging=stderr",
        f"--blink-settings=preferredColorScheme={scheme}",
        f"file://{folder}/measure.html",
    )
    found = re.search('<pre id="found">(.*?)</pre>', out, re.DOTALL)
    assert found, errors[-2000:]
    return request.param, json.loads(html.unescape(found[1])), errors


def test_pages_fit_their_window(measured, pages):
    _, found, _ = measured
    assert [(each["name"], each["width"]) for each in found] == [
        (name, width) for name in pages for width in WIDTHS
    ]
    for each in found:
        assert each["overflow"] == 0, each["wide"]
        assert not each["wide"]


def test_text_is_readable_in_light_and_dark(measured):
    scheme, found, _ = measured
    for each in found:
        assert each["dark"] == (scheme == "dark")
        assert each["paper"] == ("rgb(20, 24, 29)" if scheme == "dark" else "rgb(255, 255, 255)")
        assert each["texts"] > 80
        # WCAG 2.2, 1.4.3: contrast of text.
        assert not each["low"]
        assert each["smallest"] > 9


def test_the_keyboard_reaches_whatever_can_be_used_and_shows_where_it_is(measured):
    _, found, _ = measured
    for each in found:
        assert len(each["outlines"]) > 2
        # `focus()` of a script counts as the keyboard's where nothing was clicked.
        assert set(each["outlines"]) == {"solid"}


def test_nothing_runs_and_nothing_is_fetched(measured):
    _, found, errors = measured
    for each in found:
        assert each["policy"]
        assert (each["scripts"], each["images"], each["fetched"]) == (0, 0, [])
    assert "CONSOLE" not in errors


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="pdftotext (poppler-utils) is not installed")
def test_on_paper_details_are_open_and_the_navigation_is_gone(pages, tmp_path):
    pdf = tmp_path / "few.pdf"

    def printed(_):
        return pdf.exists() and pdf.read_bytes().rstrip().endswith(b"%%EOF")

    chromium(tmp_path, printed, "--no-pdf-header-footer", f"--print-to-pdf={pdf}", f"file://{pages['few']}")
    command = ["pdftotext", "-layout", str(pdf), "-"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Privacy in plain words" in text
    assert "teacher_momentum" in text
    assert "Skip to the content" not in text
