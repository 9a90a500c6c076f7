"""The agent for editors, driven by the protocol's own clients."""
