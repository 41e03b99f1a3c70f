"""The command, as a user runs it, with everything that `batchyard up` starts."""

import json
import os
import pty
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import psutil
import pytest

from batchyard import Client, WaitTimeout
from batchyard.jobs import State
from batchyard.store.open import open_store
from tests.services.up import CONFIG, Up, command, environment, eventually, running_up

FROZEN = """
import ctypes
from batchyard.model import Model

class Frozen(Model):
    def forward(self, items):
        # Without giving up the interpreter's lock: no other thread runs, and no signal is heard.
        ctypes.PyDLL(None).sleep(60)
        return items
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("up")) as running:
        yield running


def echo(value: object) -> str:
    return json.dumps({"do": "echo", "value": value})


# --- submit ---


def test_submit_prints_the_result(up: Up) -> None:
    done = up.run("submit", "moody", echo([1, "ä"]))

    assert (done.returncode, json.loads(done.stdout)) == (0, [1, "ä"])
    assert done.stderr.startswith("job ")


def test_submit_reads_standard_input_and_takes_what_is_no_json_as_text(up: Up) -> None:
    assert json.loads(up.run("submit", "lengths", "-", text="not json").stdout) == {"length": 8}
    assert json.loads(up.run("submit", "lengths", "123", "--text").stdout) == {"length": 3}


def test_submit_without_waiting_prints_the_id(up: Up) -> None:
    done = up.run("submit", "moody", echo(1), "--no-wait", "--priority", "9", "--label", "a", "--params", '{"x": 1}')

    assert done.returncode == 0
    with Client(up.url) as client:
        job = client.get(done.stdout.strip(), wait=30)
        assert (job.data.priority, job.data.labels) == (9, ["a"])


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["submit", "moody", '{"do": "invalid"}'], 1, "failed: as asked"),
        (["submit", "moodi", "1"], 1, 'did you mean "moody"'),
        (["submit", "moody", "1", "--priority", "12"], 2, "0<=x<=9"),
        (["submit", "moody", "1", "--params", "[]"], 2, "must be a JSON object"),
        (["submit", "moody", "1", "--url", "ftp://x"], 1, "is not one of HTTP"),
    ],
)
def test_what_goes_wrong_is_said_in_a_line(up: Up, arguments: list[str], status: int, said: str) -> None:
    done = up.run(*arguments)

    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr


# --- redrive ---


def test_dead_jobs_are_redriven(up: Up) -> None:
    with Client(up.url) as client:
        first, second = client.submit_many("moody", [{"do": "raise"}] * 2, labels=["cli"])
        client.lookup([first, second], wait=30)

        foreseen = up.run("redrive", "--label", "cli", "--error", "model_error", "--dry-run")
        assert foreseen.returncode == 0, foreseen.stderr
        assert first.id in foreseen.stdout
        assert "model_error: ValueError: as asked" in foreseen.stdout
        assert "2 would be redriven, 0 redriven before, 0 refused" in foreseen.stderr
        assert first.refresh().data.redriven_as is None

        done = up.run("redrive", first.id, "--to", "moody@1", "--json")
        [told] = json.loads(done.stdout)
        assert (done.returncode, told["id"]) == (0, first.id)
        assert client.get(told["redriven_as"]).data.redrive_of == first.id

        rest = up.run("redrive", "--label", "cli", "--finished-from", "2020-01-01", "--ended", "failed")
        lines = {line.split()[0]: line for line in rest.stdout.splitlines()}
        assert "redriven before" in lines[first.id]
        assert "redriven before" not in lines[second.id]
        assert "1 redriven before" in rest.stderr
        assert second.refresh().data.redriven_as is not None

        client.lookup([told["redriven_as"]], wait=30)
        refused = up.run("redrive", first.id, "0" * 16)
        assert (refused.returncode, "there is no job" in refused.stdout) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say which jobs"),
        (["0" * 16, "--label", "l"], "say which jobs"),
        (["--finished-from", "soon"], "is no time"),
        (["--ended", "succeeded"], "is not one of"),
    ],
)
def test_a_redrive_of_nothing_in_particular_is_a_mistake(up: Up, arguments: list[str], said: str) -> None:
    done = up.run("redrive", *arguments)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


# --- map ---


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """20,000 inputs, of which a hundred are invalid."""
    source = tmp_path / "in.jsonl"
    lines = ('{"do": "invalid"}' if index % 200 == 7 else echo(index) for index in range(20_000))
    source.write_text("\n".join(lines) + "\n")
    return source, tmp_path / "out.jsonl"


def check_results(out: Path, *, inputs: int = 20_000) -> None:
    indexes = set()
    for line in out.read_text().splitlines():
        read = json.loads(line)
        assert read["index"] not in indexes
        indexes.add(read["index"])
        if read["index"] % 200 == 7:
            assert read["error"] == {"code": "invalid_input", "message": "as asked"}
        else:
            assert read["result"] == read["index"]
    assert indexes == set(range(inputs))


def test_map_writes_a_line_for_every_input(up: Up, files: tuple[Path, Path]) -> None:
    source, out = files

    done = up.run("map", "moody", str(source), "-o", str(out))

    assert done.returncode == 3, done.stderr
    assert "100 of them errors" in done.stderr
    check_results(out)

    again = up.run("map", "moody", str(source), "-o", str(out))
    assert again.returncode == 3
    assert "is complete" in again.stderr
    check_results(out)


def test_map_keeps_the_order_where_asked(up: Up, files: tuple[Path, Path]) -> None:
    source, out = files

    up.run("map", "moody", str(source), "-o", str(out), "--ordered")

    assert [json.loads(line)["index"] for line in out.read_text().splitlines()] == list(range(20_000))


@pytest.mark.parametrize("ordered", [False, True])
def test_an_interrupted_map_goes_on_and_writes_nothing_twice(
    up: Up, files: tuple[Path, Path], *, ordered: bool
) -> None:
    """Ctrl-C, kill -9, a torn line and a lost progress of the last second: then once more to the end."""
    source, out = files
    arguments = ["map", "moody", str(source), "-o", str(out), *(["--ordered"] if ordered else [])]

    for number in (signal.SIGINT, signal.SIGKILL):
        before = out.stat().st_size if out.exists() else 0
        process = subprocess.Popen(
            command(*arguments), env=environment(BATCHYARD_URL=up.url), stderr=subprocess.DEVNULL, cwd=up.folder
        )
        eventually(lambda before=before: out.exists() and out.stat().st_size > before)  # type: ignore[misc]
        process.send_signal(number)
        assert process.wait(20) in {130, -signal.SIGKILL, 3}
    with out.open("ab") as file:
        file.write(b'{"index":19')

    done = up.run(*arguments)

    assert done.returncode == 3, done.stderr
    check_results(out)


def test_map_refuses_what_would_mix_runs(up: Up, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(echo(1) + "\n")
    assert up.run("map", "moody", str(source), "-o", str(out)).returncode == 0

    source.write_text(echo(2) + "\n")
    other = up.run("map", "moody", str(source), "-o", str(out))
    assert (other.returncode, "other inputs" in other.stderr) == (1, True)
    assert "other inputs" in up.run("map", "moody", "-", "-o", str(out), text=echo(3)).stderr

    strange = tmp_path / "strange.jsonl"
    strange.write_text("precious\n")
    assert up.run("map", "moody", str(source), "-o", str(strange)).returncode == 1
    assert strange.read_text() == "precious\n"


def test_map_notices_a_change_anywhere_in_a_large_file(up: Up, tmp_path: Path) -> None:
    source, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    lines = [f"{n:04}" * 300 for n in range(4000)]
    source.write_text("\n".join(lines))
    assert up.run("map", "lengths", str(source), "-o", str(out), "--text").returncode == 0
    before = out.read_bytes()

    lines[2000] = lines[2000].replace("2", "3", 1)
    source.write_text("\n".join(lines))
    other = up.run("map", "lengths", str(source), "-o", str(out), "--text")

    assert (other.returncode, "other inputs" in other.stderr) == (1, True)
    assert out.read_bytes() == before


def test_map_goes_on_with_the_same_standard_input_alone(up: Up, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    lines = [echo(n) for n in range(3000)]
    arguments = ["map", "moody", "-", "-o", str(out)]
    process = subprocess.Popen(
        command(*arguments), env=environment(BATCHYARD_URL=up.url), stdin=subprocess.PIPE, text=True, cwd=up.folder
    )
    assert process.stdin is not None
    process.stdin.write("\n".join(lines[:2000]) + "\n")
    process.stdin.flush()
    assert eventually(lambda: out.exists() and out.stat().st_size > 0)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    process.stdin.close()

    for strange in (["7", *lines[1:]], lines[:1]):
        other = up.run(*arguments, text="\n".join(strange))
        assert (other.returncode, "not what this run began with" in other.stderr) == (1, True), other.stderr

    done = up.run(*arguments, text="\n".join(lines))
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(line)["index"] for line in out.read_text().splitlines()) == list(range(3000))


def test_map_reads_what_can_be_read_once(up: Up, tmp_path: Path) -> None:
    source, out = tmp_path / "pipe", tmp_path / "out.jsonl"
    os.mkfifo(source)
    writer = threading.Thread(target=source.write_text, args=("\n".join(map(echo, range(100))),))
    writer.start()

    done = up.run("map", "moody", str(source), "-o", str(out))

    writer.join(10)
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(line)["result"] for line in out.read_text().splitlines()) == list(range(100))


def test_map_has_a_line_for_what_is_no_longer_kept(up: Up, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(map(echo, range(10))))
    assert up.run("map", "moody", str(source), "-o", str(out), "--label", "holes").returncode == 0
    # As after a crash that lost OUT, and a long time.
    out.unlink()
    with Client(up.url) as client:
        jobs = sorted(client.jobs(label="holes"), key=lambda job: job.id)
        jobs[3].forget()

    done = up.run("map", "moody", str(source), "-o", str(out), "--label", "holes")

    assert done.returncode == 3, done.stderr
    found = {line["index"]: line for line in map(json.loads, out.read_text().splitlines())}
    assert sorted(found) == list(range(10))
    assert [index for index, line in found.items() if "error" in line] == [3]
    assert found[3]["error"]["code"] == "retired"


def test_map_names_a_bad_line_before_anything_is_submitted(up: Up, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(f"{echo(1)}\nnot json\n")

    done = up.run("map", "moody", str(source), "-o", str(out))

    assert done.returncode == 1
    assert "line 2" in done.stderr
    assert not out.exists()


def test_map_takes_plain_text_and_standard_input(up: Up, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"

    done = up.run("map", "lengths", "-", "-o", str(out), "--text", "--ordered", "--progress", text="a\nbcd\n\n")

    assert done.returncode == 0, done.stderr
    assert out.read_text() == '{"index":0,"result":{"length":1}}\n{"index":1,"result":{"length":3}}\n'


# --- looking and administering ---


def test_status_and_models(up: Up) -> None:
    with Client(up.url) as client:
        assert eventually(lambda: client.status().pools[0].decision is not None)
    told = json.loads(up.run("status", "--json").stdout)
    assert {queue["model"] for queue in told["queues"]} == {"lengths@1", "moody@1"}
    [pool] = told["pools"]
    assert (pool["decision"]["replicas"], pool["decision"].get("stale", False)) == (1, False)

    shown = up.run("status").stdout
    assert "moody@1" in shown
    assert "ago)" in shown
    assert "moody@1" in up.run("models").stdout
    assert [model["name"] for model in json.loads(up.run("models", "--json").stdout)] == ["lengths", "moody"]


def test_top_shows_the_system_until_q(up: Up) -> None:
    controller, terminal = pty.openpty()
    try:
        process = subprocess.Popen(
            command("top", "--interval", "0.2"),
            cwd=up.folder,
            env=environment(BATCHYARD_URL=up.url, TERM="xterm-256color", COLUMNS="160", LINES="50"),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
        )
        shown = b""
        while b"moody@1" not in shown or b"q leaves" not in shown:
            shown += os.read(controller, 65536)
        os.write(controller, b"q")
        # Whatever it still writes must be read, or it cannot end.
        os.set_blocking(controller, False)
        end = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < end:
            try:
                shown += os.read(controller, 65536)
            except BlockingIOError:
                time.sleep(0.02)
        assert process.wait(1) == 0
    finally:
        os.close(controller)
        os.close(terminal)


def test_top_needs_a_terminal(up: Up) -> None:
    assert up.run("top").returncode == 2


def test_pause_and_resume(up: Up) -> None:
    assert up.run("pause", "moody", "--lane", "tolerant").stdout == "paused moody@1 (tolerant)\n"
    try:
        done = up.run("submit", "moody", echo(1), "--timeout", "0.3")
        assert (done.returncode, "goes on" in done.stderr) == (1, True)
    finally:
        assert up.run("resume", "moody@1").stdout == "resumed moody@1 (firm and tolerant)\n"
    assert 'did you mean "moody"' in up.run("pause", "moodi").stderr


def test_pools_are_listed_and_fixed_by_hand(up: Up) -> None:
    assert up.run("pools", "pin", "local", "1").stdout == "local is fixed at 1\n"
    try:
        with Client(up.url) as client:
            assert eventually(lambda: getattr(client.pools()[0].decision, "rule", "") == "pinned")
        listed = " ".join(up.run("pools", "list").stdout.split())
        assert "fixed at 1 by hand" in listed
        assert "0.0" in listed, "no price: hours of consumers"
        assert up.run("pools", "resume", "local").stdout == "local is fixed at 1\n"
    finally:
        assert up.run("pools", "unpin", "local").stdout == "local is sized by the scaler\n"
    assert json.loads(up.run("pools", "list", "--json").stdout)[0]["name"] == "local"
    assert "at most 1, the max of local" in up.run("pools", "pin", "local", "9").stderr
    assert 'no pool "nope"' in up.run("pools", "pause", "nope").stderr


def test_tenants_and_keys(up: Up) -> None:
    assert up.run("tenants", "create", "acme", "--weight", "2").returncode == 0
    assert "acme" in up.run("tenants", "list").stdout
    limited = up.run("tenants", "limit", "acme", "--queued-jobs", "5000", "--requests-per-second", "2.5")
    told = "acme: queued_jobs 5,000, stored_bytes no limit, requests_per_second 2.5, jobs_per_second no limit"
    assert limited.stdout.strip() == told
    assert "5,000" in up.run("tenants", "list").stdout
    assert up.run("tenants", "limit", "nobody", "--queued-jobs", "5").returncode == 1

    made = up.run("keys", "create", "--tenant", "acme", "--name", "ci", "--expires-in-days", "30")
    key = made.stdout.strip()
    prefix = key.split("_")[1]
    assert prefix in up.run("keys", "list").stdout
    with Client(up.url, api_key=key) as acme, Client(up.url) as local:
        job = acme.submit("moody", {"do": "echo", "value": 1})
        assert job.result(timeout=60) == 1
        assert job.id not in [each.id for each in islice(local.jobs(), 200)]

    rotated = up.run("keys", "rotate", prefix, "--overlap-hours", "1")
    successor = rotated.stdout.strip().split("_")[1]
    assert (rotated.returncode, "tenant acme for jobs" in rotated.stderr) == (0, True)
    [line] = [line for line in up.run("keys", "list").stdout.splitlines() if prefix in line]
    assert f"replaced by {successor}" in line
    assert up.run("keys", "rotate", prefix).returncode == 1
    assert up.run("keys", "revoke", prefix).returncode == 0
    assert "revoked" in up.run("keys", "list").stdout
    assert up.run("keys", "create", "--tenant", "nobody").returncode == 1
    assert up.run("keys", "revoke", "absent").returncode == 1


# --- up ---


def test_a_second_up_is_refused(up: Up) -> None:
    same_state = up.run("up", "--bind", "127.0.0.1:0")
    assert same_state.returncode == 1
    assert "another `batchyard up`" in same_state.stderr

    same_address = up.run("up", "--bind", up.url.removeprefix("http://"), "--state", str(up.folder / "other"))
    assert same_address.returncode == 1
    assert "cannot listen on" in same_address.stderr


def test_up_says_what_it_starts(up: Up) -> None:
    text = "\n".join(up.lines)

    assert f"state     {up.folder / '.batchyard'}" in text
    assert "pool      local: moody, lengths on 1 to 1 consumers" in text


@pytest.mark.slow
def test_up_ends_within_seconds_and_the_next_one_resumes(tmp_path: Path) -> None:
    """Ctrl-C while jobs run and wait; then kill -9 of `up` itself: no process is left, and no job is lost."""
    with running_up(tmp_path) as up:
        with Client(up.url) as client:
            # A batch of these takes seconds, and there are more than one consumer takes at a time.
            jobs = client.submit_many("moody", [{"do": "sleep", "value": 0.03} for _ in range(400)])
            assert eventually(lambda: any(job.state == "running" for job in client.lookup(jobs)))
        begun = time.monotonic()
        assert up.stop(signal.SIGINT) == 0
        assert time.monotonic() - begun < 15
        assert up.lines[-1] == "ended"

        up.start()
        with Client(up.url) as client:
            assert eventually(lambda: any(job.state == "running" for job in client.lookup(jobs)))
        children = up.children()
        assert [_is(word, children) for word in ("api", "scaler", "worker", "valkey")] == [1, 1, 1, 1]
        up.kill()
        assert eventually(lambda: not [child for child in children if _is_alive(child)], seconds=15)

        up.start()
        with Client(up.url) as client:
            states = {job.state for job in client.lookup(jobs, wait=60, until="all")}
        assert states == {"succeeded"}


@pytest.mark.slow
def test_up_ends_in_the_stated_time_whoever_is_stubborn(tmp_path: Path) -> None:
    """A consumer that hears no signal, and a request under way that never comes to its end."""
    (tmp_path / "frozen.py").write_text(FROZEN)
    config = CONFIG + '[models.frozen]\nruntime = "frozen:Frozen"\n'
    with running_up(tmp_path, config=config.replace('"moody"', '"frozen", "moody"')) as up:
        with Client(up.url) as client:
            job = client.submit("frozen", 1)
            assert eventually(lambda: client.get(job.id).state == "running")
        host, _, port = up.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /v1/models/moody/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
            children = up.children()
            begun = time.monotonic()
            assert up.stop(signal.SIGINT) == 0
            # drain_seconds is 3; a busy machine has two more to get there.
            assert time.monotonic() - begun < 3 + 3 + 2
        assert not [child for child in children if _is_alive(child)]


@pytest.mark.slow
def test_a_second_interrupt_ends_at_once_and_hands_everything_back(tmp_path: Path) -> None:
    with running_up(tmp_path, config=CONFIG.replace("drain_seconds = 3", "drain_seconds = 90")) as up:
        with Client(up.url) as client:
            long = client.submit("moody", {"do": "sleep", "value": 60})
            assert eventually(lambda: client.get(long.id).state == "running")
        children = up.children()
        up.send(signal.SIGINT)
        assert eventually(lambda: any(line.startswith("draining") for line in up.lines))
        begun = time.monotonic()
        assert up.stop(signal.SIGINT) == 0
        assert time.monotonic() - begun < 5
        assert not [child for child in children if _is_alive(child)]

        store = open_store("sqlite", state_dir=tmp_path / ".batchyard")
        assert [(row.state, row.jobs) for row in store.backlog()] == [(State.QUEUED, 1)]
        store.close()


@pytest.mark.slow
def test_up_mends_what_dies(up: Up) -> None:
    """Every process is killed once, the private Valkey among them; each time a job still gets through."""
    for what in ("api", "scaler", "worker", "valkey"):
        [process] = [child for child in up.children() if what in child.cmdline() or what in child.name()]
        process.kill()
        assert eventually(lambda process=process: not _is_alive(process))  # type: ignore[misc]
        with Client(up.url, retry_seconds=30) as client:
            assert client.submit("moody", {"do": "echo", "value": what}).result(timeout=60) == what
        # Until everything stands again, whatever waited for whom.
        assert eventually(lambda: all(up.children(word) for word in ("api", "scaler", "worker")))
    assert eventually(lambda: any("the private Valkey has ended; starting it again" in line for line in up.lines))
    text = "\n".join(up.lines)
    assert "the API was ended by SIGKILL; starting it again" in text


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_says_why_and_keeps_its_jobs(tmp_path: Path) -> None:
    config = (
        CONFIG.replace('"lengths"]', '"lengths", "broken"]') + '[models.broken]\nruntime = "no_such_module:Model"\n'
    )
    with running_up(tmp_path, config=config) as up, Client(up.url) as client:
        job = client.submit("broken", 1)

        assert eventually(lambda: bool(client.model("broken").versions[0].load_error))
        assert client.submit("lengths", "abc").result(timeout=60) == {"length": 3}
        with pytest.raises(WaitTimeout, match="still queued"):
            job.result(timeout=0.1)

        # A line may be broken anywhere to fit the screen.
        status = " ".join(up.run("status").stdout.split())
        assert "broken@1 cannot be loaded" in status
        assert "no_such_module" in status
        checked = up.run("check")
        assert checked.returncode == 1
        [failed] = [line for line in checked.stdout.splitlines() if line.startswith("broken@1: FAILED")]
        assert "no_such_module" in failed
        assert "lengths@1: ok" in checked.stdout


@pytest.mark.slow
def test_up_tells_why_it_cannot_start(tmp_path: Path) -> None:
    up = Up(tmp_path, config=CONFIG + '\n[database]\nurl = "postgresql://u:sesame@127.0.0.1:9/none"\n')

    done = subprocess.run(
        command("up", "--bind", "127.0.0.1:0"),
        cwd=up.folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "sesame" not in done.stdout + done.stderr


def _is(word: str, processes: Sequence[psutil.Process]) -> int:
    """How many of the processes are that."""
    return sum(word in process.cmdline() or word in process.name() for process in processes)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demo_takes_less_than_three_minutes(tmp_path: Path) -> None:
    """At its full size and with the threads that torch chooses."""
    variables = {name: value for name, value in environment().items() if name != "OMP_NUM_THREADS"}
    begun = time.monotonic()
    done = subprocess.run(command("demo"), cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=280)
    took = time.monotonic() - begun

    assert done.returncode == 0, done.stdout + done.stderr
    assert "4,000 of 4,000 passages embedded" in done.stdout
    assert "0 → 1 consumers" in done.stdout
    assert "padding" in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert took < 180, done.stdout
