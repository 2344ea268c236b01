"""What a plan is and how it is walked: standard library only, no clock, no I/O."""
