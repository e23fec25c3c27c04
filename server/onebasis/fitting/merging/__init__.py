"""Merging tasks of one basis: one file a method, all on whole, uncentred cores."""
