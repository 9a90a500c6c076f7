"""One system for people who build with language models: gateway, agent loop, coding agent, local models."""
