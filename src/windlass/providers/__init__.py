"""A vendor = a dialect + an address + a key; retry, route and breaker are providers wrapping providers."""
