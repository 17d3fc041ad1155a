"""The decisions of the watch, without processes: who is lost, who hangs, who reports it."""

import pytest

from ijepa_ds.cluster.judge import EVAL, READ, SCAN, SILENCE, STORAGE, WRITE, Hang, Lost, Role, is_overdue, judge, role, words
from ijepa_ds.cluster.peers import Peer, Report, describe_hosts, spell_ranks
from ijepa_ds.cluster.processes import Process

NOW, TIMEOUT = 1000.0, 60.0


def job(*beats: int, places: str = "", communicating: tuple[int, ...] = (), silent: tuple[int, ...] = ()) -> list[Peer]:
    """Ranks that made `beats`, at places with one letter each (default: all at a)."""
    peers = []
    for rank, (done, place) in enumerate(zip(beats, places or "a" * len(beats), strict=True)):
        heard = NOW - SILENCE - 1 if rank in silent else NOW - 1
        report = Report(7, done, "forward", True, rank in communicating)
        peers.append(Peer(rank, f"host-{place}", place, Process(100 + rank, 1), heard, report))
    return peers


def verdict(peers: list[Peer], idle: float = TIMEOUT + 1, stopped: tuple[int, ...] = (), timeout: float = TIMEOUT) -> object:
    return judge(peers, place="a", stopped=stopped, now=NOW, progress=NOW - idle, timeout=timeout)


def test_a_job_that_makes_progress_goes_on() -> None:
    assert verdict(job(3, 4), idle=TIMEOUT) is None
    assert verdict(job(3, 3), idle=9999, timeout=0) is None  # run.hang_timeout=0
    assert verdict(job(3, 3, silent=(1,)), idle=1) is None  # its process is visible here: silence alone is no fault
    assert verdict(job(3, 3), idle=1, stopped=(1,)) is None  # it may be continued in time


@pytest.mark.parametrize("phase", [READ, SCAN, STORAGE, WRITE, EVAL])
def test_a_rank_that_gets_on_with_something_long_is_waited_for(phase: str) -> None:
    peers = job(3, 3, communicating=(0,))
    peers[1].report = Report(7, 90, phase, overdue=False)
    assert verdict(peers, idle=100 * TIMEOUT) is None
    peers[1].report = Report(7, 90, phase, overdue=True)  # it has stopped to get on
    assert verdict(peers) == Hang([0])
    peers[1].report = Report(7, 90, "forward", overdue=False)
    assert verdict(peers) == Hang([0])


@pytest.mark.parametrize("idle", [1.0, TIMEOUT + 1])
def test_a_silent_rank_on_another_host_is_lost_at_once(idle: float) -> None:
    assert verdict(job(3, 3, 3, 3, places="aabb", silent=(1, 3)), idle=idle) == Lost([3])


def test_inactive_ranks_hang_before_ranks_that_are_behind() -> None:
    assert verdict(job(5, 9, 9, silent=(2,)), stopped=(1,)) == Hang([1, 2])


def test_the_rank_with_the_fewest_beats_hangs() -> None:
    assert verdict(job(9, 8, 9, places="abb", communicating=(0, 1, 2))) == Hang([1])


def test_of_equals_the_one_outside_a_collective_hangs() -> None:
    assert verdict(job(9, 9, 9, communicating=(0, 2))) == Hang([1])
    assert verdict(job(9, 9, communicating=(0, 1))) == Hang([])  # nothing tells them apart
    assert verdict(job(9, 8, 8, communicating=(0, 1, 2))) == Hang([1, 2])
    assert verdict(job(8, 9, 9, communicating=(0,))) == Hang([0])  # the others may wait elsewhere


def test_the_limits_are_exact() -> None:
    assert not is_overdue(NOW, NOW - TIMEOUT, TIMEOUT) and is_overdue(NOW, NOW - TIMEOUT - 0.01, TIMEOUT)
    peers = job(1, 1, places="ab")
    peers[1].heard = NOW - SILENCE
    assert verdict(peers, idle=1) is None


@pytest.mark.parametrize(
    ("places", "hanging", "expected"),
    [
        ("aaa", [1], "RSB"),
        ("aaa", [0], "SRB"),
        ("aabb", [1], "RSRB"),  # on a host without a suspect, one rank finds nothing to print and leaves
        ("aabb", [2, 3], "RBRS"),  # where all hang, one speaks for all
        ("aabb", [], "RBRB"),
        ("a", [0], "R"),
    ],
)
def test_one_rank_a_host_reports_a_hang(places: str, hanging: list[int], expected: str) -> None:
    peers = job(*[1] * len(places), places=places)
    roles = [role(peers, rank, hanging) for rank in range(len(places))]
    assert roles == [{"R": Role.REPORTER, "S": Role.SUSPECT, "B": Role.BYSTANDER}[letter] for letter in expected]
    assert Role.SUSPECT.value > Role.BYSTANDER.value > 1.0  # a suspect lives until its stack is printed


def test_a_report_that_is_read_again_is_not_news() -> None:
    (peer,) = job(1)
    report = Report(8, 1, "backward", False, False)
    peer.hear(Report.from_text(report.to_text()), 5.0)
    peer.hear(report, 6.0)
    assert peer.report == report and peer.heard == 5.0
    peer.hear(report._replace(ticks=9), 7.0)
    assert peer.heard == 7.0


def test_hosts_are_listed_with_their_ranks() -> None:
    assert describe_hosts(job(1, 1, 1, 1, places="aaba")) == "host-a: ranks 0, 1, 3; host-b: rank 2"
    assert describe_hosts(job(1, 1, 1)) == "host-a: ranks 0-2"


def test_ranks_are_spelled_shortly() -> None:
    assert [spell_ranks(ranks) for ranks in ([3], [3, 4], [0, 1, 3])] == ["rank 3", "ranks 3-4", "ranks 0, 1, 3"]
    assert spell_ranks([*range(777), *range(778, 1024)]) == "ranks 0-776, 778-1023"
    assert spell_ranks(list(range(0, 4096, 2))) == f"ranks {', '.join(map(str, range(0, 32, 2)))} and 2032 more"


def told(*where: tuple[int, str, int, float, bool], places: str = "") -> list[Peer]:
    """Ranks with (beats, phase, step, seconds since the last sign of life, in a collective), all of them overdue."""
    peers = job(*[beats for beats, *_ in where], places=places)
    for peer, (beats, phase, step, age, communicates) in zip(peers, where, strict=True):
        peer.report = Report(7, beats, phase, True, communicates, step, age)
    return peers


LIMIT = "run.hang_timeout: 900 s"


def test_a_writer_that_hangs_is_named_and_not_the_ranks_that_wait_for_it() -> None:
    waits = (50, "after report", 20, 903.0, True)
    peers = told(waits, (50, WRITE, 20, 904.4, False), waits, waits)
    assert verdict(peers) == Hang([1])
    assert words(peers, [1], LIMIT) == [
        "rank 1 on host host-a (process 101) hangs: no progress for 904 s (run.hang_timeout: 900 s) at step 20, "
        "writing a checkpoint",
        "the others: ranks 0, 2, 3 at step 20, after report, in a collective",
    ]


def test_a_loader_that_is_stuck_is_named_after_an_uneven_save() -> None:
    """Signs of life while a checkpoint is written are no beats, of which rank 2 would have many."""
    waits = (61, "after forward", 21, 901.0, True)
    peers = told(waits, waits, (59, "waiting for images", 21, 902.0, False), waits)
    assert verdict(peers) == Hang([2])
    first, others = words(peers, [2], LIMIT)
    assert first.endswith("hangs: no progress for 902 s (run.hang_timeout: 900 s) at step 21, waiting for images")
    assert others == "the others: ranks 0, 1, 3 at step 21, after forward, in a collective"


def test_nobody_is_named_when_all_wait_in_the_same_collective() -> None:
    peers = told(*[(61, "after backward", 21, 901.0, True)] * 6, places="aabbcc")
    assert verdict(peers) == Hang([])
    first, where = words(peers, [], LIMIT)
    assert first.startswith("the job hangs (run.hang_timeout: 900 s): every rank waits for the others, and none is behind. ")
    assert where == "ranks 0-5 at step 21, after backward, in a collective"


def test_a_verdict_on_hundreds_of_ranks_stays_short() -> None:
    peers = told(*[(5 + rank % 40, f"after part {rank % 40}", 3, 901.0, False) for rank in range(400)])
    lines = words(peers, range(200), LIMIT)
    assert len(lines) == 10 and lines[8] == "192 more ranks hang" and lines[9].endswith("; 32 more groups")
