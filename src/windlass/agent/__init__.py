"""The loop: ask the model, run the tools, tell everyone. Knows no concrete provider, tool, store, workspace."""
