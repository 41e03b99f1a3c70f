"""The mutants of the fault suite still fit the code that they change."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.faults.checker import RULES
from tests.faults.mutants import MUTANTS, Mutant
from tests.faults.nemesis import EVERYWHERE
from tests.faults.yard import mutated


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_every_mutant_changes_the_code_that_stands(mutant: Mutant) -> None:
    found = find_spec(mutant.module)
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).read_text()
    assert mutant.applied(source) != source
    compile(mutant.applied(source), found.origin, "exec")
    assert mutant.caught_by <= {rule.__name__ for rule in RULES}
    assert set(mutant.faults) <= set(EVERYWHERE)


def test_a_mutant_whose_place_is_gone_says_so() -> None:
    mutant = MUTANTS["owner is not compared"]
    with pytest.raises(ValueError, match="no longer has"):
        mutant.applied("x = 1\n")


def test_a_mutant_is_what_python_imports_and_nothing_else_is_changed() -> None:
    name = "owner is not compared"
    program = (
        "from batchyard.store.sqlite import claims, reads\n"
        f"print(claims._FENCE.count({MUTANTS[name].new!r}), claims.__file__, reads.__file__)"
    )
    plain = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    told = [
        subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True).stdout
        for env in (plain, mutated(plain, name))
    ]
    assert [line.split()[0] for line in told] == ["0", "1"]
    assert told[0].split()[1:] == told[1].split()[1:]
