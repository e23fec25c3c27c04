"""Words that every layer shares: ids, errors, configuration, requests. No torch, no HTTP."""
