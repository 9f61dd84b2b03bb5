"""report.html as Chromium shows it: both themes, a desktop and a phone."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from evidence.readme_table import kept_run
from report.rendered import render_page

from selectbench.launch.publish import COMMAND, read_run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--hide-scrollbars")  # fmt: skip
SCHEME = {"dark": "0", "light": "1"}
PROBE = """<script>addEventListener('load', () => {
  const frame = document.querySelector('iframe'), page = frame.contentDocument;
  const head = [...page.querySelectorAll('th button')].find(b => b.textContent.includes('tokens/s'));
  head.click();
  const first = page.querySelector('.sortable tbody tr th').textContent;
  const words = [...page.querySelectorAll('svg.picture text')].filter(t => t.textContent);
  const table = page.querySelector('.sortable'), box = table.parentElement;
  const compared = [...table.tHead.rows[0].cells].find(c => c.textContent.includes('against the baseline'));
  // A label that stands upright may be one narrow letter.
  const small = words.map(t => t.getBoundingClientRect()).map(r => Math.max(r.width, r.height));
  document.body.dataset.found = JSON.stringify({
    scroll: page.documentElement.scrollWidth, client: page.documentElement.clientWidth, first,
    table: box.scrollWidth, box: box.clientWidth, compared: compared.getBoundingClientRect().right,
    edge: box.getBoundingClientRect().right,
    sort: head.parentElement.getAttribute('aria-sort'), smallest: Math.min(...small)});
});</script>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page")
    stored = read_run(kept_run("precision"))
    text = render_page(stored.suite, stored.ranking(), stored.records, stored.environment, COMMAND)
    (path / "page.html").write_text(text)
    for width in (390, 1100, 1280):
        frame = f'<iframe src="page.html" style="width:{width}px;height:2000px;border:0"></iframe>'
        (path / f"frame{width}.html").write_text(f'<body style="margin:0">{frame}{PROBE}</body>')
    return path


def chromium(folder: Path, *arguments: str) -> str:
    assert CHROMIUM
    command = [CHROMIUM, *QUIET, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def pixels(path: Path) -> tuple[int, int, list[bytes]]:
    """Width, bytes per pixel and rows of an 8-bit PNG, unfiltered."""
    data, place, body = path.read_bytes(), 8, b""
    width = channels = 0
    while place < len(data):
        (length,), kind = struct.unpack(">I", data[place : place + 4]), data[place + 4 : place + 8]
        chunk = data[place + 8 : place + 8 + length]
        if kind == b"IHDR":
            width, channels = struct.unpack(">I", chunk[:4])[0], {2: 3, 6: 4}[chunk[9]]
        body += chunk if kind == b"IDAT" else b""
        place += length + 12
    return width, channels, unfiltered(zlib.decompress(body), width * channels, channels)


def unfiltered(raw: bytes, stride: int, step: int) -> list[bytes]:
    rows, above = [], bytearray(stride)
    for start in range(0, len(raw), stride + 1):
        kind, row = raw[start], bytearray(raw[start + 1 : start + 1 + stride])
        for i in range(stride):
            left, up = row[i - step] if i >= step else 0, above[i]
            corner = above[i - step] if i >= step else 0
            row[i] = (row[i] + (0, left, up, (left + up) // 2, paeth(left, up, corner))[kind]) & 255
        rows.append(bytes(row))
        above = row
    return rows


def paeth(left: int, up: int, corner: int) -> int:
    guess = left + up - corner
    return min((left, up, corner), key=lambda value: abs(guess - value))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_themes_at_both_widths(folder: Path, theme: str, width: int) -> None:
    shot = folder / f"{theme}{width}.png"
    name = "page" if width == 1280 else "frame390"
    chromium(folder, f"--blink-settings=preferredColorScheme={SCHEME[theme]}", f"--screenshot={shot}",
             f"--window-size={max(width, 500)},700", (folder / f"{name}.html").as_uri())  # fmt: skip
    _, channels, rows = pixels(shot)
    brightness = [sum(row[i : i + 3]) / 3 for row in rows[::7] for i in range(0, width * channels, 7 * channels)]
    ground = sorted(brightness)[len(brightness) // 2]
    assert ground > 230 if theme == "light" else ground < 50
    assert max(brightness) - min(brightness) > 100  # there is something to read


@pytest.mark.parametrize("width", [1280, 1100, 390])
def test_nothing_runs_over_the_edge_and_columns_sort(folder: Path, width: int) -> None:
    found = chromium(folder, "--allow-file-access-from-files", "--virtual-time-budget=3000", "--dump-dom",
                     f"--window-size={max(width, 500)},2000", (folder / f"frame{width}.html").as_uri())  # fmt: skip
    told = re.search(r'data-found="([^"]*)"', found)
    assert told, found[-500:]
    facts = dict(re.findall(r"(\w+)&quot;:(?:&quot;)?([^,&}]+)", told[1]))
    assert int(facts["scroll"]) <= int(facts["client"]) == width
    assert width < 1100 or int(facts["table"]) <= int(facts["box"])
    assert float(facts["compared"]) <= float(facts["edge"])
    assert facts["sort"] == "ascending"
    assert facts["first"].startswith("fp16_mixed")
    assert float(facts["smallest"]) >= 9
