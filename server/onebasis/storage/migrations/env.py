"""Run by alembic: the revisions that are missing, on the connection and in the transaction that `Database` began."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
