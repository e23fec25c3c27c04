"""Who may do what: API keys, tenants, quotas and the audit log."""
