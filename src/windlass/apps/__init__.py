"""What you start: cli, tui, acp, discord, the web page's files."""
