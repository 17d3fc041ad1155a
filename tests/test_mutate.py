"""The list of mutations fits the code, and the runner tells what a test notices from what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import mutate
from tests.mutations import EXPLAINED, MUTATIONS, Mutation

CODE = "def double(x):\n    return 2 * x\n"
TEST = "from code_under_test import double\n\n\ndef test_double():\n    assert double(2) == 4\n"


def test_every_mutation_can_be_applied() -> None:
    problems = [problem for mutation in MUTATIONS if (problem := mutate.problem_of(mutation, mutate.REPOSITORY))]
    assert not problems and len(MUTATIONS) >= 80
    assert len({(m.file, m.old, m.new) for m in MUTATIONS}) == len(MUTATIONS)
    assert len(EXPLAINED) <= 3 and EXPLAINED.keys() <= {(m.file, m.old) for m in MUTATIONS}


def test_the_tests_of_every_mutation_exist() -> None:
    for mutation in MUTATIONS:
        for word in mutation.tests.split(" -")[0].split():
            assert (mutate.REPOSITORY / word.partition("::")[0]).exists(), mutation


@pytest.mark.parametrize(
    ("new", "tests", "expected"),
    [
        ("3 * x", "test_code.py", "failed"),
        ("x * 2", "test_code.py", "SURVIVED"),
        ("x ** 2", "test_code.py", "SURVIVED"),  # 2 ** 2 is 4 as well
        ("3 * x", "test_missing.py", "BROKEN"),
    ],
)
def test_verdicts(new: str, tests: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "code_under_test.py").write_text(CODE)
    (tmp_path / "test_code.py").write_text(TEST)
    result = mutate.try_mutation(tmp_path, Mutation("code_under_test.py", "2 * x", new, tests))
    assert mutate.verdict(result) == expected, result.output
    assert (tmp_path / "code_under_test.py").read_text() == CODE


def test_a_mutation_that_no_longer_fits_is_named(tmp_path: Path) -> None:
    (tmp_path / "code_under_test.py").write_text(CODE)
    assert mutate.problem_of(Mutation("code_under_test.py", "2 * x", "3 * x", ""), tmp_path) is None
    for old, count in (("4 * x", 0), ("x", 2)):
        problem = mutate.problem_of(Mutation("code_under_test.py", old, "y", ""), tmp_path)
        assert problem and f"occurs {count} times in code_under_test.py" in problem
