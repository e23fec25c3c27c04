"""What operators see: metrics in Prometheus text, and logs."""
