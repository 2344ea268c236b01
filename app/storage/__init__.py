"""The database: SQLAlchemy Core on SQLite or PostgreSQL; rows in, domain values out."""
