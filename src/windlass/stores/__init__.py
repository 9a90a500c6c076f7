"""Where sessions, checkpoints and vectors are kept."""
