"""The replication engine.  It does no I/O of its own: everything reaches it through ``ports``."""
