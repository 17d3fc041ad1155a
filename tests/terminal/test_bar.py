"""Progress of long steps: rates and remaining time, rows of any width, lines in files."""

import io
import logging

import pytest

from ijepa_ds import terminal
from ijepa_ds.terminal import Bar, duration, screen, track
from ijepa_ds.terminal.drawn import row


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


def step(clock: list[float], **more: object) -> Bar:
    return Bar("index images", 10_000, "images", clock=lambda: clock[0], **more)  # type: ignore[arg-type]


def test_rate_and_remaining_time(clock: list[float]) -> None:
    bar = step(clock, show=False)
    assert bar.text() == "index images: 0/10,000 images"
    shown = step(clock)
    clock[0] = 10.0
    shown.update(1000)
    assert shown.text() == "index images: 1,000/10,000 images, 100/s, 2 min left"
    shown.note = "loss 0.1"
    assert shown.text().endswith(", loss 0.1")


def test_the_rate_is_that_of_the_last_minute(clock: list[float]) -> None:
    bar = step(clock)
    for _ in range(100):
        clock[0] += 1
        bar.update(1)
    for _ in range(100):
        clock[0] += 1
        bar.update(10)
    assert "10/s" in bar.text() and "15 min left" in bar.text(), bar.text()


def test_a_share_gives_the_remaining_time_where_the_number_is_unknown(clock: list[float]) -> None:
    bar = Bar("index x", 0, "images", share=lambda: 0.25, clock=lambda: clock[0])
    clock[0] = 3600.0
    bar.update(500)
    assert bar.text() == "index x: 500 images, 7.2 s each, 3.0 h left" and bar.part() == 0.25


def test_parts_of_an_earlier_process_are_no_speed(clock: list[float]) -> None:
    bar = step(clock, done=9_000)
    clock[0] = 10.0
    bar.update(100)
    assert bar.text() == "index images: 9,100/10,000 images, 10/s, 2 min left"


def test_lines_in_a_pipe(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with step(clock) as bar:
        for _ in range(100):
            clock[0] += 0.5
            bar.update(100)
    out, err = capsys.readouterr()
    assert out == "" and "\r" not in err and "\x1b" not in err
    assert err.splitlines() == [
        "index images: 3,000/10,000 images, 200/s, 35 s left",
        "index images: 6,000/10,000 images, 200/s, 20 s left",
        "index images: 9,000/10,000 images, 200/s, 5.0 s left",
        "index images: 10,000/10,000 images in 50 s",
    ]


def test_a_short_step_leaves_nothing_and_one_that_ends_early_says_where(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(track(range(3), "short", "parts")) == [0, 1, 2]
    assert list(track([1], None, "parts")) == [1]
    assert capsys.readouterr().err == ""
    with pytest.raises(KeyError), step(clock) as bar:
        clock[0] = 7.0
        bar.update(70)
        raise KeyError
    assert capsys.readouterr().err == "index images: stopped at 70/10,000 images in 7.0 s\n"


@pytest.mark.parametrize("name", ["index images", "index /a/very/long/path/of/images/in/a/folder/of/theirs", "索引 図" * 9])
@pytest.mark.parametrize("width", range(20, 160, 7))
def test_a_row_fits_and_always_tells_the_share(name: str, width: int, clock: list[float]) -> None:
    from rich.cells import cell_len

    bar = Bar(name, 1_281_167, "images", clock=lambda: clock[0])
    clock[0] = 60.0
    bar.update(250_000)
    bar.note = "loss 0.1234, 345 images/s"
    what, columns, after = row(bar, width)
    assert cell_len(f"{what} ") + columns + bool(columns) + cell_len(after) <= width
    assert " 20%" in after and what
    if width >= 120 and name == "index images":
        assert after == " 20%  4 min left  250,000/1,281,167 images  4,167/s  loss 0.1234, 345 images/s" and columns > 5


def test_details_go_to_the_copy_only_and_messages_to_both(monkeypatch: pytest.MonkeyPatch) -> None:
    copy, out, err = [], io.StringIO(), io.StringIO()
    monkeypatch.setattr(screen, "screen", screen.Screen())
    screen.route(out, err, copy.append)
    log = logging.Logger("ijepa_ds.test", logging.DEBUG)
    log.addHandler(screen._Lines())
    log.debug("a detail")
    log.info("a message of %d parts", 2)
    log.warning("look out")
    log.error("lost")
    terminal.error("ijepa-ds x", "the reason")
    messages, last = ["a message of 2 parts\n", "warning: look out\n", "error: lost\n"], "ijepa-ds x: the reason\n"
    assert copy == ["a detail\n", *messages, last]
    assert out.getvalue() == "".join(messages) and err.getvalue() == last


def test_durations() -> None:
    assert [duration(s) for s in (0.04, 9.96, 89, 90, 5399, 5400)] == ["0.0 s", "10.0 s", "89 s", "2 min", "90 min", "1.5 h"]
