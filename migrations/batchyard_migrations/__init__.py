"""The database schema's history, applied by Alembic."""
