"""Where tools act: memory, local disk, sandbox, Docker, remote."""
