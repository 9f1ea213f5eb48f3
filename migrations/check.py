"""`python -m migrations.check`: the migrations, applied to an empty database, give exactly `app.tables`."""

import sys
import tempfile
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from app import database
from app.settings import DatabaseSettings
from app.tables import metadata


def differences() -> list[object]:
    """What a new migration would have to change; empty when there is nothing."""
    with tempfile.TemporaryDirectory() as folder:
        engine = database.connect(DatabaseSettings(url=f"sqlite:///{Path(folder) / 'check.db'}"))
        database.migrate(engine)
        with engine.connect() as connection:
            found: list[object] = compare_metadata(MigrationContext.configure(connection), metadata)
        engine.dispose()
    return found


if __name__ == "__main__":
    changes = differences()
    for change in changes:
        sys.stderr.write(f"not in any migration: {change}\n")
    sys.stdout.write("migrations match the tables\n" if not changes else "")
    sys.exit(1 if changes else 0)
