"""The secrets of payment by wallet: what challenges are bound with, and the keys that sign settlements.

From the environment, or made on first use and kept beside SQLite with mode 0600; never in the database.
"""

import secrets

from sqlalchemy import Engine

from app.mpp.challenge import SECRET_CHARACTERS_MIN
from app.rails.secret_store import load_kept, load_previous, rotate_kept
from app.settings import ChannelSettings, MppSettings, SettingsError

CHALLENGE_SUFFIX = ".mpp-secret"
PREVIOUS_SUFFIX = ".mpp-secret.previous"
PAYEE_SUFFIX = ".payee-key"
KEY_BYTES = 32


def challenge_secrets(settings: MppSettings, engine: Engine) -> tuple[str, str | None]:
    """The secret of challenges, and the one before. Raises `SettingsError`."""
    secret = load_kept(
        engine,
        variable=settings.secret_env,
        suffix=CHALLENGE_SUFFIX,
        what=f"at least {SECRET_CHARACTERS_MIN} random characters",
        make=_new_secret,
    )
    if len(secret) < SECRET_CHARACTERS_MIN:
        raise SettingsError(f"{settings.secret_env} is shorter than {SECRET_CHARACTERS_MIN} characters")
    return secret, load_previous(engine, variable=settings.previous_secret_env, suffix=PREVIOUS_SUFFIX)


def rotate_challenge_secret(engine: Engine) -> str:
    """Make a new secret; challenges of the one before stay valid. Gives the file's name."""
    path = rotate_kept(engine, suffix=CHALLENGE_SUFFIX, previous_suffix=PREVIOUS_SUFFIX, make=_new_secret)
    return str(path)


def payee_key(channel: ChannelSettings, engine: Engine) -> bytes:
    """The private key that signs settlements of a channel kind. Raises `SettingsError`."""
    text = load_kept(
        engine,
        variable=channel.payee_key_env,
        suffix=PAYEE_SUFFIX,
        what="the private key that signs settlements, in hexadecimal",
        make=lambda: "0x" + secrets.token_hex(KEY_BYTES),
    )
    try:
        key = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise SettingsError(f"{channel.payee_key_env} is no private key: it has 64 hexadecimal digits")
    return key


def _new_secret() -> str:
    return secrets.token_urlsafe(SECRET_CHARACTERS_MIN)
