"""Two replicas on one PostgreSQL under a mixed load, one killed again and again: is anything lost or mixed up?"""
