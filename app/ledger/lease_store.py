"""Who owns which holds, and since when an owner has been silent."""

from dataclasses import dataclass

from sqlalchemy import Engine, delete, insert, select, update

from app.clock import EpochMs
from app.tables import holds, idempotency_claims, owners

ORPHANS_MAX = 500


@dataclass(frozen=True, slots=True)
class HeldRequest:
    """A request with open holds."""

    request_id: str
    account_id: str
    key_id: str | None
    owner_id: str


class LeaseStore:
    """The rows of `owners`: one heartbeat per process covers all of its holds."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def register(self, owner_id: str, *, now: EpochMs) -> None:
        """Begin to own holds."""
        with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            connection.execute(insert(owners).values(id=owner_id, started_at_ms=now, heartbeat_at_ms=now))

    def beat(self, owner_id: str, *, now: EpochMs) -> bool:
        """Say that the owner lives; false if the row is gone."""
        with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            statement = update(owners).where(owners.c.id == owner_id).values(heartbeat_at_ms=now)
            return bool(connection.execute(statement).rowcount)

    def retire(self, owner_id: str, *, silent_since: EpochMs) -> None:
        """Forget an owner that left with no holds open, and others long dead without any."""
        held = select(holds.c.id).where(holds.c.owner_id == owners.c.id).exists()
        gone = (owners.c.id == owner_id) | (owners.c.heartbeat_at_ms < silent_since)
        with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            connection.execute(delete(owners).where(gone, ~held))

    def orphaned(self, *, silent_since: EpochMs) -> list[HeldRequest]:
        """Requests whose owner has been silent since before the moment, at most `ORPHANS_MAX`."""
        alive = select(owners.c.id).where(owners.c.heartbeat_at_ms > silent_since)
        return self._held(holds.c.owner_id.not_in(alive))

    def owned(self, owner_id: str, *, created_before: EpochMs) -> list[HeldRequest]:
        """One's own requests with holds older than the moment."""
        return self._held((holds.c.owner_id == owner_id) & (holds.c.created_at_ms < created_before))

    def forget_claims(self, *, now: EpochMs) -> int:
        """Delete expired idempotency claims; those of running requests stay."""
        with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            gone = (idempotency_claims.c.expires_at_ms < now) & (idempotency_claims.c.state != "running")
            return connection.execute(delete(idempotency_claims).where(gone)).rowcount

    def _held(self, condition: object) -> list[HeldRequest]:
        statement = (
            select(holds.c.request_id, holds.c.account_id, holds.c.key_id, holds.c.owner_id)
            .where(condition)  # type: ignore[arg-type]
            .distinct()
            .limit(ORPHANS_MAX)
        )
        with self._engine.connect() as connection:
            return [HeldRequest(*row) for row in connection.execute(statement)]
