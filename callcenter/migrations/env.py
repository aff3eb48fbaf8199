"""Run by alembic inside the transaction that ``callcenter.database`` has begun."""

from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo

from callcenter.database import metadata

_attributes = context.config.attributes


def _tell(ctx: MigrationContext, step: MigrationInfo, heads: Any, run_args: Any) -> None:
    for revision in step.up_revision_ids:
        _attributes["progress"](f"Database migrated to version {revision}.")


# render_as_batch: SQLite cannot alter a column in place.
context.configure(
    connection=_attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    on_version_apply=_tell,
)
context.run_migrations()
