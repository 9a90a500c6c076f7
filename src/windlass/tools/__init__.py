"""What a model may do: functions, files, search, shell, web, data, skills, MCP."""
