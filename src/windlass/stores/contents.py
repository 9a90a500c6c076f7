"""Keep contents of files in a SQLite ledger, each once: what undo needs of the sessions that changed them.

The tables are made with the first content, so a ledger without any stays as it was, and versions that do not know them
read and write its rows all the same. `file_users` says which session (its number) has which content; a fork has its
parent's, and what no session has any more is deleted.
"""

from __future__ import annotations

import hashlib
import sqlite3

from windlass.core.errors import SessionNotFound

__all__ = ["copy_files", "drop_files", "get_file", "make_tables", "put_file"]

_TABLES = (
    "CREATE TABLE IF NOT EXISTS files(hash BLOB PRIMARY KEY, data BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS file_users(hash BLOB NOT NULL, no INTEGER NOT NULL, UNIQUE(no, hash))",
    "CREATE INDEX IF NOT EXISTS file_users_of ON file_users(hash)",
)
_NUMBER = "SELECT no FROM sessions WHERE tenant = ? AND id = ?"
Name = str | bytes


def make_tables(conn: sqlite3.Connection) -> None:
    """Make the tables, unless they are there."""
    for statement in _TABLES:
        conn.execute(statement)


def _there(conn: sqlite3.Connection) -> bool:
    return conn.execute("SELECT 1 FROM sqlite_schema WHERE name = 'file_users'").fetchone() is not None


def put_file(tenant: Name, session: Name, data: bytes, conn: sqlite3.Connection) -> str:
    """Keep a content for a session and return its SHA-256 in hex. Raises SessionNotFound."""
    found = conn.execute(_NUMBER, (tenant, session)).fetchone()
    if found is None:
        raise SessionNotFound(f"There is no session {session!r} to keep a file for.")
    if not _there(conn):
        make_tables(conn)
    digest = hashlib.sha256(data)
    conn.execute("INSERT OR IGNORE INTO files(hash, data) VALUES (?, ?)", (digest.digest(), data))
    conn.execute("INSERT OR IGNORE INTO file_users(hash, no) VALUES (?, ?)", (digest.digest(), found[0]))
    return digest.hexdigest()


def get_file(tenant: Name, session: Name, sha256: str, conn: sqlite3.Connection) -> bytes | None:
    """Return a content that a session has, None when it has not."""
    if not _there(conn):
        return None
    sql = (
        "SELECT f.data FROM sessions s JOIN file_users u ON u.no = s.no JOIN files f ON f.hash = u.hash "
        "WHERE s.tenant = ? AND s.id = ? AND u.hash = ?"
    )
    found = conn.execute(sql, (tenant, session, bytes.fromhex(sha256))).fetchone()
    return None if found is None else found[0]


def copy_files(conn: sqlite3.Connection, parent: int, child: int) -> None:
    """Give a fork what its parent has."""
    if _there(conn):
        sql = "INSERT OR IGNORE INTO file_users(hash, no) SELECT hash, ? FROM file_users WHERE no = ?"
        conn.execute(sql, (child, parent))


def drop_files(conn: sqlite3.Connection, number: int) -> None:
    """Take a session's contents away; those that no other session has are deleted."""
    if not _there(conn):
        return
    hashes = conn.execute("DELETE FROM file_users WHERE no = ? RETURNING hash", (number,)).fetchall()
    gone = "DELETE FROM files WHERE hash = ? AND NOT EXISTS (SELECT 1 FROM file_users WHERE hash = files.hash)"
    conn.executemany(gone, hashes)
