"""The meeting of many ranks: what each one asks of rank 0's store, and which ranks it then knows. Ranks are threads here."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import TCPStore

from ijepa_ds.cluster import meeting
from ijepa_ds.cluster.job_store import News, period_of
from ijepa_ds.cluster.judge import Verdict
from ijepa_ds.cluster.meeting import Meeting, meet
from ijepa_ds.errors import NetworkError
from tests.dist.pool import free_port
from tests.waiting import limit

RANKS, A_HOST = 12, 3


@pytest.fixture
def ranks(monkeypatch):
    """A function that lets some of the ranks meet, three a host, and returns what `meet` returns or raises on each."""
    monkeypatch.setenv("WORLD_SIZE", str(RANKS))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setattr(meeting, "this_place", lambda: f"host {int(threading.current_thread().name) // A_HOST}")

    def join(rank: int, timeout: float) -> Meeting | Exception:
        threading.current_thread().name = str(rank)
        try:
            return meet(rank, RANKS, timeout)
        except Exception as error:
            return error

    def run(who, timeout: float = limit(60)) -> list:
        with ThreadPoolExecutor(RANKS) as pool:
            return list(pool.map(lambda rank: join(rank, timeout), who))

    return run


def test_each_rank_knows_its_host_and_rank_0_for_few_requests(ranks, monkeypatch):
    asked, lock = Counter(), threading.Lock()

    def counting(real):
        def counted(store, *values):
            with lock:
                asked[threading.current_thread().name] += 1
            return real(store, *values)

        return counted

    for name in ("add", "compare_set", "get", "multi_get", "set"):
        monkeypatch.setattr(TCPStore, name, counting(getattr(TCPStore, name)))
    found = ranks(range(RANKS))
    assert list(found[0].peers) == list(range(RANKS)) and found[0].elsewhere == A_HOST
    for rank in range(1, RANKS):
        first = rank // A_HOST * A_HOST
        assert list(found[rank].peers) == sorted({0, *range(first, first + A_HOST)})
        assert [peer.rank for peer in found[rank].peers.values()] == list(found[rank].peers)
        assert (found[rank].world_size, found[rank].elsewhere) == (RANKS, A_HOST)
        assert asked[str(rank)] == 5  # report, number, itself; outcome, host; looks at the outcome come on top


@pytest.mark.parametrize("missing", [[7], [3, 4, 5]])
def test_all_use_the_words_of_the_first_that_gives_up(ranks, missing):
    found = ranks([rank for rank in range(RANKS) if rank not in missing], timeout=6.0)
    words = {str(error) for error in found}
    assert len(words) == 1 and all(isinstance(error, NetworkError) for error in found)
    named = "rank 7 of 12 has" if missing == [7] else "ranks 3-5 of 12 have"
    assert f"{named} not come within 6 s (run.start_timeout)" in words.pop()


def test_ranks_look_less_often_where_they_are_many():
    assert [period_of(ranks) for ranks in (2, 512, 513, 1024, 4096, 100_000)] == [1, 1, 2, 2, 8, 8]


def test_news_survive_the_store():
    verdict = News(verdict=Verdict([3], ["rank 3 hangs"], ["b"]))
    assert News.from_text(verdict.to_text()) == verdict and verdict.verdict.places == ["b"]
    assert News.from_text(News().to_text()) == News()
