"""`sensorium deploy`: from one cluster specification to the files and commands that bring a cluster up."""
