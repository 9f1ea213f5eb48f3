"""Alembic's environment: run by the program with a connection, or by a developer with settings."""

from alembic import context

from app import database, settings
from app.tables import metadata


def run() -> None:
    connection = context.config.attributes.get("connection")
    if connection is not None:
        context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
        with context.begin_transaction():
            context.run_migrations()
        return
    engine = database.connect(settings.load().database)
    with engine.connect() as own, own.begin():
        context.configure(connection=own, target_metadata=metadata, render_as_batch=True)
        context.run_migrations()


run()
