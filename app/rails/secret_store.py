"""The secret that keys are hashed with: from the environment, or a file beside an SQLite database.

It is not in the database, so that a copy of the database alone cannot even test a guessed key.
"""

import contextlib
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from sqlalchemy import Engine, select

from app.database import is_sqlite
from app.settings import Settings, SettingsError
from app.tables import api_keys

SECRET_BYTES_MIN = 32
SECRET_FILE_BYTES_MAX = 4096
SECRET_FILE_SUFFIX = ".secret"  # noqa: S105 - a name, not a password
SECRET_FILE_MODE = 0o600


def load_secret(settings: Settings, engine: Engine, *, environ: Mapping[str, str] | None = None) -> bytes:
    """The secret of this installation, made on first use with SQLite; the schema must be current.

    The file's text is the secret, so it can be moved into the variable as it is. Raises
    `SettingsError`, which never quotes the secret.
    """
    variable = settings.server.secret_env
    text = (os.environ if environ is None else environ).get(variable, "").strip()
    if text:
        return _long_enough(os.fsencode(text), source=f"the environment variable {variable}")
    path = secret_path(engine)
    if path is None:
        raise SettingsError(
            f"set the environment variable {variable} to at least {SECRET_BYTES_MIN} random characters, the same for "
            "every replica: API keys are hashed with it (for example: openssl rand -hex 32)"
        )
    # Asked first: whoever made a key had made the file before.
    with engine.connect() as connection:
        keys_exist = connection.execute(select(api_keys.c.id).limit(1)).first() is not None
    if not path.exists():
        if keys_exist:
            raise SettingsError(
                f"{path} is gone, and the keys in the database were hashed with it: "
                f"bring it back, or set {variable} to its content"
            )
        _create(path, secrets.token_urlsafe(SECRET_BYTES_MIN))
    return _read(path)


def load_kept(
    engine: Engine,
    *,
    variable: str,
    suffix: str,
    what: str,
    make: Callable[[], str],
    environ: Mapping[str, str] | None = None,
) -> str:
    """A secret from its variable, or kept in a file of mode 0600 beside SQLite and made on first use.

    Raises `SettingsError`, which never quotes it.
    """
    text = (os.environ if environ is None else environ).get(variable, "").strip()
    if text:
        return text
    path = _beside(engine, suffix)
    if path is None:
        raise SettingsError(f"set the environment variable {variable} to {what}, the same for every replica")
    if not path.exists():
        _create(path, make())
    return _read(path).decode()


def load_previous(engine: Engine, *, variable: str, suffix: str) -> str | None:
    """The secret before, while what was made with it may still be shown; None if there was none."""
    text = os.environ.get(variable, "").strip()
    if text:
        return text
    path = _beside(engine, suffix)
    return _read(path).decode() if path is not None and path.exists() else None


def rotate_kept(engine: Engine, *, suffix: str, previous_suffix: str, make: Callable[[], str]) -> Path:
    """Put a new secret in the place of the kept one, which becomes the one before. Raises `SettingsError`."""
    path, previous = _beside(engine, suffix), _beside(engine, previous_suffix)
    if path is None or previous is None:
        raise SettingsError("the secret is in the environment: rotate it there, with the one before beside it")
    if path.exists():
        os.replace(path, previous)
    _create(path, make())
    return path


def _beside(engine: Engine, suffix: str) -> Path | None:
    path = secret_path(engine)
    return path.with_name(path.name.removesuffix(SECRET_FILE_SUFFIX) + suffix) if path is not None else None


def secret_path(engine: Engine) -> Path | None:
    """Where the secret is kept beside an SQLite database; None elsewhere."""
    database = engine.url.database
    if not is_sqlite(engine) or not database or database == ":memory:":
        return None
    return Path(database + SECRET_FILE_SUFFIX)


def _create(path: Path, text: str) -> None:
    """Make the file whole or not at all: of two processes, the second finds the first one's."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, SECRET_FILE_MODE)
        try:
            os.write(descriptor, text.encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            # A link appears with its whole content, and fails where the name is taken.
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            os.unlink(draft)
        _sync_folder(path.parent)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be created: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(SECRET_FILE_BYTES_MAX)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    return _long_enough(content.strip(), source=str(path))


def _long_enough(secret: bytes, *, source: str) -> bytes:
    if len(secret) < SECRET_BYTES_MIN:
        raise SettingsError(f"{source} holds {len(secret)} bytes; a secret has at least {SECRET_BYTES_MIN}")
    return secret
