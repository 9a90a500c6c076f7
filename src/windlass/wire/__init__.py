"""Pure two-sided translators between our words and each vendor's bytes; no I/O, no async."""
