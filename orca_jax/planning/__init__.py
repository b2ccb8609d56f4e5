"""What a config costs on given chips: memory, time, collectives, hours; no chip is needed."""
