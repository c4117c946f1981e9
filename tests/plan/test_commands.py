# SPDX-License-Identifier: Apache-2.0
"""``memvirt plan`` and ``memvirt analyze`` as a user calls them; the reports in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from memvirt.cli.main import app
from memvirt.plan.demo import write_dump
from memvirt.plan.generate import generate
from tests.test_output_file import device

CHROMIUM = shutil.which("chromium")


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fleet = generate(20, days=1, interval=1800)
    lines = ["time,vm,memory_gib,in_use_mib,active_mib"]
    for vm, in_use, active in zip(fleet.vms, fleet.in_use, fleet.active, strict=True):
        for point in range(fleet.points):
            lines.append(
                f"{fleet.start + point * fleet.interval:.0f},{vm.name},{vm.settings.memory >> 18},"
                f"{in_use[point] / 256:.0f},{active[point] / 256:.0f}"
            )
    path = tmp_path_factory.mktemp("plan") / "series.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dumps")
    for number in range(3):
        write_dump(folder / f"vm{number}.raw", number)
    return folder


def test_fits_or_not_is_the_exit_status(series: Path) -> None:
    assert call("plan", series, "--host", "512G").exit_code == 0
    tight = call("plan", series, "--host", "64G", "--what-if", "memory=+448G")
    assert tight.exit_code == 1
    assert "no: the host cannot hold them" in tight.stdout
    assert "Add " in tight.stdout
    assert "or remove" in tight.stdout
    assert re.search(r"what if memory=\+448G\s+yes", tight.stdout)


def test_json_says_what_the_table_says(series: Path) -> None:
    found = json.loads(call("plan", series, "--host", "64G", "--fit", "--json", "-").stdout)
    bound, hosts = found["fewest_hosts"]
    assert bound <= hosts == len(found["hosts"])
    assert len(found["vms"]) == 20
    assert found["verdict"] == "yes"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "much"], "--host"),
        (["--fit"], "add --host"),
        (["--host", "64G", "--grow", "much"], "--grow"),
        (["--host", "64G", "--what-if", "luck=on"], "--what-if"),
        (["--host", "64G", "--compressible", "200%"], "--compressible"),
        (["--host", "64G", "--failover", "1"], "--failover 1"),
        (["--host", "64G", "--measured", "/dev/null"], "--measured"),
        ([], "--host 512G"),
    ],
)
def test_mistakes_are_one_line(series: Path, words: list[str], said: str) -> None:
    result = call("plan", series, *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_an_analysis_feeds_a_plan(series: Path, dumps: Path, tmp_path: Path) -> None:
    shown = call("analyze", dumps, "--json", tmp_path / "a.json", "--pages", tmp_path / "p.parquet")
    assert shown.exit_code == 0
    assert "all three, each page once" in shown.stdout
    assert (tmp_path / "p.parquet").is_file()
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["partners"][0][:2] == ["vm0", "vm1"]  # two of one kind
    plan = call("plan", series, "--host", "64G", "--measured", tmp_path / "a.json")
    assert "page sharing: saves 0% to" in plan.stdout


def test_dumps_that_are_none(tmp_path: Path, dumps: Path) -> None:
    (tmp_path / "odd").write_bytes(b"x" * 5000)
    for words, said in (
        ([tmp_path / "odd"], "not whole 4 KiB pages"),
        ([tmp_path / "missing"], "No such file"),
        ([dumps / "vm0.raw", dumps / "vm0.raw"], "named twice"),
        ([dumps, "--scratch", tmp_path / "odd"], "odd: is no folder; make it"),
        ([], "name dumps, or live VMs"),
        (["--vm", "nobody-by-this-name"], "nobody-by-this-name"),
        (["--vm", "nobody-by-this-name", "--rate", "0"], "--rate"),
    ):
        result = call("analyze", *words)
        assert result.exit_code == 2
        assert said in result.stderr


@pytest.mark.parametrize("option", ["--pages", "--json", "--html"])
def test_a_device_is_written_in_place(dumps: Path, tmp_path: Path, option: str) -> None:
    node = device(tmp_path / "null", 3)
    assert call("analyze", dumps, "--workers", "1", option, node).exit_code == 0
    assert stat.S_ISCHR(node.stat().st_mode)
    assert list(tmp_path.iterdir()) == [node]


def test_what_cannot_be_written_is_said_before_the_work(dumps: Path, series: Path) -> None:
    dump = dumps / "vm0.raw"
    before = dump.read_bytes()
    for words, said in (
        (["analyze", dumps, "--pages", "/nowhere/x"], "the directory /nowhere does not exist"),
        (["analyze", dumps, "--html", dump], "both"),
        (["plan", series, "--host", "64G", "--json", dumps], "is a directory"),
    ):
        result = call(*words)
        assert result.exit_code == 2
        assert said in result.stderr
    assert dump.read_bytes() == before


class Check(HTMLParser):
    """Every element is closed, and nothing is loaded from elsewhere."""

    VOID = frozenset({"meta", "link", "line", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        for name, value in attrs:
            assert name not in ("src", "srcset", "xlink:href")
            assert name != "href" or (value or "").startswith("data:")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def reports(series: Path, dumps: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("reports")
    call("plan", series, "--host", "64G", "--what-if", "sharing=on", "--html", folder / "plan.html")
    call("analyze", dumps, "--html", folder / "analysis.html")
    return [folder / "plan.html", folder / "analysis.html"]


@pytest.mark.parametrize("number", [0, 1])
def test_reports_are_whole_and_self_contained(reports: list[Path], number: int) -> None:
    check = Check()
    check.feed(reports[number].read_text())
    assert not check.open
    assert {"svg", "table"} <= check.seen
    assert "script" not in check.seen


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("number", [0, 1])
def test_reports_in_a_browser(reports: list[Path], number: int, tmp_path: Path) -> None:
    picture = tmp_path / "report.png"
    shown = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,1600",
            f"--screenshot={picture}", reports[number].as_uri(),
        ],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert picture.stat().st_size > 20_000, shown.stderr
    assert "CONSOLE" not in shown.stderr


def test_names_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "evil.csv"
    path.write_text("vm,memory_gib,in_use_gib,active_gib\n<script>alert(1)</script>,64,64,1\n")
    call("plan", path, "--host", "8G", "--html", tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
