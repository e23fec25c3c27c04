"""Tasks at rest: files, their checks, the store, the registry, and the device arena they are used from."""
