"""The coding agent in a terminal: finished text is printed once into the scrollback, a few lines below it live."""
