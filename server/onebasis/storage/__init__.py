"""The SQL database under the registry and the keys: opening it, bringing its schema up to date, transactions."""
