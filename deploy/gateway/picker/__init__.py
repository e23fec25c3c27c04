"""A small endpoint picker: chooses the replica of each request by the replicas' own metrics, for Envoy's ext_proc.

It stands in for the endpoint picker of the Gateway API inference extension on a laptop and in tests: the same
headers, the same metrics, the same kinds of scores. It is not that picker: replicas come from names and not from the
API server, and it has no flow control, no prefix scores and no InferenceObjective. In a cluster use the real one.
"""
