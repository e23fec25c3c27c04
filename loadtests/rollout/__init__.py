"""Two replicas behind a real Envoy and a picker, restarted and killed under load: does any request fail?"""
