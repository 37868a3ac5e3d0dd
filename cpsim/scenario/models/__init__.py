"""What a workload is drawn from."""
