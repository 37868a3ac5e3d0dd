"""The durable log under the daemon's spool and the server's store."""
