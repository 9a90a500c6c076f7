"""Who listens: record/replay, metrics, OpenTelemetry, console."""
