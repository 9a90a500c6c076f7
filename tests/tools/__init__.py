"""The tools, on workspaces in memory and on disk."""
