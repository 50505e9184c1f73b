from __future__ import annotations

import json
import os
import pty
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import streamshard as ss
from streamshard.cli import show
from tests.cli.command import COMMAND, environment
from tests.pack.sources import class_folders, files_of


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 kB"),
        (1_499_999, "1.5 MB"),
        (999_940, "999.9 kB"),
        (999_960, "1.0 MB"),
        (256_000_000, "256.0 MB"),
        (3 * 10**9, "3.0 GB"),
        (2 * 10**12, "2.0 TB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_bytes_are_shown_in_decimal_units(count: int, text: str) -> None:
    assert show.format_bytes(count) == text


def test_without_a_terminal_progress_is_a_line_now_and_then_on_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with show.progress("packing") as report:
        for second in range(21):
            now = 100.0 + second
            report(second * 10, 210, second * 1_000_000)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"packing: {samples} of 210 samples, 10 samples/s, 1.0 MB/s" for samples in (100, 200)
    ]


def test_progress_without_a_known_total_names_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "_LINE_SECONDS", 0.0)
    with show.progress("indexing") as report:
        report(7, None, 2_000)
    err = capsys.readouterr().err
    assert err.startswith("indexing: 7 samples, ")


def test_a_short_job_without_a_terminal_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with show.progress("packing") as report:
        report(1, 1, 1)
    assert capsys.readouterr() == ("", "")


@dataclass
class Found:
    samples: int
    notes: list[str]


def test_a_result_is_lines_or_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    found = Found(3, ["a\nb", "ü"])
    show.result(found, ["three samples", "found"], as_json=False)
    assert capsys.readouterr().out == "three samples\nfound\n"
    show.result(found, ["three samples"], as_json=True)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out) == {"samples": 3, "notes": ["a\nb", "ü"]}


def test_on_a_terminal_there_is_a_bar_which_goes_away(tmp_path: Path) -> None:
    class_folders(tmp_path / "src", ["ant"], each=10)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "pack", "images", "src", "dst", "--json"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        cwd=tmp_path,
        env=environment(TERM="xterm"),
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 4096)
        except OSError:  # what a pseudo-terminal says when the other side is closed
            break
    os.close(ours)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"packing images" in seen
    assert b"10/10" in seen
    assert seen.rstrip().endswith(b"\x1b[2K")  # the line of the bar is wiped
    assert json.loads(out)["samples"] == 10
    ss.pack_images(tmp_path / "src", tmp_path / "quiet")
    assert files_of(tmp_path / "dst") == files_of(tmp_path / "quiet")
