"""Who may spend what: keys, tenants, budgets, request records."""
