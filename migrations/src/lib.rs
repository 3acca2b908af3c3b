//! SQL migrations of the Dormouse store, for SQLite and PostgreSQL.
