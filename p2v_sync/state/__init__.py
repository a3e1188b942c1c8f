"""The sender's own records: the ledger (SQLite) and the job lock."""
