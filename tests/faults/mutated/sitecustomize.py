"""Python imports this at its start where the folder stands in PYTHONPATH: it changes the product's code as it is read.

The mutant is named by FAULTS_MUTANT. Nothing in the product knows of it.
"""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.faults.mutants import MUTANTS, Mutant


class _Loader(SourceFileLoader):
    """Compiles changed source, past any cache of bytecode."""

    mutant: Mutant

    def get_code(self, fullname: str) -> CodeType:
        source = self.mutant.applied(Path(self.path).read_text())
        return compile(source, self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    """Finds the one module that is changed."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        spec = PathFinder.find_spec(fullname, path)  # type: ignore[arg-type]
        assert spec is not None
        assert spec.origin is not None
        spec.loader = loader = _Loader(fullname, spec.origin)
        loader.mutant = self._mutant
        return spec


sys.meta_path.insert(0, _Finder(MUTANTS[os.environ["FAULTS_MUTANT"]]))
