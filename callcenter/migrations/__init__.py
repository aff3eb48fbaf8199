"""The database's schema, step by step; run by ``callcenter.database.migrate``."""
