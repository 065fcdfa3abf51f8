"""Who makes it: the runner and its executors, dry runs, estimates of time and needs, status, and the doctor."""
