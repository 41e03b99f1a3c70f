"""`make audit` finds what is wrong with a lock, and never takes silence for health."""

import json
from importlib import metadata

import pytest

from tests import audit


def test_a_lock_pins_every_package_to_one_version() -> None:
    pins, loose = audit.pinned(["# made by", "a_b==1.0", "    # via x", "c>=2", "d==1 ; sys_platform == 'win32'", ""])
    assert (pins, loose) == ({"a-b": "1.0"}, ["c>=2"])
    told = audit.lock_faults(pins, loose, needs=["a.b>=2", "e", "f @ https://example.com/f.whl", "batchyard[store]"])
    assert [("c>=2" in told[0]), ("allows >=2" in told[1]), ("no e," in told[2])] == [True] * 3
    assert "names a place" in told[3]


def test_what_is_installed_must_be_what_is_locked() -> None:
    assert audit.installed_faults({"msgspec": metadata.version("msgspec"), "of-another-platform": "1"}) == []
    [fault] = audit.installed_faults({"msgspec": "0.0.1"})
    assert "0.0.1 is locked" in fault


def test_a_licence_that_is_not_accepted_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "licence_of", lambda package: "AGPL-3.0-only")
    [fault] = audit.installed_faults({"msgspec": metadata.version("msgspec")})
    assert "'AGPL-3.0-only'" in fault


def test_vulnerabilities_and_silence_are_told_apart() -> None:
    report = {
        "dependencies": [
            {"name": "good", "version": "1", "vulns": []},
            {"name": "bad", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]},
            {"name": "unknown", "skip_reason": "not found"},
        ]
    }
    assert audit.advisories(json.dumps(report)) == (["bad 2: PYSEC-1, mended in 3"], 2, 1)


@pytest.mark.parametrize(
    ("answer", "strict", "status", "told"),
    [
        ((["bad 2: PYSEC-1"], 2, 0), False, 1, "PYSEC-1"),
        (([], 2, 0), True, 0, "known vulnerabilities: 0"),
        (([], 0, 2), False, 0, "ADVISORIES NOT CHECKED for all"),
        (([], 0, 2), True, 1, "ADVISORIES NOT CHECKED for all"),
        ("no answer", False, 0, "could not be asked: no answer"),
    ],
)
def test_what_the_databases_say_decides(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    answer: object,
    strict: bool,
    status: int,
    told: str,
) -> None:
    monkeypatch.setattr(audit, "ask", lambda service: answer)
    monkeypatch.setattr(audit, "installed_faults", lambda pins: [])
    assert audit.main(["--strict"] if strict else []) == status
    shown = capsys.readouterr()
    assert told in shown.out + shown.err
