"""The bytes that jobs refer to, kept apart from the database: a folder in the state directory, or any fsspec URL.

A payload is written once under its own location and never changed. `batchyard.store.payloads` says how its row in the
database and its bytes keep in step.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import msgspec

from batchyard.errors import ConfigurationError, InvalidInput, MissingExtra, NotFound, TooLarge, Unavailable
from batchyard.inputs import PAYLOAD_MEMBER
from batchyard.jobs import format_id, parse_id
from batchyard.settings import Settings
from batchyard.store.base import JobStore

CHUNK_BYTES = 1024 * 1024


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What was written."""

    size: int
    digest: bytes
    """SHA-256."""


class ObjectStore:
    """Payloads by location. Safe to share between threads; every method blocks."""

    def __init__(self, filesystem: Any, root: str, *, is_local: bool) -> None:
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self._is_local = is_local

    def create(self, location: str, *, max_bytes: int) -> Upload:
        """Begin to write; `commit` or `discard` it."""
        path = self._path(location)
        with _outages("write"):
            self._filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
            file = self._filesystem.open(path, "wb")
        return Upload(
            file,
            max_bytes=max_bytes,
            remove=lambda: self._remove(path),
            sync=_sync_with_folder if self._is_local else None,
        )

    def put(self, location: str, chunks: Iterable[bytes], *, max_bytes: int) -> Stored:
        """Write a whole payload; TooLarge beyond the limit, with nothing left behind."""
        upload = self.create(location, max_bytes=max_bytes)
        try:
            for chunk in chunks:
                upload.write(chunk)
            return upload.commit()
        except BaseException:
            upload.discard()
            raise

    def read(self, location: str) -> bytes:
        """All of it; NotFound."""
        return b"".join(self.chunks(location))

    def chunks(self, location: str) -> Iterator[bytes]:
        """Its bytes in pieces of at most CHUNK_BYTES. The first piece is read, or NotFound raised, by this call."""
        with _outages("read"):
            try:
                file: IO[bytes] = self._filesystem.open(self._path(location), "rb")
            except FileNotFoundError as error:
                raise NotFound(f"the bytes of the payload at {location} are gone") from error
        return _pieces(file)

    def delete(self, location: str) -> None:
        """Remove it for good; nothing happens where it is not there. Unavailable."""
        path = self._path(location)
        self._remove(path)
        if self._is_local:
            with _outages("delete"), suppress(FileNotFoundError):
                _sync_folder(Path(path).parent)

    def _path(self, location: str) -> str:
        return f"{self._root}/{location}"

    def _remove(self, path: str) -> None:
        with _outages("delete"), suppress(FileNotFoundError):
            self._filesystem.rm_file(path)


class Upload:
    """A payload on its way in. Owned by whoever writes it, one thread at a time."""

    def __init__(
        self, file: IO[bytes], *, max_bytes: int, remove: Callable[[], None], sync: Callable[[IO[bytes]], None] | None
    ) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self._remove = remove
        self._sync = sync
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, chunk: bytes) -> None:
        """TooLarge beyond the limit."""
        self._size += len(chunk)
        if self._size > self._max_bytes:
            raise TooLarge(f"a payload has at most {self._max_bytes} bytes", limit=self._max_bytes)
        self._hash.update(chunk)
        with _outages("write"):
            self._file.write(chunk)

    def commit(self) -> Stored:
        """Make it last; afterwards it survives the loss of power as far as the object store does."""
        with _outages("write"):
            if self._sync is not None:
                self._sync(self._file)
            self._file.close()
        return Stored(size=self._size, digest=self._hash.digest())

    def discard(self) -> None:
        """Leave nothing behind, as far as the object store answers."""
        with suppress(OSError, Unavailable):
            self._file.close()
        with suppress(Unavailable):
            self._remove()


def open_objects(settings: Settings) -> ObjectStore:
    """The object store of the configuration; reaches out only when used."""
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtra(feature="storing payloads", extra="producer") from error
    url = settings.storage.url
    if url == "file":
        url = str(settings.state_dir / "payloads")
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        # An unknown protocol, or one whose driver is not installed; fsspec says which package brings it.
        raise ConfigurationError([f"storage.url cannot be used: {error}"]) from error
    return ObjectStore(filesystem, root, is_local="file" in _protocols(filesystem))


def location_of(payload_id: int, *, tenant_id: int) -> str:
    """Where a payload lies within the object store."""
    return f"{tenant_id}/{format_id(payload_id)}"


# --- inputs that refer to payloads ----------------------------------------------------------------------------------

Fetch = Callable[[int], bytes]


def may_refer(body: bytes) -> bool:
    """Whether an input's JSON could hold a reference; mostly false, and cheap."""
    return b"$payload" in body or b"\\u" in body


def resolve(value: Any, fetch: Fetch) -> Any:
    """The same value with every `{"$payload": id}` in it replaced by the payload's bytes."""
    if isinstance(value, dict):
        if value.keys() == {PAYLOAD_MEMBER}:
            return fetch(_reference(value[PAYLOAD_MEMBER]))
        return {name: resolve(member, fetch) for name, member in value.items()}
    if isinstance(value, list):
        return [resolve(member, fetch) for member in value]
    return value


def fetch_from(jobs: JobStore, objects: ObjectStore, *, tenant_id: int) -> Fetch:
    """Fetches payloads of one tenant; InvalidInput for any other and for one whose bytes are gone."""

    def fetch(payload_id: int) -> bytes:
        for info in jobs.get_payloads([payload_id]):
            if info.tenant_id == tenant_id:
                try:
                    return objects.read(info.location)
                except NotFound:
                    break
        raise InvalidInput(f"payload {format_id(payload_id)} does not exist or is no longer kept")

    return fetch


def _reference(text: object) -> int:
    number = parse_id(text) if isinstance(text, str) else None
    if number is None:
        raise InvalidInput(f"{str(text)[:64]!r} is not the id of a payload")
    return number


# --- files ----------------------------------------------------------------------------------------------------------


class _outages:  # noqa: N801  reads as a statement
    """What an object store raises when it is away, full or not permitted becomes Unavailable."""

    def __init__(self, verb: str) -> None:
        self._verb = verb

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise Unavailable(
                f"the object store could not {self._verb}: {error.strerror or type(error).__name__}",
                retry_after_seconds=5,
            ) from error


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while True:
            with _outages("read"):
                chunk = file.read(CHUNK_BYTES)
            if not chunk:
                return
            yield chunk


def _sync_with_folder(file: IO[bytes]) -> None:
    """Flush a local file, the entry that names it, and the entry of its folder, which may be new."""
    file.flush()
    os.fsync(file.fileno())
    parents = Path(str(file.name)).absolute().parents
    for folder in (parents[0], parents[1]):
        _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
