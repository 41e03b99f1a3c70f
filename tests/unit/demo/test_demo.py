"""What the demo reads and counts."""

from pathlib import Path

from batchyard.configuration import load_settings
from batchyard.demo.docstrings import collect, passages_of, standard_library
from batchyard.demo.measures import batches_of
from batchyard.demo.running import MODEL, configuration

SOURCE = '''
"""The module's first paragraph, long enough to be kept here.

>>> print("an interpreter session is not prose, however long it gets")

    A second   paragraph of the module,
    which is joined from two lines.
"""

def public():
    """What the public function does, told in a whole sentence."""

def _private():
    """What the private function does, told in a whole sentence."""

class Thing:
    def method(self):
        """What the method of the thing does, told in a whole sentence."""
        def inner():
            """What the inner function does, told in a whole sentence."""
'''


def test_paragraphs_are_named_by_what_they_document(tmp_path: Path) -> None:
    path = tmp_path / "things.py"
    path.write_text(SOURCE)

    found = list(passages_of(path, name="things"))

    assert [passage.where for passage in found] == ["things", "things", "things.public", "things.Thing.method"]
    assert found[1].text == "A second paragraph of the module, which is joined from two lines."


def test_a_file_that_is_no_python_gives_nothing(tmp_path: Path) -> None:
    path = tmp_path / "things.py"
    path.write_text("def (:")

    assert list(passages_of(path, name="things")) == []


def test_the_same_paragraphs_are_drawn_every_time() -> None:
    folder = standard_library() / "email"

    first, second = collect(50, folder=folder), collect(50, folder=folder)

    assert first == second
    assert len({passage.text for passage in first}) == 50


def test_the_demo_writes_a_valid_configuration(tmp_path: Path) -> None:
    path = tmp_path / "batchyard.toml"
    path.write_text(configuration(consumers=1))

    settings = load_settings(path, environ={})

    assert settings.models[0].qualified == f"{MODEL}@1"
    assert settings.pools[0].max == 1


def test_batches_are_counted_over_all_consumers() -> None:
    text = """\
# HELP batchyard_batches_total Forward passes
# TYPE batchyard_batches_total counter
batchyard_batches_total{consumer="a",model="minilm@1",pool="local"} 3.0
batchyard_batches_total{consumer="b",model="minilm@1",pool="local"} 1.0
batchyard_batches_total{consumer="b",model="other@1",pool="local"} 9.0
batchyard_batch_size_jobs_sum{consumer="a",model="minilm@1",pool="local"} 100.0
batchyard_batch_cost_total{consumer="a",kind="useful",model="minilm@1",pool="local"} 750.0
batchyard_batch_cost_total{consumer="a",kind="padding",model="minilm@1",pool="local"} 250.0
batchyard_forward_seconds_sum{consumer="a",model="minilm@1",pool="local"} 1.5
batchyard_leader 1.0
"""
    found = batches_of(text, model="minilm@1")

    assert (found.batches, found.jobs, found.mean_jobs, found.padding) == (4, 100, 25.0, 0.25)
    assert batches_of(text, model="absent@1").padding == 0.0
