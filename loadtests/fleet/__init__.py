"""What 100 replicas and up to a million tasks ask of PostgreSQL, of memory and of the arenas: deploy/SCALING.md."""
